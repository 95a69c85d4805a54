#!/usr/bin/env python3
"""A file through `weir send` and `weir recv`, beside the same file through a pipe.

    bench/pipe.py --weir build/main/tools/weir [--bytes N] [--repetitions N] [--tiny]

Measures `weir recv x >/dev/null & weir send x FILE` and `cat FILE | cat >/dev/null` in turn, with FILE in the page cache, from
before the first process starts until the last has ended. Prints the medians, all times, and how many times as fast weir is. Before that, it
compares what comes out with the file.
"""

import argparse
import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time


def ended_well(*processes):
    statuses = [process.wait() for process in processes]
    if any(statuses):
        sys.exit(f"{[process.args for process in processes]} ended with {statuses}")


port = f"bench.{os.getpid()}"


def through_weir(weir, path, output=subprocess.DEVNULL):
    receiver = subprocess.Popen([weir, "recv", port], stdout=output)
    sender = subprocess.Popen([weir, "send", port, path])
    ended_well(receiver, sender)


def through_pipe(path):
    first = subprocess.Popen(["cat", path], stdout=subprocess.PIPE)
    second = subprocess.Popen(["cat"], stdin=first.stdout, stdout=subprocess.DEVNULL)
    first.stdout.close()
    ended_well(first, second)


def seconds_of(run):
    begin = time.monotonic()
    run()
    return time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", required=True, help="the command, built for release")
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="only see that it works")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.bytes, arguments.repetitions = 3_000_000, 2
    weir = os.path.abspath(arguments.weir)

    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        path, copy = os.path.join(folder, "file"), os.path.join(folder, "copy")
        with open(path, "wb") as file:
            for begin in range(0, arguments.bytes, 1 << 24):
                file.write(os.urandom(min(1 << 24, arguments.bytes - begin)))
        with open(copy, "wb") as output:
            through_weir(weir, path, output)
        if not filecmp.cmp(path, copy, shallow=False):
            sys.exit("what came out is not the file")
        os.unlink(copy)

        runs = {"weir": lambda: through_weir(weir, path), "cat | cat": lambda: through_pipe(path)}
        seconds = {name: [] for name in runs}
        for _ in range(arguments.repetitions):
            for name, run in runs.items():
                seconds[name].append(seconds_of(run))
    # The name is not used again: not even its lock file is to stay.
    os.unlink(f"/dev/shm/weir+{os.getuid()}+pipe.{port}+lock")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:10} {median:6.3f} s  {arguments.bytes / median / (1 << 30):6.2f} GiB/s"
              f"  ({', '.join(f'{each:.3f}' for each in sorted(measured))})")
    ratio = statistics.median(seconds["cat | cat"]) / statistics.median(seconds["weir"])
    print(f"weir is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
