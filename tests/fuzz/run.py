#!/usr/bin/env python3
"""Runs fuzz targets that were built with libFuzzer, and says how far they came.

    run.py --programs FOLDER (--seconds N | --runs N) [--keep FOLDER] [TARGET...]

Begins with the corpus in the repository. What is found beyond it goes to --keep, where the next run goes on, or is thrown
away. An input that crashes, hangs or leaks is kept beside the programs, and named; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

HERE = Path(__file__).resolve().parent
INPUT_BYTES_MAX = 160  # a program of some 50 steps
HANG_S = 10


def last_number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def fuzz(target: str, programs: Path, limits: List[str], found: Path) -> bool:
    """Fuzzes one target, and prints its line. False: it failed."""
    found.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    # Stacks of allocations take longer than the allocations. (Ask for them to look at what was found.)
    environment.setdefault("ASAN_OPTIONS", "malloc_context_size=1:quarantine_size_mb=16")
    command = [
        str(programs / f"fuzz_{target}"),
        str(found),
        str(HERE / "corpus" / target),
        *limits,
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={HANG_S}",
        "-print_final_stats=1",
        f"-artifact_prefix={programs}/{target}-",
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        sys.stdout.write(said[-20_000:])
        print(f"{target}: failed; replay with {programs}/fuzz_{target} and the file that is named above")
        return False
    executions = last_number(r"number_of_executed_units: (\d+)", said)
    rate = last_number(r"average_exec_per_sec: +(\d+)", said)
    covered = last_number(r"cov: (\d+)", said)
    edges = last_number(r"\((\d+) inline 8-bit counters\)", said)
    print(f"{target:10} {executions:>12,} executions, {rate:>7,}/s, {covered:>6,} of {edges:,} edges", flush=True)
    return executions > 0 and covered > 0


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("targets", nargs="*")
    given = parser.parse_args(arguments)
    if (given.seconds is None) == (given.runs is None):
        parser.error("give --seconds or --runs")
    limits = [f"-max_total_time={given.seconds}" if given.runs is None else f"-runs={given.runs}"]
    known = sorted(program.name[len("fuzz_"):] for program in given.programs.glob("fuzz_*") if program.is_file())
    unknown = [target for target in given.targets if target not in known]
    if unknown or not known:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(known)}")
    is_fine = True
    for target in given.targets or known:
        with tempfile.TemporaryDirectory() as scratch:
            found = given.keep / target if given.keep else Path(scratch)
            is_fine = fuzz(target, given.programs, limits, found) and is_fine
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
