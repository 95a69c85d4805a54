#!/usr/bin/env python3
"""weir in somebody else's project: as a Meson subproject, and installed.

    tests/embed/run.py subproject --source DIR --meson MESON -- CXX...
    tests/embed/run.py installed --build DIR --meson MESON -- CXX...

As a subproject it must build where none of the packages are that weir's own tests, benchmarks and tools need, with
the embedder's strictest warnings. Installed, pkg-config must name all that a program needs.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent


def run(command, **options):
    command = [str(word) for word in command]
    print("+", " ".join(command), flush=True)
    return subprocess.run(command, check=True, **options)


def as_subproject(source, meson, compiler, scratch):
    project = scratch / "project"
    shutil.copytree(here / "project", project)
    weir = project / "subprojects" / "weir"
    weir.mkdir(parents=True)
    # What a checkout has and a build of weir may look at, without the wraps: nothing may be fetched.
    for name in ("meson.build", "meson_options.txt", "include", "lib"):
        (weir / name).symlink_to(source / name)
    build = scratch / "build"
    environment = dict(os.environ, CXX=" ".join(compiler))
    # No package is found, as on a machine that has none.
    environment["PKG_CONFIG_LIBDIR"] = str(scratch / "no-packages")
    for name in ("PKG_CONFIG_PATH", "CXXFLAGS", "LDFLAGS"):
        environment.pop(name, None)
    run([*meson, "setup", "--wrap-mode=nodownload", "--force-fallback-for=weir", "-Dwarning_level=3", "-Dwerror=true",
         "-Dcpp_args=-Wshadow -Wconversion -Wsign-conversion", build, project], env=environment)
    run(["ninja", "-C", build], env=environment)
    run([*meson, "test", "-C", build, "--print-errorlogs"], env=environment)


def installed(build, meson, compiler, scratch):
    root = scratch / "root"
    run([*meson, "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", root])
    descriptions = list(root.rglob("weir.pc"))
    if len(descriptions) != 1:
        sys.exit(f"one weir.pc was to be installed, not {len(descriptions)}")
    # The system's own descriptions too: weir.pc requires liburing's where weir was built with it.
    system = run(["pkg-config", "--variable", "pc_path", "pkg-config"], stdout=subprocess.PIPE, text=True).stdout.strip()
    environment = dict(os.environ, PKG_CONFIG_LIBDIR=f"{descriptions[0].parent}:{system}", PKG_CONFIG_SYSROOT_DIR=str(root))
    flags = run(["pkg-config", "--cflags", "--libs", "weir"], env=environment, stdout=subprocess.PIPE, text=True)
    program = scratch / "program"
    run([*compiler, "-std=c++20", here / "project" / "main.cpp", "-o", program, *flags.stdout.split()])
    run([program], env=dict(os.environ, LD_LIBRARY_PATH=str(descriptions[0].parent.parent)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["subproject", "installed"])
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--meson", required=True)
    parser.add_argument("compiler", nargs="+")
    arguments = parser.parse_args()
    meson = [arguments.meson]
    with tempfile.TemporaryDirectory(prefix="weir-embed-") as scratch:
        scratch = pathlib.Path(scratch)
        if arguments.way == "subproject":
            as_subproject(arguments.source.resolve(), meson, arguments.compiler, scratch)
        else:
            installed(arguments.build.resolve(), meson, arguments.compiler, scratch)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(error.cmd)}")
