#!/usr/bin/env python3
"""A 64-bit Arm machine in an emulator, with a Linux kernel of its own, in which tests run that were built for it.

    tests/cross/machine.py prepare FOLDER            makes the machine in FOLDER (once), and a cross file for Meson
    tests/cross/machine.py run FOLDER PROGRAM ARG... runs the program in it; the status is the program's

Why a whole machine: qemu-user translates system calls, and knows no MADV_WIPEONFORK, io_uring or file locks of a forked
child, which most of weir stands on. Here the kernel is a real one.

The kernel, busybox and liburing are Debian's packages for arm64. They are unpacked into FOLDER; nothing is installed,
and the system stays of one architecture. The kernel is the newest that the release has, backports included: futex
operations of io_uring want 6.7.

Each run starts the machine anew, which takes some seconds, shows it the repository under the path that it has here, and
stops it. The program begins in an empty folder on a disk, which is gone afterwards. What starts with WEIR_ in the environment
goes along. Only the standard library is used.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LIBRARIES = pathlib.Path("/usr/aarch64-linux-gnu/lib")  # of the cross compiler
LIBRARY_NAMES = ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"]
MODULES = ["fs/netfs/netfs", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p", "drivers/block/virtio_blk", "lib/crc16",
           "crypto/crc32c_generic", "fs/mbcache", "fs/jbd2/jbd2", "fs/ext4/ext4"]  # in the order in which they need each other
PACKAGES = ["busybox-static", "liburing2", "liburing-dev"]
KERNEL = "linux-image-arm64"
MEMORY = "2G"
DISK = "4G"  # of which only what is written takes room

# The first process there. What it runs is in the folder of the run.
INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts /disk
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
for module in /modules/*; do insmod $module; done
ip link set lo up
read -r repository < /repository
mkdir -p "$repository"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose shared "$repository"
mount -t ext4 /dev/vda /disk
for word in $(cat /proc/cmdline); do
    case $word in weir_run=*) run=${word#weir_run=} ;; esac
done
setsid sh "$run/job"
echo $? > "$run/status"
sync
echo 0 > /proc/sys/kernel/printk # it says that the power is off
poweroff -f
"""


def say(text):
    print(f"machine.py: {text}", file=sys.stderr, flush=True)


