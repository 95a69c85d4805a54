#!/usr/bin/env python3
"""weir in somebody else's project: as a Meson subproject, and installed.

    tests/embed/run.py subproject|embedded-static --source DIR --meson MESON -- CXX...
    tests/embed/run.py installed --build DIR [--with-tool] --meson MESON [--cmake CMAKE] -- CXX...
    tests/embed/run.py installed-static --source DIR --meson MESON [--cmake CMAKE] -- CXX...

The projects are folders beside this script; each gets the two programs in programs/, which talk to each other through a
domain. As a subproject weir must build where none of the packages are that its own tests, benchmarks and tools need,
with the embedder's flags, and bring nothing along but the library. Installed, wherever that is moved to, pkg-config and
CMake must name all that a program needs.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent

gnu_warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Wold-style-cast",
                "-Wnon-virtual-dtor", "-Woverloaded-virtual", "-Wcast-qual", "-Wformat=2", "-Werror"]


def run(command, **options):
    command = [str(word) for word in command]
    print("+", " ".join(command), flush=True)
    return subprocess.run(command, check=True, **options)


def expect(found, wanted, what):
    if found != wanted:
        sys.exit(f"{what}:\n  there is     {found}\n  there was to be {wanted}")


def works(compiler, *options):
    """Whether this compiler, and what it needs to link, knows these options."""
    return subprocess.run([*compiler, "-Werror", *options, "-x", "c++", "-", "-o", "/dev/null"], input="int main() {}\n",
                          stderr=subprocess.DEVNULL, text=True, check=False).returncode == 0


def environment_for(compiler, **more):
    environment = dict(os.environ, CXX=" ".join(compiler), **{name: str(value) for name, value in more.items()})
    for name in ("PKG_CONFIG_PATH", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "DESTDIR"):
        if name not in more:
            environment.pop(name, None)
    return environment


def project_with_programs(name, scratch):
    project = scratch / name
    shutil.copytree(here / name, project)
    for source in (here / "programs").iterdir():
        shutil.copy(source, project)
    return project


def run_programs(folder, **environment):
    """Starts both, the consumer first, and has them end as they should."""
    domain = f"embed.{os.getpid()}"
    environment = dict(os.environ, **{name: str(value) for name, value in environment.items()})
    processes = []
    try:
        for name in ("consumer", "producer"):
            print("+", folder / name, domain, flush=True)
            processes.append(subprocess.Popen([folder / name, domain], env=environment, stdout=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=60)[0] for process in processes]
        expect([process.returncode for process in processes], [0, 0], "the programs' exit statuses")
        expect(said, ["the sum is 500500\n", "sent 1000 numbers\n"], "what the programs said")
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for path in pathlib.Path("/dev/shm").glob(f"weir+{os.geteuid()}+{domain}+*"):
            path.unlink()


def installed_files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def library_names():
    """The shared library's names, as its version in meson.build says."""
    text = (here.parent.parent / "meson.build").read_text(encoding="utf-8")
    version = text.split("version: '", 1)[1].split("'", 1)[0]
    major, minor, _ = version.split(".")
    return ["libweir.so", f"libweir.so.{major}.{minor}" if major == "0" else f"libweir.so.{major}", f"libweir.so.{version}"]


# ---- As a subproject ----------------------------------------------------------------------------------------


def embed(arguments, compiler, scratch, options):
    project = project_with_programs("meson", scratch)
    weir = project / "subprojects" / "weir"
    weir.mkdir()
    # What a checkout has and a build of weir may look at, without the wraps: nothing may be fetched.
    for name in ("meson.build", "meson_options.txt", "include", "lib"):
        (weir / name).symlink_to(arguments.source.resolve() / name)
    build = scratch / "build"
    # No package is found, as on a machine that has none.
    environment = environment_for(compiler, PKG_CONFIG_LIBDIR=scratch / "no-packages")
    run([arguments.meson, "setup", "--wrap-mode=nodownload", "--force-fallback-for=weir", "--prefix=/usr", "--libdir=lib",
         *options, build, project], env=environment)
    run(["ninja", "-C", build], env=environment)
    run_programs(build)
    root = scratch / "root"
    run([arguments.meson, "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", root], env=environment)
    return installed_files(root / "usr")


def as_subproject(arguments, compiler, scratch):
    warnings = gnu_warnings + (["-Wuseless-cast"] if works(compiler, "-Wuseless-cast") else [])
    # -O0, because it is what is compiled, and not how well, that is looked at here.
    files = embed(arguments, compiler, scratch, [
        "-Doptimization=0", "-Dwarning_level=3", "-Dwerror=true", "-Dauto_features=enabled",
        "-Dweir:io_uring=disabled", "-Dcpp_args=" + " ".join(warnings)])
    expect(files, ["bin/consumer", "bin/producer", *(f"lib/{name}" for name in library_names())],
           "what a project that embeds weir installs")


