#!/usr/bin/env python3
"""Checks the protocol's models with Spin, each configuration exhaustively.

    tests/model/run.py [--quick | --full] [--jobs N] [--list] [PATTERN...]

A configuration either has to hold, in every state that it can reach, or is one with a mistake in it, for which a
counterexample has to be found, and for the right reason. --quick (the default) takes about a minute on two cores;
--full adds larger sizes and takes about half an hour and up to 6 GB a job. Only configurations whose name contains a
PATTERN are run, where any is given. One line is printed for each.

Exit status: 0 all as expected; 1 a surprise, whose counterexample is printed; 2 the checks could not run.

Spin and a C compiler (CC, or else gcc or cc) are needed. Each configuration is built and run in a directory of its own
that is removed afterwards. Only Python's standard library is used; Python 3.9 is enough.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

FOLDER = pathlib.Path(__file__).resolve().parent
QUICK_MEMORY_MB = 2_900
FULL_MEMORY_MB = 6_000
QUICK_WATCHDOG_S = 600
FULL_WATCHDOG_S = 3_600


@dataclasses.dataclass(frozen=True)
class Configuration:
    model: str
    defines: str
    # A mistake: what the failed assertion or cycle must look like. Otherwise the configuration has to hold.
    found_by: str = ""
    # A configuration that holds and has fewer states than this does not look at what it is for.
    state_count_min: int = 0
    # Exact search, or states stored as hashes of 64 bits: one in some billions could be missed.
    hashed: bool = False
    # Looks for livelocks: cycles of states.
    cycles: bool = False
    full: bool = False

    @property
    def name(self) -> str:
        return " ".join([self.model, *self.defines.split(), *(["livelocks"] if self.cycles else [])])


def holds(model: str, defines: str, state_count_min: int, **more: bool) -> Configuration:
    return Configuration(model, defines, state_count_min=state_count_min, **more)


def mistake(model: str, name: str, defines: str, found_by: str, **more: bool) -> Configuration:
    return Configuration(model, f"{name} {defines}".strip(), found_by=found_by, **more)


SLEEPS_BESIDE_WORK = r"asleep"
NEEDLESS_WAKE = r"paid>0"
NOT_FIRST_OR_TWICE = r"head\[.*queued>>"
NOT_EMPTY = r"head\[.*==tail\["
NOT_FULL = r"assertion violated got "
LOST = r"pos==head\[port\]"
FREED_A_MESSAGE = r"!\(\(\(queued>>n\)&1\)\)"
CELL_NAMES_FREE_WORD = r"cell\[i\]>>6"
NOT_MINE = r"ref\[r\]=="
OF_A_LIVING = r"dead\[slot\]&&"
LIVING_REAPED = r"entry\[me\]==\(\(2\*inc\)\+1\)"
ALL_FINISH = r"step\[r\]=="
STILL_ATTACHED = r"in_force\[0\]==0"
WRONG_REASON = r"last_end"
TWO_OWNERS = r"ref\[i\]&7\)==me"
NOBODY_TOLD = r"all_free&&told"
STILL_LIVING = r"living\["

EVENT_COUNT = [
    holds("event_count", "", 300_000),
    holds("event_count", "KILLS=2 MSG=1 NN=3", 800_000, hashed=True),
    holds("event_count", "NW=3 MSG=1", 250_000),
    mistake("event_count", "NO_RELOOK", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "LATE_KEY", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "SILENT_CLEAR", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "LOAD_FIRST", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "WAKE_BEFORE_CLEAR", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "RELAXED_PUBLISH", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "RELAXED_BIT", "KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("event_count", "WAKE_ONE", "", SLEEPS_BESIDE_WORK),
    mistake("event_count", "SAME_EPOCH", "", SLEEPS_BESIDE_WORK),
    mistake("event_count", "PLAIN_STORE", "", SLEEPS_BESIDE_WORK),
    mistake("event_count", "FETCH_ADD", "KILLS=0", NEEDLESS_WAKE),
    mistake("event_count", "EPOCHS=2", "", SLEEPS_BESIDE_WORK),
    mistake("event_count", "EPOCHS=3", "MSG=3", SLEEPS_BESIDE_WORK),
    holds("event_count", "KILLS=3", 380_000, full=True),
    holds("event_count", "NW=3 MSG=2 KILLS=2", 4_500_000, hashed=True, full=True),
    holds("event_count", "NW=3 NN=3 MSG=1 KILLS=2", 11_000_000, hashed=True, full=True),
]

ONE_LIFE = "T=1 BIRTHS=0 NR=1"
MEMBERS = [
    holds("members", "T=2 KILLS=0 BIRTHS=0 NR=0", 350_000),
    holds("members", "T=2 BIRTHS=0 NR=1", 1_500_000, hashed=True),
    holds("members", "T=1 ROUNDS=2 BIRTHS=0 NR=1", 900_000, hashed=True),
    holds("members", "T=1 MSG=0", 2_500_000, hashed=True),
    mistake("members", "RING_FIRST", ONE_LIFE, r"ring==0"),
    mistake("members", "NO_SECOND_LOOK", "KILLS=0 " + ONE_LIFE, STILL_ATTACHED),
    mistake("members", "COUNT_FIRST", "KILLS=0 " + ONE_LIFE, STILL_ATTACHED),
    mistake("members", "NO_CHANGES", "KILLS=0 " + ONE_LIFE, STILL_ATTACHED),
    mistake("members", "ATTACH_STORE", "T=2 KILLS=0 BIRTHS=0 NR=0", STILL_ATTACHED),
    mistake("members", "REAPER_ERASES", "T=1", STILL_ATTACHED),
    mistake("members", "COUNT_ONLY", ONE_LIFE, SLEEPS_BESIDE_WORK),
    mistake("members", "SLOT_ONLY", "T=1", SLEEPS_BESIDE_WORK),
    mistake("members", "WAKE_FIRST", ONE_LIFE, SLEEPS_BESIDE_WORK),
    mistake("members", "NO_WAKE", ONE_LIFE, SLEEPS_BESIDE_WORK),
    mistake("members", "NO_SWEEP", ONE_LIFE, WRONG_REASON),
    mistake("members", "NO_LAST_CHANGE", ONE_LIFE, WRONG_REASON),
    mistake("members", "STICKY_FIRST", ONE_LIFE, r"had_producer"),
    holds("members", "T=1 BIRTHS=1 NR=1", 1_500_000, hashed=True, full=True),
    holds("members", "T=1", 9_000_000, hashed=True, full=True),
    holds("members", "T=1 NC=2 BIRTHS=0", 15_000_000, hashed=True, full=True),
    holds("members", "T=1 KILLS=2", 30_000_000, hashed=True, full=True),
    holds("members", "T=2 ROUNDS=2 KILLS=0 BIRTHS=0 NR=0", 23_000_000, hashed=True, full=True),
    holds("members", "T=2 NR=1", 75_000_000, hashed=True, full=True),
]

TWO_CONSUMERS = "NC=2"
REUSED_SLOTS = "KILLS=2 BIRTHS=2 NR=2"
ONE_CELL = "N=1 KILLS=0 NR=0 FWD=2 POPS=3"
ROOM_WAITED_FOR = "WAITS=1 N=1 MSG=1"
QUEUE = [
    holds("queue", TWO_CONSUMERS, 170_000),
    holds("queue", "NP=2 MSG=1 GB=1", 60_000),
    holds("queue", "NP=2 NC=2 MSG=1", 1_700_000, hashed=True),
    holds("queue", "STALE=1 KILLS=2 MSG=3 POPS=3", 30_000),
    holds("queue", "NP=2 N=1 KILLS=0 NR=0 FWD=2 POPS=3", 1_500_000, hashed=True),
    holds("queue", "K=2 NB=1 NP=2 MSG=1", 90_000),
    holds("queue", "K=2 FWD=1", 600_000),
    holds("queue", "K=3 NB=1 NC=2", 1_200_000, hashed=True),
    holds("queue", "PORTS=2 NX=1 FWD=2", 350_000),
    holds("queue", "OLDEST=1 N=1 NB=3 MSG=3", 10_000),
    holds("queue", REUSED_SLOTS + " INCS=1", 3_500_000, hashed=True),
    holds("queue", "NC=2 NR=0 KILLS=2", 35_000),
    holds("queue", "NC=2 NR=0", 60_000, cycles=True),
    holds("queue", "N=1 NC=2 MSG=1 OLDEST=1 FWD=1", 190_000, cycles=True),
    holds("queue", ROOM_WAITED_FOR + " NP=2 LOOKS=1", 300_000),
    holds("queue", ROOM_WAITED_FOR + " NP=1 NC=1 NX=1 PORTS=2 FWD=2", 70_000),
    mistake("queue", "CLAIM_AFTER_CLEAR", TWO_CONSUMERS, LOST),
    mistake("queue", "HAND_OUT_FIRST", TWO_CONSUMERS, CELL_NAMES_FREE_WORD),
    mistake("queue", "HAND_OUT_FIRST", TWO_CONSUMERS + " NOINV", LOST),
    mistake("queue", "POP_NO_REREAD", TWO_CONSUMERS, NOT_FIRST_OR_TWICE),
    mistake("queue", "WAIT_FOR_CLAIMER", TWO_CONSUMERS + " NR=0", ALL_FINISH),
    mistake("queue", "HELP_NO_REREAD", ONE_CELL, NOT_FULL),
    mistake("queue", "NO_HELP", ONE_CELL, NOT_FULL),
    mistake("queue", "JUMP_A_LAP", TWO_CONSUMERS, NOT_EMPTY),
    mistake("queue", "NO_A", TWO_CONSUMERS, FREED_A_MESSAGE),
    mistake("queue", "B_BEFORE_A", TWO_CONSUMERS, FREED_A_MESSAGE),
    mistake("queue", "A_NO_CLEAR", TWO_CONSUMERS, CELL_NAMES_FREE_WORD),
    mistake("queue", "A_NO_CLEAR", TWO_CONSUMERS + " NOINV", LOST),
    mistake("queue", "B_STORE", REUSED_SLOTS, NOT_MINE),
    mistake("queue", "NO_ENTRY_REREAD", REUSED_SLOTS + " INCS=1", OF_A_LIVING),
    mistake("queue", "C_STORE", REUSED_SLOTS, LIVING_REAPED),
    mistake("queue", "NOTIFY_IF_CLEARED", "WAITS=1 N=1 NC=2 POPS=1 KILLS=0 NR=0 LOOKS=1", SLEEPS_BESIDE_WORK),
    mistake("queue", "NOTIFY_IF_CLEARED", ROOM_WAITED_FOR + " NB=3 NP=3 NR=0 POPS=1", SLEEPS_BESIDE_WORK),
    mistake("queue", "NO_RELOOK", ROOM_WAITED_FOR + " NP=2 KILLS=0", SLEEPS_BESIDE_WORK),
    mistake("queue", "NO_P8", ROOM_WAITED_FOR + " NP=2 KILLS=0", SLEEPS_BESIDE_WORK),
    # A position that may go back at any time lets an operation go in circles: the search for livelocks finds it.
    mistake("queue", "STALE=1", "N=1", r"non-progress cycle", cycles=True),
    # A3 is not needed for a reaper, as it turned out: its second look costs nothing and keeps all readers alike.
    holds("queue", "A_NO_REREAD NC=2 N=1 FWD=1", 2_000_000, hashed=True, full=True),
    holds("queue", "A_NO_REREAD INCS=1 FWD=1 " + REUSED_SLOTS, 11_000_000, hashed=True, full=True),
    holds("queue", "NP=2 NC=2 KILLS=2 MSG=1", 2_000_000, hashed=True, full=True),
    holds("queue", "NP=2 N=1 OLDEST=1", 9_000_000, hashed=True, full=True),
    holds("queue", "K=2 NB=1 NC=2 FWD=1", 14_000_000, hashed=True, full=True),
    holds("queue", "K=3 NP=2 MSG=1", 5_000_000, hashed=True, full=True),
    holds("queue", ROOM_WAITED_FOR + " NP=2 NC=2 KILLS=0 NR=0 LOOKS=1", 5_000_000, hashed=True, full=True),
    holds("queue", ROOM_WAITED_FOR + " NB=3 NP=3 NR=0 POPS=1", 6_000_000, hashed=True, full=True),
]

ALLOC = [
    holds("alloc", "K=2 NH=2 OPS=2 KILLS=1", 400_000),
    holds("alloc", "K=3", 200_000),
    holds("alloc", "K=4 OPS=4", 200_000),
    holds("alloc", "K=3 OPS=3 KILLS=1", 400_000),
    mistake("alloc", "SINGLE_SCAN", "K=3", TWO_OWNERS),
    mistake("alloc", "SINGLE_SCAN", "K=4", TWO_OWNERS),
    mistake("alloc", "STATE_ONLY", "K=3", TWO_OWNERS),
    mistake("alloc", "SILENT_RETURN", "K=2", NOBODY_TOLD),
    mistake("alloc", "RELAXED_DROP", "K=2 NH=2 NA=1 OPS=1", NOBODY_TOLD),
    holds("alloc", "K=4 KILLS=1", 2_000_000, hashed=True, full=True),
]

SLOTS = [
    holds("slots", "", 4_000),
    holds("slots", "NP=4", 20_000),
    mistake("slots", "LOCK_FIRST", "", STILL_LIVING),
    mistake("slots", "C_STORE", "", r"entry==\(e\+1\)"),
    mistake("slots", "ENTRY_FIRST", "", STILL_LIVING),
    mistake("slots", "UNLOCK_FIRST", "", STILL_LIVING),
    mistake("slots", "JOIN_OVER", "", STILL_LIVING),
    holds("slots", "NP=4 NR=3", 100_000, full=True),
]

DIRECTORY = [
    holds("directory", "", 20_000),
    holds("directory", "NAMES=2", 20_000),
    mistake("directory", "PUBLISH_FIRST", "", r"segment"),
    mistake("directory", "SKIP_WINNER", "", r"NAME|directory"),
    mistake("directory", "LIST_FIRST", "", r"segment"),
    mistake("directory", "END_FIRST", "", r"segment"),
    mistake("directory", "STORE_ENTRY", "", r"segment|directory"),
    holds("directory", "NR=3", 5_000, full=True),
]

CONFIGURATIONS = EVENT_COUNT + MEMBERS + QUEUE + ALLOC + SLOTS + DIRECTORY

# What pan says when it has not looked at everything.
INCOMPLETE = re.compile(r"max search depth too small|out of memory|MEMLIM|Search not completed|VECTORSZ", re.IGNORECASE)


class Children:
    """The processes that run now, so that an interrupted run leaves none behind."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def run(self, command: list[str], folder: str, timeout_s: float) -> tuple[int, str]:
        with self.lock:
            if self.stopped:
                return -1, "interrupted"
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.running.add(child)
        try:
            output, _ = child.communicate(timeout=timeout_s)
            return child.returncode, output
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
            return -1, f"{output}\nthe watchdog stopped it after {timeout_s:.0f} s"
        finally:
            with self.lock:
                self.running.discard(child)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.kill()


