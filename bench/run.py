#!/usr/bin/env python3
"""Runs the benchmarks and says which bars hold.

    bench/run.py --build BUILDDIR [--quick | --tiny] [--filter X] [--out DIR] [--cpus 0,1] [--repetitions N]
    bench/run.py --compare A B [--demand-noise] [--filter X] [--out DIR] [--cpus 0,1] [--repetitions N]
    bench/run.py --write-docs bench-report/report.json

The benchmarks of a build directory are run in rounds, so that the repetitions of each are spread over the whole run.
A repetition during which the bare cache-line ping-pong changed by more than a fifth is dropped, as are those of another
placement of the processors than most (samples.py), and both are made up for in further rounds, up to a limit. Each bar is
the median over the repetitions that were kept, of a ratio that is formed inside each (rows.py).

DIR (bench-report) gets report.json

    {"machine": {...}, "placements": [...], "bars": [{"name", "value", "bar", "holds", "samples", ...}],
     "figures": [...], "tails": [...], "raw": {...}}

report.md with the same as tables, and plots (report.py, plots.py). `--write-docs` puts the tables into
docs/performance.md, between its markers.

`--compare` runs the benchmarks of two builds in turn, A B B A, and tells a change from noise (compare.py). A and B are
build folders, or git revisions, which it builds first; DIR gets compare.json and compare.md.

Exit status: 0 when all was measured, also where a bar does not hold or a figure has changed; 1 when a benchmark failed,
verified something wrong or left no repetition to count; 2 when nothing could be run. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import compare
import peers
import report
import samples
from rows import Counters
from samples import Placement, Repetitions

PROGRAMS = ("ring", "port", "latency", "size", "processes", "recover", "allocate", "reap", "domain", "scheduler", "sleep",
            "copy", "limits")
# These write their distributions, when told to.
WITH_HISTOGRAMS = ("latency",)


class Failed(Exception):
    """A benchmark did not run, or verified something wrong."""


def run_program(program: Path, pattern: str, repetitions: int, tiny: bool) -> List[Tuple[str, Dict[str, Any]]]:
    """Runs the benchmarks of one program that match, and returns the name of each repetition and what it measured."""
    command = [str(program), f"--benchmark_filter={pattern}", f"--benchmark_repetitions={repetitions}",
               "--benchmark_format=json"]
    if tiny:
        command.append("--tiny")
    if program.name in (f"bench_{name}" for name in WITH_HISTOGRAMS):
        command.append("--histograms")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=3600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{program.name}: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{program.name} --benchmark_filter={pattern}: exit status {done.returncode}")
    try:
        benchmarks = json.loads(done.stdout)["benchmarks"]
    except (ValueError, KeyError) as error:
        raise Failed(f"{program.name}: its output is no report of Google Benchmark: {error}") from error
    repeated = []
    for run in benchmarks:
        if run.get("error_occurred"):
            raise Failed(f"{run['name']}: {run.get('error_message')}")
        if run.get("run_type", "iteration") == "iteration":
            counters: Counters = {name: value for name, value in run.items() if isinstance(value, (int, float))
                                  and (name.endswith("_ns") or name.endswith("_count"))}
            measured: Dict[str, Any] = {"counters": counters}
            if run.get("label"):
                measured["histograms"] = samples.parse_histograms(run["label"])
            repeated.append((plain_name(run["name"]), measured))
    return repeated


def plain_name(name: str) -> str:
    """Google Benchmark appends how it was run."""
    return re.sub(r"/(iterations:\d+|repeats:\d+|manual_time)", "", name)


def list_benchmarks(program: Path) -> List[str]:
    try:
        done = subprocess.run([str(program), "--benchmark_list_tests"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(f"{program}: {error}") from error
    return [plain_name(line) for line in done.stdout.splitlines() if line]


def find_benchmarks(build: Path, wanted: Callable[[str], bool], all_programs: bool) -> Dict[str, Path]:
    """The program of each benchmark; an earlier revision need not have all programs."""
    programs = [build / "bench" / f"bench_{name}" for name in PROGRAMS]
    if (build / "bench" / "peers" / "bench_peers").exists():
        programs.append(build / "bench" / "peers" / "bench_peers")
    return {benchmark: program for program in programs if all_programs or program.exists()
            for benchmark in list_benchmarks(program) if wanted(benchmark)}


def wanted_count(benchmark: str, repetitions: int) -> int:
    return 1 if peers.runs_once(benchmark) else repetitions


def measure(builds: Sequence[Dict[str, Path]], sides: Sequence[Optional[str]], tiny: bool, repetitions: int,
            rounds_max: int) -> Tuple[Repetitions, List[Placement]]:
    """All repetitions of each benchmark that all builds have, marked. Of several builds, each has the turn first in every
    other round, and of each, `repetitions` are wanted."""
    raw: Repetitions = {benchmark: [] for benchmark in builds[0] if all(benchmark in build for build in builds)}
    placements: List[Placement] = []

    def missing_count(benchmark: str) -> int:
        kept = min(sum(run["kept"] and run.get("side") == side for run in raw[benchmark]) for side in sides)
        return max(wanted_count(benchmark, repetitions) - kept, 0)

    def run(benchmark: str, count: int, number: int) -> None:
        for build, side in list(zip(builds, sides))[:: 1 if number % 2 == 0 else -1]:
            pattern = f"^{re.escape(benchmark)}/iterations"
            for name, measured in run_program(build[benchmark], pattern, count, tiny):
                if name != benchmark:
                    raise Failed(f"{benchmark}: ran {name} instead")
                raw[benchmark].append({"round": number, **({"side": side} if side else {}), **measured})

    def tell(what: str) -> None:
        print(f"{what}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    began = time.monotonic()
    repeated = [benchmark for benchmark in raw if not peers.runs_once(benchmark)]
    for number in range(rounds_max):
        behind = [benchmark for benchmark in repeated if missing_count(benchmark) > 0]
        if not behind:
            break
        for benchmark in behind:
            # A few at a time: what is left is taken later, at another minute's weather.
            run(benchmark, min(max(1, repetitions // 5), missing_count(benchmark)) if len(sides) == 1 else 1, number)
        # At tiny size nothing is measured, so nothing is unsteady.
        placements = samples.mark(raw, keeps_all=tiny)
        tell(f"round {number + 1}: {sum(missing_count(benchmark) for benchmark in repeated)} repetitions are missing")
    # What takes minutes comes last, so that the rounds lie close together.
    for benchmark in raw:
        if peers.runs_once(benchmark):
            run(benchmark, 1, 0)
            tell(benchmark)
    placements = samples.mark(raw, keeps_all=tiny)
    return raw, placements


def report_on(arguments: argparse.Namespace, cpus: List[int], wanted: Callable[[str], bool]) -> int:
    machine = report.describe_machine(arguments.build, cpus)
    benchmarks = find_benchmarks(arguments.build, wanted, all_programs=True)
    if not benchmarks:
        print(f"no benchmark is called like {arguments.filter!r}", file=sys.stderr)
        return 2
    raw, placements = measure([benchmarks], [None], arguments.tiny, arguments.repetitions, arguments.rounds)
    done = report.make_report(raw, placements, machine, arguments.tiny)
    print(report.write(done, arguments.out))
    short = [bar["name"] for bar in done["bars"] if not bar["holds"]]
    if short and not arguments.tiny:
        print("does not hold: " + "; ".join(short))
    behind = [f"{benchmark} ({count})" for benchmark, count in
              ((name, sum(run["kept"] for run in runs)) for name, runs in raw.items())
              if count < wanted_count(benchmark, arguments.repetitions)]
    if behind:
        print(f"fewer steady repetitions of one placement than {arguments.repetitions}: " + ", ".join(behind))
    if done["missing"]:
        print("the machine was never steady, nothing to count: " + ", ".join(done["missing"]), file=sys.stderr)
        return 1
    return 0


def compare_two(arguments: argparse.Namespace, wanted: Callable[[str], bool]) -> int:
    with compare.builds(arguments.compare, len(os.sched_getaffinity(0))) as folders:
        found = [find_benchmarks(folder, wanted, all_programs=False) for folder in folders]
        raw, placements = measure(found, ["A", "B"], arguments.tiny, arguments.repetitions, arguments.rounds)
    comparisons = compare.compare(raw)
    if not comparisons:
        print("the two builds have no figure in common", file=sys.stderr)
        return 2
    text = compare.markdown(comparisons, arguments.compare)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "compare.md").write_text(text, encoding="utf-8")
    (arguments.out / "compare.json").write_text(json.dumps(
        {"sides": dict(zip("AB", arguments.compare)), "placements": [placement.describe() for placement in placements],
         "comparisons": compare.as_json(comparisons), "raw": raw}, indent=1) + "\n", encoding="utf-8")
    print(text)
    if arguments.demand_noise and any(done.verdict != "noise" for done in comparisons):
        print("a build differs from itself", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the benchmarks and says which bars hold.")
    parser.add_argument("--build", type=Path, help="the build directory")
    parser.add_argument("--quick", action="store_true", help="three repetitions of each benchmark")
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs and verifies")
    parser.add_argument("--filter", help="only benchmarks whose name contains this regular expression")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="where the report goes")
    parser.add_argument("--cpus", help="processors to use, as in 0,1; the default is all that are allowed")
    parser.add_argument("--repetitions", type=int, help="repetitions of each benchmark that are kept (15)")
    parser.add_argument("--rounds", type=int, help="at most so many rounds (25)")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two build folders or git revisions")
    parser.add_argument("--demand-noise", action="store_true", help="fail where --compare finds a change, for A and A")
    parser.add_argument("--write-docs", type=Path, metavar="REPORT", help="write a report into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.write_docs:
        report.write_docs(arguments.write_docs)
        if not arguments.build and not arguments.compare:
            return 0
    if not arguments.build and not arguments.compare:
        parser.error("--build or --compare is needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made for a while goes then, too
    os.environ.pop("WEIR_WAIT_PATH", None)  # each benchmark says itself how workers wait
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    pattern = re.compile(arguments.filter or "")
    usual = compare.REPETITIONS if arguments.compare else 15
    arguments.repetitions = arguments.repetitions or (1 if arguments.tiny else 3 if arguments.quick else usual)
    arguments.rounds = arguments.rounds or (
        arguments.repetitions if arguments.tiny else 6 if arguments.quick else 25)

    def wanted(name: str) -> bool:
        return bool(pattern.search(name))

    if arguments.compare:
        return compare_two(arguments, wanted)
    return report_on(arguments, sorted(os.sched_getaffinity(0)), wanted)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, ValueError, OSError, subprocess.SubprocessError) as failure:
        print(f"bench/run.py: {failure}", file=sys.stderr)
        sys.exit(1)