def output_of(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def find(root, name):
    """What the packages have under that name, wherever they have it."""
    found = next(root.glob(f"**/{name}"), None)
    if found is None:
        raise RuntimeError(f"none of the packages has {name}")
    return found


class Packages:
    """apt-get with lists and an architecture of its own."""

    def __init__(self, folder):
        self.folder = folder / "packages"
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        sources = self.folder / "sources.list"
        self.options = []
        for option in ("APT::Architecture=arm64", "APT::Architectures=arm64", "Dir::Etc::sourceparts=-",
                       f"Dir::Etc::sourcelist={sources}", f"Dir::State::lists={self.folder / 'lists'}",
                       f"Dir::Cache={self.folder / 'cache'}", "Dir::State::status=/dev/null", "APT::Sandbox::User=root"):
            self.options += ["-o", option]
        release, site = self.source()
        # Testing and unstable have no backports.
        for newest in (f"{release}-backports", release):
            sources.write_text("".join(f"deb [arch=arm64] {site} {suite} main\n" for suite in sorted({release, newest})))
            if subprocess.run(["apt-get", *self.options, "-q", "update"], stdout=subprocess.DEVNULL).returncode == 0:
                self.options += ["-t", newest]
                return
        raise RuntimeError("the lists of packages for arm64 cannot be had")

    @staticmethod
    def source():
        """Where this system has its own packages from: the release's name, and the place."""
        listed = output_of(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)",
                            "Created-By: Packages", "Origin: Debian", "Component: main"])
        for line in listed.splitlines():
            release, site = line.split()
            if "-" not in release:  # not its updates
                return release, site
        raise RuntimeError("this wants Debian with its lists of packages: run apt-get update, or use Debian")

    def unpack(self, *names):
        """The newest of each."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            subprocess.run(["apt-get", *self.options, "-q", "download", *names], check=True, cwd=folder,
                           stdout=subprocess.DEVNULL)
            for package in pathlib.Path(folder).iterdir():
                subprocess.run(["dpkg-deb", "-x", package, self.folder / "root"], check=True)

    def kernel(self):
        """The package that the newest kernel is in."""
        for line in output_of(["apt-cache", *self.options, "depends", KERNEL]).splitlines():
            if "Depends: linux-image-" in line:
                return line.split()[-1]
        raise RuntimeError(f"{KERNEL} names no kernel")


def prepare(folder):
    cross_file = folder / "machine.ini"
    if cross_file.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packages = Packages(folder)
    kernel = packages.kernel()
    say(f"fetching {kernel}, {', '.join(PACKAGES)}")
    packages.unpack(kernel, *PACKAGES)
    root = packages.folder / "root"
    shutil.copy(find(root, "boot/vmlinuz-*"), folder / "kernel")

    # What the machine starts with: files at the places that they have there.
    first = folder / "first"
    for name in ("bin", "dev", "etc", "lib", "modules", "proc", "sys", "tmp"):
        (first / name).mkdir(parents=True)
    (first / "init").write_text(INIT)
    (first / "init").chmod(0o755)
    (first / "repository").write_text(f"{REPOSITORY}\n")
    (first / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (first / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    shutil.copy(find(root, "bin/busybox"), first / "bin/busybox")
    (first / "bin/sh").symlink_to("busybox")
    for name in LIBRARY_NAMES:
        shutil.copy(LIBRARIES / name, first / "lib" / name)
    shutil.copy(find(root, "liburing.so.2"), first / "lib/liburing.so.2")
    for number, name in enumerate(MODULES):
        with open(first / "modules" / f"{number:02}.ko", "wb") as unpacked:
            subprocess.run(["xz", "-dc", find(root, f"kernel/{name}.ko.xz")], check=True, stdout=unpacked)
    archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], check=True, stdout=subprocess.PIPE, cwd=first,
                             input="\n".join(str(path.relative_to(first)) for path in sorted(first.rglob("*"))).encode())
    (folder / "first.cpio").write_bytes(archive.stdout)

    system_programs = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run([shutil.which("mke2fs", path=system_programs), "-q", "-t", "ext4", folder / "disk", DISK], check=True)

    described = find(root, "pkgconfig/liburing.pc")
    described.write_text(described.read_text().replace("/usr", str(root / "usr")))
    wrapper = [sys.executable, str(pathlib.Path(__file__).resolve()), "run", str(folder)]
    cross_file.write_text(f"[binaries]\nexe_wrapper = {wrapper}\n\n[properties]\n"
                          f"pkg_config_libdir = '{described.parent}:/usr/share/pkgconfig'\n")


def run(folder, command):
    """Returns the command's status."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="run-") as run_folder:
        path = pathlib.Path(run_folder)
        words = [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items() if name.startswith("WEIR_")]
        words += ["cd /disk", shlex.join([os.path.abspath(command[0]), *command[1:]])]
        (path / "job").write_text("\n".join(words) + "\n")
        machine = subprocess.Popen(
            ["qemu-system-aarch64", "-M", "virt", "-cpu", "neoverse-n1", "-smp", "2", "-m", MEMORY,
             "-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio",
             "-kernel", folder / "kernel", "-initrd", folder / "first.cpio",
             "-append", f"quiet loglevel=1 panic=-1 console=ttyAMA0 weir_run={path}",
             "-drive", f"file={folder / 'disk'},format=raw,if=virtio,snapshot=on",
             "-virtfs", f"local,path={REPOSITORY},mount_tag=shared,security_model=none"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for line in machine.stdout:
            sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
            sys.stdout.buffer.flush()
        machine.wait()
        status = path / "status"
        if not status.exists():
            raise RuntimeError("the machine ended before the program did")
        return int(status.read_text())


def main(arguments):
    if len(arguments) == 2 and arguments[0] == "prepare":
        prepare(pathlib.Path(arguments[1]).resolve())
        return 0
    if len(arguments) >= 3 and arguments[0] == "run":
        return run(pathlib.Path(arguments[1]).resolve(), arguments[2:])
    print(__doc__.split("\n\n")[1], file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        say(error)
        sys.exit(1)
