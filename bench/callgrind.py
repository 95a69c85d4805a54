#!/usr/bin/env python3
"""Counts the instructions of each operation with valgrind, which does not depend on the machine's mood.

    bench/callgrind.py --build BUILDDIR [--out DIR] [--filter X]

Each operation runs under callgrind twice, a number of times and twice that number; the difference divided by the number
is the operation's own count. Writes DIR/instructions.json and a table. Without valgrind it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

COUNT = 4096


def instructions(program: Path, operation: str, count: int) -> int:
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", str(program), operation, str(count)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stdout)
    if done.returncode != 0 or not found:
        sys.exit(f"valgrind failed on {operation!r}:\n{done.stdout}")
    return int(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts the instructions of each operation with valgrind.")
    parser.add_argument("--build", type=Path, required=True, help="the build directory")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="where the report goes")
    parser.add_argument("--filter", default="", help="only operations whose name contains this regular expression")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed: no instructions were counted")
        return
    program = arguments.build / "bench" / "bench_instructions"
    names = subprocess.run([str(program), "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    counts = {}
    for name in names:
        if name == names[0] or re.search(arguments.filter, name):
            once = instructions(program, name, COUNT)
            counts[name] = (instructions(program, name, 2 * COUNT) - once) / COUNT
            # The first operation is none: what the loop itself costs.
            if name != names[0]:
                counts[name] -= counts[names[0]]
                print(f"{counts[name]:8.1f}  {name}", flush=True)
    del counts[names[0]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "instructions.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
