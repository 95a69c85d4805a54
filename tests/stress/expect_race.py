#!/usr/bin/env python3
"""Runs a program in which ThreadSanitizer must find a data race.

    expect_race.py PROGRAM [ARGUMENT...]

Exit status 0: it was reported. 1: the program ended without a report, or by something else.
"""

import os
import pathlib
import subprocess
import sys


def main() -> int:
    environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1:exitcode=66")
    run = subprocess.Popen(sys.argv[1:], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, errors="replace")
    said = run.communicate()[0]
    # It ends in the middle, and leaves the domain of its own that it may have.
    for path in pathlib.Path("/dev/shm").glob(f"weir+{os.geteuid()}+test.{run.pid}.*"):
        path.unlink()
    if run.returncode != 0 and "WARNING: ThreadSanitizer: data race" in said:
        for line in said.splitlines():
            if line.startswith("SUMMARY"):
                print("found: " + line)
        return 0
    print(said)
    print(f"no data race was reported; exit status {run.returncode}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