def embedded_static(arguments, compiler, scratch):
    # clang needs a plugin of the linker for it, which is a package of its own.
    with_lto = works(compiler, "-flto")
    files = embed(arguments, compiler, scratch, [
        "-Doptimization=1", "-Ddefault_library=static", f"-Db_lto={'true' if with_lto else 'false'}",
        "-Dcpp_args=-fno-rtti"])
    expect(files, ["bin/consumer", "bin/producer"], "what a project that embeds weir installs")


# ---- Installed ----------------------------------------------------------------------------------------------


def where_installed(root):
    """The prefix, and the folder of libraries in it."""
    [header] = root.rglob("include/weir/weir.hpp")
    [description] = root.rglob("weir.pc")
    prefix = header.parents[2]
    return prefix, description.parents[1].relative_to(prefix)


def use_pkg_config(root, compiler, scratch, *options):
    prefix, libdir = where_installed(root)
    # The system's own descriptions too: weir.pc requires liburing's where weir was built with it.
    system = run(["pkg-config", "--variable", "pc_path", "pkg-config"], stdout=subprocess.PIPE, text=True).stdout.strip()
    environment = environment_for(compiler, PKG_CONFIG_LIBDIR=f"{prefix / libdir}/pkgconfig:{system}",
                                  PKG_CONFIG_SYSROOT_DIR=root, CXXFLAGS=" ".join(gnu_warnings + ["-std=c++2b"]))
    project = project_with_programs("pkg-config", scratch)
    run(["./build", *options], cwd=project, env=environment)
    run_programs(project, LD_LIBRARY_PATH=prefix / libdir)


def use_cmake(root, compiler, scratch, cmake):
    if cmake is None:
        print("CMake is not here: left out")
        return
    # Somewhere else than where it was installed, with all that is beside it.
    prefix, libdir = where_installed(root)
    moved = scratch / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    project = project_with_programs("cmake", scratch)
    build = scratch / "cmake-build"
    environment = environment_for(compiler[:1])
    folder = f"-Dweir_DIR={moved / libdir / 'cmake' / 'weir'}"
    run([cmake, "-G", "Ninja", "-S", project, "-B", build, folder,
         f"-DCMAKE_CXX_FLAGS={' '.join(compiler[1:] + gnu_warnings)}"], env=environment)
    run([cmake, "--build", build], env=environment)
    run_programs(build)
    # Another minor version is another interface, and a later one is not there.
    for version, is_there in {"0.1": True, "0.1.0": True, "0.1.99": False, "0.0": False, "0.2": False, "1": False}.items():
        asking = scratch / f"version-{version}"
        asking.mkdir()
        (asking / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.16)\nproject(asking LANGUAGES CXX)\n"
            f"find_package(weir {version} QUIET)\nmessage(STATUS \"found: ${{weir_FOUND}}\")\n", encoding="utf-8")
        said = run([cmake, "-G", "Ninja", "-S", asking, "-B", asking / "build", folder], env=environment,
                   stdout=subprocess.PIPE, text=True).stdout
        expect("found: 1" in said, is_there, f"whether version {version} is there")


def installed(arguments, compiler, scratch):
    root = scratch / "root"
    run([arguments.meson, "install", "-C", arguments.build, "--no-rebuild", "--quiet", "--destdir", root])
    prefix, libdir = where_installed(root)
    sources = here.parent.parent
    wanted = [f"include/weir/{header.name}" for header in (sources / "include" / "weir").iterdir()]
    wanted += [f"{libdir}/{name}" for name in library_names()]
    wanted += [f"{libdir}/pkgconfig/weir.pc", f"{libdir}/cmake/weir/weirConfig.cmake",
               f"{libdir}/cmake/weir/weirConfigVersion.cmake"]
    if arguments.with_tool:
        wanted += ["bin/weir", "share/man/man1/weir.1", "share/bash-completion/completions/weir",
                   "share/zsh/site-functions/_weir"]
    expect(installed_files(prefix), sorted(wanted), "what is installed")
    use_pkg_config(root, compiler, scratch)
    use_cmake(root, compiler, scratch, arguments.cmake)


def installed_static(arguments, compiler, scratch):
    build = scratch / "build"
    root = scratch / "root"
    run([arguments.meson, "setup", "-Ddefault_library=static", "-Doptimization=0", "-Dtests=disabled",
         "-Dbenchmarks=disabled", "-Dtools=disabled", "-Dexamples=disabled", "--wrap-mode=nodownload", build,
         arguments.source], env=environment_for(compiler))
    run([arguments.meson, "install", "-C", build, "--quiet", "--destdir", root])
    use_pkg_config(root, compiler, scratch, "--static")
    use_cmake(root, compiler, scratch, arguments.cmake)


def main():
    parser = argparse.ArgumentParser()
    ways = {"subproject": as_subproject, "embedded-static": embedded_static,
            "installed": installed, "installed-static": installed_static}
    parser.add_argument("way", choices=ways)
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--with-tool", action="store_true")
    parser.add_argument("--meson", required=True)
    parser.add_argument("--cmake")
    parser.add_argument("compiler", nargs="+")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weir-embed-") as scratch:
        ways[arguments.way](arguments, arguments.compiler, pathlib.Path(scratch))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(error.cmd)}")
