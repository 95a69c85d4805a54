#!/usr/bin/env python3
"""What it costs a pipeline to be watched: its throughput with `weir top` on a terminal beside it, and without.

    bench/top_watching.py [--build build/release] [--repetitions N] [--seconds S] [--tiny]

A domain of 32 processes and 64 ports, of which one pair streams as fast as it can while the others sleep in pop()
(top_load.cpp). Each repetition measures three stretches: without, with, without. Its ratio is the middle one's
throughput over the mean of the others; the second stretch without over the first tells how much the machine alone
changes it. The bar: the median of the ratios is at least 0.99.

Where other programs want the processors too, that is mostly noise. So two more figures are made, which hardly depend on
them: the same ratio of the messages for each second of processor time that the pair got, which tells whether watching
makes the pair slower; and the processor time that top takes for a look, which it takes away from somebody.

Exit status: 0 when it was measured, also where the bar does not hold; 1 when something failed. Only the standard library
is used.
"""

import argparse
import fcntl
import os
import pathlib
import pty
import resource
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time

PROCESSES, PORTS, STREAMS = 32, 64, 1
BAR = 0.99


class Load:
    """The domain at work."""

    def __init__(self, program):
        self.domain = f"top-watching.{os.getpid()}"
        self.process = subprocess.Popen([program, self.domain, str(PROCESSES), str(PORTS), str(STREAMS)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        words = self.process.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise RuntimeError("the load did not start")
        self.pair = words[1:3]

    def count(self):
        """Messages so far, the time, and the processor time of the pair, in ns."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        messages, now_ns = map(int, self.process.stdout.readline().split())
        used_ns = sum(int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.pair)
        return messages, now_ns, used_ns

    def throughput(self, seconds):
        """Messages in a second, and in a second of processor time."""
        before = self.count()
        messages = 0
        while messages == 0:  # where others take the processors, that can last
            time.sleep(seconds)
            messages, elapsed_ns, used_ns = (after - earlier for after, earlier in zip(self.count(), before))
        return messages * 1e9 / elapsed_ns, messages * 1e9 / used_ns

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Top:
    """weir top on a terminal of its own, of which all is read."""

    def __init__(self, weir, domain):
        self.terminal, other_end = pty.openpty()
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen([weir, "top", domain], stdin=other_end, stdout=other_end,
                                        env=dict(os.environ, TERM="xterm"))
        os.close(other_end)
        self.shown = b""
        self.is_there = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def __enter__(self):
        if not self.is_there.wait(30):
            self.process.kill()
            raise RuntimeError(f"weir top shows no port within 30 s, but {self.shown!r}")

    def __exit__(self, *error):
        os.write(self.terminal, b"q")
        try:
            status = self.process.wait(30)
        finally:
            self.process.kill()  # so that the reader ends, whatever happened
            self.reader.join()
            os.close(self.terminal)
        if status != 0:
            raise RuntimeError(f"weir top ended with {status}")

    def read(self):
        while True:
            try:
                more = os.read(self.terminal, 65536)
            except OSError:
                more = b""
            if not more:
                return
            self.shown += more
            if b"port-" in self.shown:  # which ones, and in which order, is as they were created
                self.is_there.set()


def look_ms(weir, domain, looks):
    """The processor time of a look, without what starting it takes."""
    def used(count):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([weir, "top", domain, "--batch", "-n", str(count), "-i", "0.1"], stdout=subprocess.DEVNULL,
                       check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (used(1 + looks) - used(1)) * 1000 / looks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--build", default="build/release", help="a build folder; a release build for figures")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5, help="for each stretch")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    arguments = parser.parse_args()
    build = pathlib.Path(arguments.build)
    weir, load_program = str(build / "tools/weir"), str(build / "tests/top_load")
    repetitions, seconds, looks = (1, 0.2, 3) if arguments.tiny else (arguments.repetitions, arguments.seconds, 100)

    ratios = {"throughput": [], "messages for its processor time": []}
    controls = {name: [] for name in ratios}
    load = Load(load_program)
    try:
        load.throughput(seconds)  # to get warm
        for number in range(repetitions):
            before = load.throughput(seconds)
            with Top(weir, load.domain):
                watched = load.throughput(seconds)
            after = load.throughput(seconds)
            for place, name in enumerate(ratios):
                ratios[name].append(watched[place] / ((before[place] + after[place]) / 2))
                controls[name].append(after[place] / before[place])
            print(f"{number + 1:3}: {before[0] / 1e6:.3f}, watched {watched[0] / 1e6:.3f}, {after[0] / 1e6:.3f} million "
                  f"messages/s; ratios " + ", ".join(f"{ratios[name][-1]:.4f}" for name in ratios), flush=True)
        look = look_ms(weir, load.domain, looks)
    finally:
        load.end()

    described = lambda values: f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"
    print(f"{PROCESSES} processes, {PORTS} ports, watched once a second; medians of {repetitions}:")
    for name in ratios:
        print(f"  {name}, watched / not: {described(ratios[name])}; not watched, later / before: "
              f"{described(controls[name])}")
    holds = statistics.median(ratios["throughput"]) >= BAR
    print(f"  the bar of {BAR} for the throughput {'holds' if holds else 'does not hold'}\n"
          f"  processor time of a look: {look:.2f} ms, which is {look / 10:.3f} % of one processor")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"top_watching.py: {error}", file=sys.stderr)
        sys.exit(1)