@dataclasses.dataclass(frozen=True)
class Outcome:
    configuration: Configuration
    surprise: str  # empty: as expected
    state_count: int
    seconds: float
    details: str = ""


def check(configuration: Configuration, compiler: list[str], children: Children) -> Outcome:
    started = time.monotonic()
    watchdog_s = FULL_WATCHDOG_S if configuration.full else QUICK_WATCHDOG_S
    memory_mb = FULL_MEMORY_MB if configuration.full else QUICK_MEMORY_MB
    defines = ["-D" + define for define in configuration.defines.split()]

    def outcome(surprise: str, state_count: int = 0, details: str = "") -> Outcome:
        return Outcome(configuration, surprise, state_count, time.monotonic() - started, details)

    with tempfile.TemporaryDirectory(prefix="weir-model-") as folder:
        model = configuration.model + ".pml"
        shutil.copy(FOLDER / model, folder)
        status, text = children.run(["spin", *defines, "-a", model], folder, watchdog_s)
        if status != 0 or not os.path.exists(os.path.join(folder, "pan.c")):
            return outcome("spin does not accept it", details=text)
        # Compiling with optimization takes longer than it saves where a mistake is soon found.
        large = configuration.state_count_min >= 1_000_000
        options = ["-w", "-O0" if configuration.found_by else "-O2" if large else "-O1"]
        options.append("-DNP" if configuration.cycles else "-DSAFETY")
        options.append("-DHC4" if configuration.hashed else "-DCOLLAPSE")
        options.append(f"-DMEMLIM={memory_mb}")
        status, text = children.run([*compiler, *options, "-o", "pan", "pan.c"], folder, watchdog_s)
        if status != 0:
            return outcome("the C compiler does not accept what Spin made", details=text)
        hash_bits = 20 if configuration.found_by else 24 if not configuration.full else 26
        arguments = ["-m1000000", f"-w{hash_bits}", *(["-l"] if configuration.cycles else [])]
        status, text = children.run(["./pan", *arguments], folder, watchdog_s)

        states = re.search(r"^\s*(\d+) states, stored", text, re.MULTILINE)
        errors = re.search(r"errors: (\d+)", text)
        state_count = int(states.group(1)) if states else 0
        trail = os.path.exists(os.path.join(folder, model + ".trail"))
        if status != 0 or states is None or errors is None:
            return outcome("the search broke off", state_count, text)
        # A search that found a counterexample stops there; it says "not completed", and that is all right.
        if configuration.found_by and int(errors.group(1)) > 0 and trail:
            reason = re.search(r"^pan:1: (.*)$", text, re.MULTILINE)
            if reason and re.search(configuration.found_by, reason.group(1)):
                return outcome("", state_count)
            return outcome("found, but not by the check that should find it", state_count, text)
        if configuration.found_by:
            return outcome("NOT FOUND", state_count, text)
        if int(errors.group(1)) > 0 or trail:
            _, steps = children.run(["spin", *defines, "-t", "-p", "-g", "-l", model], folder, watchdog_s)
            return outcome("COUNTEREXAMPLE", state_count, steps + text)
        if INCOMPLETE.search(text):
            return outcome("the search is not complete", state_count, text)
        if state_count < configuration.state_count_min:
            return outcome(f"fewer states than {configuration.state_count_min}", state_count, text)
        return outcome("", state_count)


