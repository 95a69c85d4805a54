#!/usr/bin/env python3
"""Runs the benchmarks and says which bars hold.

    bench/run.py --build BUILDDIR [--tiny] [--filter X] [--out DIR] [--cpus 0,1] [--repetitions N]
    bench/run.py --write-docs bench-report/report.json

The benchmarks of a build directory are run in rounds, so that the repetitions of each are spread over the whole run.
A repetition during which the bare cache-line ping-pong changed by more than a fifth is dropped, and made up for in a
further round, up to a limit. Each bar is the median over the repetitions that were kept, of a ratio that is formed
inside each.

DIR (bench-report) gets report.json

    {"machine": {...}, "bars": [{"name", "value", "bar", "holds", "samples", ...}], "figures": [...], "raw": [...]}

and report.md with the same as tables. `--write-docs` puts these tables into docs/performance.md, between its markers.

Exit status: 0 when all was measured, also where a bar does not hold; 1 when a benchmark failed, verified something
wrong or left no repetition to count; 2 when nothing could be run. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import peers

PROGRAMS = ("ring", "port", "allocate", "reap", "domain", "scheduler", "sleep", "copy", "limits")

# The ping-pong before and after a repetition may differ by a fifth.
CHANGE_MAX = 0.2

Counters = Dict[str, float]


class Failed(Exception):
    """A benchmark did not run, or verified something wrong."""


def ping_pong_ns(counters: Counters) -> float:
    """The ping-pong of a repetition: before, after and, where it is so long, between."""
    return statistics.mean(value for name, value in counters.items() if name.startswith("pingpong_"))


def occupancy_spread(counters: Counters) -> float:
    times = [counters[f"allocate_{setting}_ns"] for setting in ("64_at_50", "64_at_95", "1m_at_50", "1m_at_95")]
    return max(times) / min(times)


# GNU Radio's time for an item through three blocks, one item a call, where the bare ping-pong takes 60 ns.
GNU_RADIO_ITEM_NS = 444
GNU_RADIO_PING_PONG_NS = 60


def gnu_radio_ns(counters: Counters) -> float:
    """What GNU Radio may take on this machine: less where the ping-pong is quicker, but never more."""
    return GNU_RADIO_ITEM_NS * min(1.0, ping_pong_ns(counters) / GNU_RADIO_PING_PONG_NS)


def idle_wake_ups(counters: Counters) -> float:
    return max(counters["one_worker_switches_count"], counters["two_workers_switches_count"])


WAIT_PATHS = ("io_uring", "futex_waitv", "recheck")


@dataclasses.dataclass(frozen=True)
class Bar:
    name: str
    benchmark: str
    unit: str
    value: Callable[[Counters], float]
    limit: float
    sense: str = "at most"  # or: at least, within (limit and its reciprocal)
    note: str = ""

    def holds(self, value: float) -> bool:
        if self.sense == "at least":
            return value >= self.limit
        if self.sense == "within":
            return 1 / self.limit <= value <= self.limit
        return value <= self.limit


BARS = (
    Bar("ring, one-way latency / bare ping-pong", "ring/latency", "ratio",
        lambda c: c["ring_ns"] / ping_pong_ns(c), 1.15),
    Bar("port, one-way latency of a whole buffer / bare ping-pong", "port/latency", "ratio",
        lambda c: c["port_ns"] / ping_pong_ns(c), 1.5),
    Bar("ring throughput 1+1 / Vyukov's queue", "ring/throughput/1+1", "ratio",
        lambda c: c["vyukov_ns"] / c["ring_ns"], 0.9, "at least"),
    Bar("ring throughput 2+2 / Vyukov's queue", "ring/throughput/2+2", "ratio",
        lambda c: c["vyukov_ns"] / c["ring_ns"], 0.9, "at least"),
    Bar("port, time per message in a 1+1 stream / bare ping-pong", "port/stream", "ratio",
        lambda c: c["message_ns"] / ping_pong_ns(c), 0.7),
    Bar("allocate + drop on one core / malloc + free of 64 B", "allocate/malloc", "ratio",
        lambda c: c["weir_ns"] / c["malloc_ns"], 1.0),
    Bar("one core: allocate, write, push, pop, read, drop / malloc, Vyukov's queue of pointers, free", "port/one_core",
        "ratio", lambda c: c["message_ns"] / c["malloc_ns"], 1.0),
    Bar("hop with 64 MiB / hop with 64 B, first line touched", "port/hop_size", "ratio",
        lambda c: c["hop_64mib_ns"] / c["hop_64b_ns"], 1.1, "within"),
    Bar("allocate + drop, 64 and 1,048,576 buffers, 50% and 95% in use: slowest / fastest", "allocate/occupancy",
        "ratio", occupancy_spread, 2.0),
    Bar("try_allocate on an exhausted pool of 1,048,576 / bare ping-pong", "allocate/exhausted", "ratio",
        lambda c: c["exhausted_ns"] / ping_pong_ns(c), 20.0),
    Bar("reap of one dead process: 4,096 buffers, 16 ports of 1,024 cells", "reap/dead_process", "ms",
        lambda c: c["reap_ns"] / 1e6, 2.0),
    Bar("the same in a named domain, from the lock's release on", "domain/reap", "ms",
        lambda c: c["reap_ns"] / 1e6, 2.0),
    Bar("check of a domain of 1,048,576 buffers from outside, a third in ports and a third held", "domain/check", "ms",
        lambda c: c["check_ns"] / 1e6, 1000.0),
    Bar("join an existing domain / fork + exec of /bin/true", "domain/join", "ratio",
        lambda c: c["join_ns"] / c["spawn_ns"], 1.0),
    Bar("from SIGKILL to a waiting peer's knowing, slowest / re-check interval", "domain/death", "ratio",
        lambda c: c["recheck_max_ns"] / c["interval_ns"], 1.0),
    Bar("from SIGKILL to the knowing of a peer that watches, slowest", "domain/death", "ms",
        lambda c: c["watch_max_ns"] / 1e6, 5.0),
    Bar("liveness checks of 250 idle members, for each member and interval", "domain/idle", "ratio",
        lambda c: c["checks_count"], 1.0),
    Bar("a call of work() that makes progress, beyond the block's own work / uncontended CAS", "scheduler/work_call",
        "ratio", lambda c: (c["call_ns"] - c["plain_ns"]) / c["cas_ns"], 15.0),
    Bar("NullSource to NullSink between two processes, throughput / bare port, payload untouched", "scheduler/stream",
        "ratio", lambda c: c["bare_untouched_ns"] / c["null_ns"], 0.8, "at least"),
    Bar("NullSource to NullSink in one worker, throughput / bare port on one core, payload untouched",
        "scheduler/one_process", "ratio", lambda c: c["bare_untouched_ns"] / c["null_ns"], 0.6, "at least"),
    Bar("an item through three blocks, one a call / GNU Radio's, less where the ping-pong is below 60 ns",
        "scheduler/three_blocks", "ratio", lambda c: c["item_ns"] / gnu_radio_ns(c), 0.5),
    *(Bar(f"wake-up of a worker in another process, one-way p50 / bare futex ({path})", f"sleep/wake_up/{path}",
          "ratio", lambda c: c["wake_up_ns"] / c["futex_ns"], 1.2)
      for path in WAIT_PATHS if path != "recheck"),
    *(Bar(f"wake-ups a second of an idle worker, 100 blocks in one or in two ({path})", f"sleep/idle/{path}", "count",
          idle_wake_ups, 12.0)
      for path in WAIT_PATHS),
    Bar("1,000 blocks on two workers, one active at a time, a hop / with 2 blocks", "sleep/many_blocks", "ratio",
        lambda c: c["hop_of_many_ns"] / c["hop_of_few_ns"], 2.0),
    Bar("the same, workers that sleep at once", "sleep/many_blocks", "ratio",
        lambda c: c["hop_of_many_asleep_ns"] / c["hop_of_few_asleep_ns"], 2.0),
    Bar("FileSource to FileSink, 1 GiB, throughput / cp --reflink=never, both empty the file first", "copy/cached",
        "ratio", lambda c: c["cp_ns"] / c["weir_ns"], 1.0, "at least"),
    Bar("the same in place / dd conv=notrunc, the better of 128 KiB (as cp) and 256 KiB", "copy/cached", "ratio",
        lambda c: min(c["dd_128k_ns"], c["dd_256k_ns"]) / c["weir_in_place_ns"], 1.0, "at least"),
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """Reported without a bar."""
    name: str
    benchmark: str
    unit: str
    value: Callable[[Counters], float]


def counter(name: str) -> Callable[[Counters], float]:
    return lambda counters: counters[name]


FIGURES = (
    Figure("bare ping-pong, one way", "limits/ping_pong", "ns", counter("pingpong_ns")),
    Figure("ping-pong with a line for each direction, one way", "limits/ping_pong", "ns", counter("two_lines_ns")),
    Figure("ring, one way", "ring/latency", "ns", counter("ring_ns")),
    Figure("ring, one way / ping-pong with a line for each direction", "ring/latency", "ratio",
           lambda c: c["ring_ns"] / c["two_lines_ns"]),
    Figure("port, one way / ping-pong with a line for each direction", "port/latency", "ratio",
           lambda c: c["port_ns"] / c["two_lines_ns"]),
    Figure("port stream 1+1, per message / ping-pong with a line for each direction", "port/stream", "ratio",
           lambda c: c["message_ns"] / c["two_lines_ns"]),
    Figure("port, one way, buffer read and written", "port/latency", "ns", counter("port_ns")),
    Figure("port, one way, the second process only reads", "port/latency", "ns", counter("port_reads_only_ns")),
    Figure("ring 1+1, per value", "ring/throughput/1+1", "ns", counter("ring_ns")),
    Figure("Vyukov's queue 1+1, per value", "ring/throughput/1+1", "ns", counter("vyukov_ns")),
    Figure("ring 2+2, per value", "ring/throughput/2+2", "ns", counter("ring_ns")),
    Figure("Vyukov's queue 2+2, per value", "ring/throughput/2+2", "ns", counter("vyukov_ns")),
    Figure("ring 4+4, per value", "ring/throughput/4+4", "ns", counter("ring_ns")),
    Figure("Vyukov's queue 4+4, per value", "ring/throughput/4+4", "ns", counter("vyukov_ns")),
    Figure("ring 4+4 / Vyukov's queue", "ring/throughput/4+4", "ratio", lambda c: c["vyukov_ns"] / c["ring_ns"]),
    Figure("ring 4+4, waits of more than 1 ms", "ring/throughput/4+4", "count", counter("ring_stall_count")),
    Figure("Vyukov's queue 4+4, waits of more than 1 ms", "ring/throughput/4+4", "count",
           counter("vyukov_stall_count")),
    Figure("port stream 1+1, per message", "port/stream", "ns", counter("message_ns")),
    Figure("port stream 1+1, batches of 4", "port/stream", "ns", counter("message_batch_4_ns")),
    Figure("port stream 1+1, batches of 16", "port/stream", "ns", counter("message_batch_16_ns")),
    Figure("port stream 1+1, batches of 64", "port/stream", "ns", counter("message_batch_64_ns")),
    Figure("a message on one core, allocate to drop", "port/one_core", "ns", counter("message_ns")),
    Figure("the same with malloc, Vyukov's queue of pointers and free", "port/one_core", "ns", counter("malloc_ns")),
    Figure("hop of 64 B", "port/hop_size", "ns", counter("hop_64b_ns")),
    Figure("hop of 64 MiB", "port/hop_size", "ns", counter("hop_64mib_ns")),
    Figure("wake-up of a sleeping consumer", "port/wake_up", "ns", counter("wake_up_ns")),
    Figure("wake-up by a bare futex", "port/wake_up", "ns", counter("futex_ns")),
    Figure("wake-up / bare futex", "port/wake_up", "ratio", lambda c: c["wake_up_ns"] / c["futex_ns"]),
    Figure("allocate + drop", "allocate/malloc", "ns", counter("weir_ns")),
    Figure("allocate + drop, 32 at a time", "allocate/malloc", "ns", counter("weir_burst_32_ns")),
    Figure("malloc + free of 64 B", "allocate/malloc", "ns", counter("malloc_ns")),
    Figure("allocate + drop, two processes at once", "allocate/contended", "ns", counter("contended_ns")),
    Figure("the same, 32 at a time", "allocate/contended", "ns", counter("contended_burst_32_ns")),
    *(Figure(f"allocate + drop, {count} buffers, {percent}% in use{text}", "allocate/occupancy", "ns",
             counter(f"allocate_{key}_at_{percent}{suffix}_ns"))
      for suffix, text in (("", ""), ("_burst_3", ", three at a time"), ("_churn", ", a random held one dropped"))
      for key, count in (("64", "64"), ("1m", "1,048,576"))
      for percent in (50, 95)),
    Figure("try_allocate on an exhausted pool of 1,048,576", "allocate/exhausted", "ns", counter("exhausted_ns")),
    Figure("clone + drop", "allocate/clone", "ns", counter("clone_ns")),
    Figure("copy + reset within a process", "allocate/clone", "ns", counter("copy_ns")),
    Figure("reap, the slowest of ten", "reap/dead_process", "ms", lambda c: c["reap_max_ns"] / 1e6),
    Figure("join an existing domain", "domain/join", "ns", counter("join_ns")),
    Figure("leave it", "domain/join", "ns", counter("leave_ns")),
    Figure("fork + exec of /bin/true", "domain/join", "ns", counter("spawn_ns")),
    Figure("reap in the largest domain: 1,048,576 buffers, 1,024 ports of 65,536 cells", "domain/reap_largest", "ms",
           lambda c: c["reap_ns"] / 1e6),
    Figure("look at such a domain, all references counted", "domain/check", "ms", lambda c: c["look_ns"] / 1e6),
    Figure("from SIGKILL to a waiting peer's knowing, at the default interval of 100 ms", "domain/death", "ms",
           lambda c: c["recheck_ns"] / 1e6),
    Figure("from SIGKILL to the knowing of a peer that watches", "domain/death", "ms", lambda c: c["watch_ns"] / 1e6),
    Figure("waits of 250 idle members, for each member and interval", "domain/idle", "ratio", counter("waits_count")),
    Figure("a call of work(), the block's own work included", "scheduler/work_call", "ns", counter("call_ns")),
    Figure("the block's own work", "scheduler/work_call", "ns", counter("plain_ns")),
    Figure("uncontended CAS", "scheduler/work_call", "ns", counter("cas_ns")),
    Figure("a call of work(), two blocks in turn, beyond their own work / uncontended CAS", "scheduler/work_call",
           "ratio", lambda c: (c["call_of_two_ns"] - c["plain_ns"]) / c["cas_ns"]),
    Figure("each of two calls that bring a message from a source to a sink, beyond the bare port / uncontended CAS",
           "scheduler/work_call", "ratio", lambda c: (c["graph_ns"] - c["message_ns"]) / 2 / c["cas_ns"]),
    Figure("NullSource to NullSink between two processes, per message", "scheduler/stream", "ns", counter("null_ns")),
    Figure("numbered messages between two processes, throughput / bare port", "scheduler/stream", "ratio",
           lambda c: c["bare_ns"] / c["numbered_ns"]),
    Figure("NullSource to NullSink between two processes, throughput / bare port with payload", "scheduler/stream",
           "ratio", lambda c: c["bare_ns"] / c["null_ns"]),
    Figure("NullSource to NullSink in one worker, per message", "scheduler/one_process", "ns", counter("null_ns")),
    Figure("numbered messages in one worker, throughput / bare port on one core", "scheduler/one_process", "ratio",
           lambda c: c["bare_ns"] / c["numbered_ns"]),
    Figure("NullSource to NullSink by two workers of one process, per message", "scheduler/one_process", "ns",
           counter("two_workers_ns")),
    Figure("an item through three blocks in one worker, one a call", "scheduler/three_blocks", "ns",
           counter("item_ns")),
    Figure("the same / GNU Radio's 444 ns", "scheduler/three_blocks", "ratio",
           lambda c: c["item_ns"] / GNU_RADIO_ITEM_NS),
    Figure("the same / GNU Radio's 444 ns, scaled by the ping-pong both ways", "scheduler/three_blocks", "ratio",
           lambda c: c["item_ns"] / GNU_RADIO_ITEM_NS * GNU_RADIO_PING_PONG_NS / ping_pong_ns(c)),
    Figure("an item through three blocks in one worker, up to 16 a call", "scheduler/three_blocks", "ns",
           counter("item_of_burst_ns")),
    Figure("an item through a chain of 10 Maps in one worker", "scheduler/three_blocks", "ns",
           counter("chain_of_10_ns")),
    Figure("4 KiB, written, changed and verified by three processes, per message", "scheduler/three_processes", "ns",
           counter("message_ns")),
    *(Figure(f"wake-up of a worker in another process, one-way p50 ({path})", f"sleep/wake_up/{path}", "ns",
             counter("wake_up_ns")) for path in WAIT_PATHS),
    *(Figure(f"the same by a bare futex, beside {path}", f"sleep/wake_up/{path}", "ns", counter("futex_ns"))
      for path in WAIT_PATHS),
    *(Figure(f"system calls that wait, a second, of an idle worker with 100 blocks ({path})", f"sleep/idle/{path}",
             "count", counter("one_worker_sleeps_count")) for path in WAIT_PATHS),
    *(Figure(f"calls of work() a second, of 100 idle blocks ({path})", f"sleep/idle/{path}", "count",
             counter("one_worker_calls_count")) for path in WAIT_PATHS),
    Figure("a hop to another worker, 2 blocks", "sleep/many_blocks", "ns", counter("hop_of_few_ns")),
    Figure("a hop to another worker, 1,000 blocks", "sleep/many_blocks", "ns", counter("hop_of_many_ns")),
    Figure("a hop to another worker that sleeps at once, 2 blocks", "sleep/many_blocks", "ns",
           counter("hop_of_few_asleep_ns")),
    Figure("a hop to another worker that sleeps at once, 1,000 blocks", "sleep/many_blocks", "ns",
           counter("hop_of_many_asleep_ns")),
    Figure("copying 1 GiB in the page cache by FileSource and FileSink, emptied first", "copy/cached", "ms",
           lambda c: c["weir_ns"] / 1e6),
    Figure("the same, without the process's start and end", "copy/cached", "ms", lambda c: c["run_ns"] / 1e6),
    Figure("by cp --reflink=never", "copy/cached", "ms", lambda c: c["cp_ns"] / 1e6),
    Figure("by FileSource and FileSink, in place", "copy/cached", "ms", lambda c: c["weir_in_place_ns"] / 1e6),
    Figure("the same, without the process's start and end", "copy/cached", "ms",
           lambda c: c["run_in_place_ns"] / 1e6),
    Figure("by dd conv=notrunc bs=128K", "copy/cached", "ms", lambda c: c["dd_128k_ns"] / 1e6),
    Figure("by dd conv=notrunc bs=256K", "copy/cached", "ms", lambda c: c["dd_256k_ns"] / 1e6),
    Figure("reading the clock", "limits/clock", "ns", counter("clock_ns")),
)


# --- Running ----------------------------------------------------------------------------------------------------------


def run_program(program: Path, pattern: str, repetitions: int, tiny: bool) -> List[Tuple[str, Counters]]:
    """Runs the benchmarks of one program that match, and returns the name and the counters of each repetition."""
    command = [str(program), f"--benchmark_filter={pattern}", f"--benchmark_repetitions={repetitions}",
               "--benchmark_format=json"]
    if tiny:
        command.append("--tiny")
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
            counters = {name: value for name, value in run.items()
                        if isinstance(value, (int, float)) and (name.endswith("_ns") or name.endswith("_count"))}
            repeated.append((plain_name(run["name"]), counters))
    return repeated


def plain_name(name: str) -> str:
    """Google Benchmark appends how it was run."""
    return re.sub(r"/(iterations:\d+|repeats:\d+|manual_time)", "", name)


def is_steady(counters: Counters) -> bool:
    before, after = counters.get("pingpong_before_ns"), counters.get("pingpong_after_ns")
    if before is None or after is None:
        return True
    return max(before, after) <= min(before, after) * (1 + CHANGE_MAX)


def list_benchmarks(program: Path) -> List[str]:
    try:
        done = subprocess.run([str(program), "--benchmark_list_tests"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(f"{program}: {error}") from error
    return [plain_name(line) for line in done.stdout.splitlines() if line]


def wanted_count(benchmark: str, repetitions: int) -> int:
    return 1 if peers.runs_once(benchmark) else repetitions


def measure(build: Path, wanted: Callable[[str], bool], tiny: bool, repetitions: int,
            rounds_max: int) -> Dict[str, List[Dict[str, Any]]]:
    """All repetitions of each benchmark, kept or not."""
    programs = {name: build / "bench" / f"bench_{name}" for name in PROGRAMS}
    if (build / "bench" / "peers" / "bench_peers").exists():
        programs["peers"] = build / "bench" / "peers" / "bench_peers"
    belongs = {benchmark: program for program in programs.values() for benchmark in list_benchmarks(program)
               if wanted(benchmark)}
    raw: Dict[str, List[Dict[str, Any]]] = {benchmark: [] for benchmark in belongs}

    def missing_count(benchmark: str) -> int:
        return wanted_count(benchmark, repetitions) - sum(repetition["kept"] for repetition in raw[benchmark])

    for number in range(rounds_max):
        behind = [benchmark for benchmark in belongs if missing_count(benchmark) > 0]
        if not behind:
            break
        for benchmark in behind:
            # A few at a time: what is left is taken later, at another minute's weather.
            count = min(max(1, repetitions // 5), missing_count(benchmark))
            for name, counters in run_program(belongs[benchmark], f"^{re.escape(benchmark)}/iterations", count, tiny):
                if name != benchmark:
                    raise Failed(f"{benchmark}: ran {name} instead")
                # At tiny size nothing is measured, so nothing is unsteady.
                raw[benchmark].append({"round": number, "kept": tiny or is_steady(counters), "counters": counters})
        missing = sum(max(missing_count(benchmark), 0) for benchmark in belongs)
        print(f"round {number + 1}: {missing} repetitions are missing", file=sys.stderr, flush=True)
    return raw


# --- Reporting --------------------------------------------------------------------------------------------------------


def describe_machine(build: Path, cpus: List[int]) -> Dict[str, Any]:
    machine: Dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processors": cpus,
    }
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
        machine["model"] = found.group(1) if found else "unknown"
        machine["virtual"] = bool(re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE))
        memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
        machine["memory_mib"] = int(memory.group(1)) // 1024 if memory else None
    except OSError:
        pass
    try:
        command = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))[0]["command"]
        words = [word for word in shlex.split(command)[:2] if not word.startswith("-") and "ccache" not in word]
        version = subprocess.run([words[0], "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
        machine["compiler"] = version.splitlines()[0]
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        pass
    try:
        options = json.loads((build / "meson-info" / "intro-buildoptions.json").read_text(encoding="utf-8"))
        machine["build_options"] = {option["name"]: option["value"] for option in options
                                    if option["name"] in ("buildtype", "optimization", "b_ndebug", "b_lto")}
    except (OSError, ValueError, KeyError):
        pass
    return machine


def samples_of(raw: Dict[str, List[Dict[str, Any]]], benchmark: str,
               value: Callable[[Counters], float]) -> List[float]:
    return [value(repetition["counters"]) for repetition in raw[benchmark] if repetition["kept"]]


def make_report(raw: Dict[str, List[Dict[str, Any]]], machine: Dict[str, Any], tiny: bool) -> Dict[str, Any]:
    bars, figures, missing = [], [], []
    for bar in (*BARS, *(Bar(**bar) for bar in peers.bars(raw))):
        if bar.benchmark not in raw:
            continue
        samples = samples_of(raw, bar.benchmark, bar.value)
        if not samples:
            missing.append(bar.benchmark)
            continue
        value = statistics.median(samples)
        bars.append({"name": bar.name, "benchmark": bar.benchmark, "unit": bar.unit, "value": value,
                     "bar": bar.limit, "sense": bar.sense, "holds": bar.holds(value), "samples": samples,
                     "dropped": sum(not repetition["kept"] for repetition in raw[bar.benchmark])})
    for figure in FIGURES:
        if figure.benchmark in raw:
            samples = samples_of(raw, figure.benchmark, figure.value)
            if samples:
                figures.append({"name": figure.name, "benchmark": figure.benchmark, "unit": figure.unit,
                                "value": statistics.median(samples), "least": min(samples), "most": max(samples)})
    return {"machine": machine, "tiny": tiny, "bars": bars, "figures": figures, "missing": sorted(set(missing)),
            "peers": peers.report(raw), "raw": raw}


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def markdown(report: Dict[str, Any]) -> str:
    machine = report["machine"]
    options = ", ".join(f"{name}={value}" for name, value in sorted(machine.get("build_options", {}).items()))
    lines = [f"Taken on {machine['date']}: {machine.get('model', 'unknown processor')}"
             f"{' (virtual machine)' if machine.get('virtual') else ''}, processors "
             f"{', '.join(map(str, machine['processors']))}, {machine['system']}, "
             f"{machine.get('compiler', 'unknown compiler')}{'; ' + options if options else ''}."]
    if report["tiny"]:
        lines += ["", "At tiny size: these numbers only show that the benchmarks run."]
    lines += ["", "| figure | measured | bar | holds | repetitions (dropped) | middle half |",
              "|---|---:|---:|---|---:|---|"]
    for bar in report["bars"]:
        samples = sorted(bar["samples"])
        low, high = samples[len(samples) // 4], samples[-1 - len(samples) // 4]
        unit = "" if bar["unit"] == "ratio" else " " + bar["unit"]
        limit = f"within {bar['bar']:g}, both ways" if bar["sense"] == "within" else f"{bar['sense']} {bar['bar']:g}"
        lines.append(f"| {bar['name']} | {number(bar['value'])}{unit} | {limit}{unit} | "
                     f"{'yes' if bar['holds'] else '**no**'} | {len(samples)} ({bar['dropped']}) | "
                     f"{number(low)} to {number(high)} |")
    lines += ["", "Without a bar:", "", "| figure | median | least | most |", "|---|---:|---:|---:|"]
    for figure in report["figures"]:
        unit = {"ratio": "", "count": ""}.get(figure["unit"], " " + figure["unit"])
        lines.append(f"| {figure['name']} | {number(figure['value'])}{unit} | {number(figure['least'])} | "
                     f"{number(figure['most'])} |")
    if report.get("peers"):
        lines += peers.markdown(report["peers"], number)
    return "\n".join(lines) + "\n"


DOCS_BEGIN = "<!-- measured: begin (written by bench/run.py --write-docs) -->"
DOCS_END = "<!-- measured: end -->"


def write_docs(report_path: Path) -> None:
    docs = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
    text = docs.read_text(encoding="utf-8")
    if text.count(DOCS_BEGIN) != 1 or text.count(DOCS_END) != 1 or text.index(DOCS_BEGIN) > text.index(DOCS_END):
        raise Failed(f"{docs}: the markers are gone, {DOCS_BEGIN!r} and {DOCS_END!r}")
    before, rest = text.split(DOCS_BEGIN)
    after = rest.split(DOCS_END)[1]
    report = json.loads(report_path.read_text(encoding="utf-8"))
    docs.write_text(f"{before}{DOCS_BEGIN}\n\n{markdown(report)}\n{DOCS_END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the benchmarks and says which bars hold.")
    parser.add_argument("--build", type=Path, help="the build directory")
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs and verifies")
    parser.add_argument("--filter", help="only benchmarks whose name contains this regular expression")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="where the report goes")
    parser.add_argument("--cpus", help="processors to use, as in 0,1; the default is all that are allowed")
    parser.add_argument("--repetitions", type=int, help="repetitions of each benchmark that are kept (15)")
    parser.add_argument("--rounds", type=int, help="at most so many rounds (25)")
    parser.add_argument("--write-docs", type=Path, metavar="REPORT", help="write a report into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.write_docs:
        write_docs(arguments.write_docs)
        if not arguments.build:
            return 0
    if not arguments.build:
        parser.error("--build is needed")
    os.environ.pop("WEIR_WAIT_PATH", None)  # each benchmark says itself how workers wait
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    cpus = sorted(os.sched_getaffinity(0))
    pattern = re.compile(arguments.filter or "")
    repetitions = arguments.repetitions or (1 if arguments.tiny else 15)
    rounds_max = arguments.rounds or (1 if arguments.tiny else 25)
    raw = measure(arguments.build, lambda name: bool(pattern.search(name)), arguments.tiny, repetitions, rounds_max)
    if not raw:
        print(f"no benchmark is called like {arguments.filter!r}", file=sys.stderr)
        return 2
    report = make_report(raw, describe_machine(arguments.build, cpus), arguments.tiny)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (arguments.out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    short = [bar["name"] for bar in report["bars"] if not bar["holds"]]
    if short and not arguments.tiny:
        print("does not hold: " + "; ".join(short))
    behind = [f"{benchmark} ({count})" for benchmark, count in
              ((name, sum(repetition["kept"] for repetition in runs)) for name, runs in raw.items())
              if count < wanted_count(benchmark, repetitions)]
    if behind:
        print(f"fewer steady repetitions than {repetitions}: " + ", ".join(behind))
    if report["missing"]:
        print("the machine was never steady, nothing to count: " + ", ".join(report["missing"]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        print(f"bench/run.py: {failure}", file=sys.stderr)
        sys.exit(1)
