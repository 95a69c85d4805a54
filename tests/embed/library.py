#!/usr/bin/env python3
"""What the shared library is to who links with it.

    tests/embed/library.py exports|constructors|soname LIBRARY [--update] [-- CXX...]

exports       what it exports is what lib/exported.txt lists. --update writes that anew.
constructors  nothing of weir runs when it is loaded, but for what `at_load` names.
soname        what programs ask for when they start is the name of the versions that may replace each other.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
listed = root / "lib" / "exported.txt"

update_command = "tests/embed/library.py exports build/main/lib/libweir.so --update"
# In lib/, of templates that the headers only declare.
instantiated = tuple(f"weir::BasicRing<unsigned long>::{name}"
                     for name in ("BasicRing(", "check[", "depth(", "load_cells(", "search_item("))

heading = f"""\
# What libweir.so exports, checked by a test: what leaves this list breaks programs that were linked with it before.
# Brought up to date by: {update_command}
"""


# Sources with a constructor that runs when the library is loaded, and why that cannot wait.
at_load = {
    "process.cpp": "a fork that has begun before its handlers are there would leave a lock in the child",
}


def output_of(*command):
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def exported(library):
    """Functions and data that are defined there alone, classes with virtual functions, and what is instantiated of
    templates there. What inline functions leave there depends on the compiler, and is in each program that needs it."""
    names = set()
    for line in output_of("nm", "--dynamic", "--demangle", "--defined-only", library).splitlines():
        kind, name = line[17:].split(" ", 1)
        if kind in "TDB" and name.startswith("weir::") or name.startswith(instantiated) or name.startswith(("vtable for weir::", "typeinfo for weir::")):
            names.add(name)
    return sorted(names)


def exports(library, is_updating, _compiler):
    found = exported(library)
    if is_updating:
        listed.write_text(heading + "".join(name + "\n" for name in found), encoding="utf-8")
        return
    wanted = [line for line in listed.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for name in sorted(set(found) - set(wanted)):
        print(f"exported, and not listed: {name}")
    for name in sorted(set(wanted) - set(found)):
        print(f"listed, and not exported: {name}")
    if found != wanted:
        sys.exit(f"{library} and {listed.relative_to(root)} differ. Where that is meant to be: {update_command}")


def constructor_bytes(library):
    """The size of the table of what is to be called when it is loaded."""
    sections = output_of("readelf", "--wide", "--section-headers", library)
    found = {name: int(size, 16) for name, size in
             re.findall(r"\] (\.\S+)\s+\S+\s+[0-9a-f]{8,16} [0-9a-f]{6,} ([0-9a-f]{6,})", sections)}
    if ".text" not in found:
        sys.exit(f"no sections were found in:\n{sections}")
    return found.get(".init_array", 0) + found.get(".ctors", 0)


def constructors(library, _is_updating, compiler):
    with tempfile.TemporaryDirectory(prefix="weir-embed-") as scratch:
        scratch = pathlib.Path(scratch)
        sizes = {}
        for name, text in {"empty": "int nothing() { return 0; }\n",
                           "one": "int f(); int g() { return 0; }\nstruct S { S(); };\nS::S() { g(); }\nstatic S s;\n"}.items():
            (scratch / f"{name}.cpp").write_text(text, encoding="utf-8")
            output_of(*compiler, "-shared", "-fPIC", scratch / f"{name}.cpp", "-o", scratch / f"{name}.so")
            sizes[name] = constructor_bytes(scratch / f"{name}.so")
        if sizes["one"] <= sizes["empty"]:
            sys.exit(f"this test does not see a constructor: {sizes}")
        each = sizes["one"] - sizes["empty"]
        count = (constructor_bytes(library) - sizes["empty"]) // each
        if count != len(at_load):
            names = re.findall(r" _GLOBAL__sub_I_(\S+)", output_of("nm", library))
            sys.exit(f"{library} has {count} constructors that run when it is loaded ({', '.join(names)}), and was to have "
                     f"{len(at_load)} ({', '.join(at_load)})")


def soname(library, _is_updating, _compiler):
    version = re.search(r"^\s*version: '(\d+)\.(\d+)\.\d+',", (root / "meson.build").read_text(encoding="utf-8"), re.M)
    wanted = f"libweir.so.{version[1]}.{version[2]}" if version[1] == "0" else f"libweir.so.{version[1]}"
    found = re.search(r"\(SONAME\).*\[(.*)\]", output_of("readelf", "--dynamic", library))
    if found is None or found[1] != wanted:
        sys.exit(f"the soname is {found and found[1]}, and was to be {wanted}")


def main():
    parser = argparse.ArgumentParser()
    checks = {check.__name__: check for check in (exports, constructors, soname)}
    parser.add_argument("check", choices=checks)
    parser.add_argument("library", type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("compiler", nargs="*")
    arguments = parser.parse_args()
    checks[arguments.check](arguments.library, arguments.update, arguments.compiler)


if __name__ == "__main__":
    main()