def find_compiler() -> list[str]:
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("gcc", "cc", "clang"):
        if shutil.which(name):
            return [name]
    return []


def interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about a minute (the default)")
    size.add_argument("--full", action="store_true", help="all configurations")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at a time")
    parser.add_argument("--list", action="store_true", help="name the configurations, run nothing")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    arguments = parser.parse_args()

    chosen = [
        configuration
        for configuration in CONFIGURATIONS
        if (arguments.full or not configuration.full)
        and (not arguments.patterns or any(pattern in configuration.name for pattern in arguments.patterns))
    ]
    if arguments.list:
        for configuration in chosen:
            print(f"{'to be found' if configuration.found_by else 'must hold':12} {configuration.name}")
        return 0
    if not chosen:
        print("no configuration has such a name; --list names them", file=sys.stderr)
        return 2
    compiler = find_compiler()
    if shutil.which("spin") is None:
        print("spin is missing: install the package spin (apt-get install spin), or see spinroot.com", file=sys.stderr)
        return 2
    if not compiler or shutil.which(compiler[0]) is None:
        print("a C compiler is missing: install gcc (apt-get install gcc), or set CC", file=sys.stderr)
        return 2

    # A watchdog's signal ends the run as an interrupt does: nothing is left running, no directory left behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)

    # The longest first, so that the end is not one of them alone.
    chosen.sort(key=lambda configuration: -configuration.state_count_min)
    surprises = []
    children = Children()
    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        futures = [pool.submit(check, configuration, compiler, children) for configuration in chosen]
        try:
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                verdict = outcome.surprise or ("found" if outcome.configuration.found_by else "holds")
                print(
                    f"{'ok' if not outcome.surprise else 'FAILED':6} {outcome.seconds:6.1f} s "
                    f"{outcome.state_count:>11,} states  {outcome.configuration.name}: {verdict}",
                    flush=True,
                )
                if outcome.surprise:
                    surprises.append(outcome)
        except BaseException:
            children.stop()
            for future in futures:
                future.cancel()
            raise
    for outcome in surprises:
        print(f"\n#### {outcome.configuration.name}: {outcome.surprise}\n{outcome.details[-20_000:]}")
    print(f"{len(chosen) - len(surprises)} as expected, {len(surprises)} surprises")
    return 1 if surprises else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(2)
