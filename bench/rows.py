"""What the benchmarks' numbers are put together to: bars, figures, and latency distributions.

A row takes the counters of one repetition, so that what it divides was measured by the same processes in the same second.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from typing import Callable, Dict, List

Counters = Dict[str, float]


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
        lambda c: c["port_ns"] / ping_pong_ns(c), 1.35),
    Bar("wake-up of a sleeping consumer with a whole buffer, one-way p50 / bare futex ping-pong", "port/wake_up", "ratio",
        lambda c: c["wake_up_ns"] / c["futex_ns"], 1.15),
    Bar("memory beyond the payload, for each of 1,048,576 buffers with 4 references", "allocate/control", "bytes",
        lambda c: c["control_bytes_count"] / c["buffer_count"], 72.0),
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
    section: str = ""  # the heading it stands under


def counter(name: str) -> Callable[[Counters], float]:
    return lambda counters: counters[name]


LIMITS = "Limits"
LATENCY = "Latency at a given rate, of single repetitions"
SIZE = "Throughput against size, 1+1"
PROCESSES = "Throughput against the number of processes"
RECOVERY = "Recovery after a kill"


def per_ns(name: str) -> Callable[[Counters], float]:
    """Bytes in a nanosecond, which is GB/s, from the time for a byte."""
    return lambda counters: 1 / counters[name]


def limits() -> List[Figure]:
    return [
        Figure("bare ping-pong, one way", "limits/ping_pong", "ns", counter("pingpong_ns"), LIMITS),
        Figure("ping-pong with a line for each direction, one way", "limits/ping_pong", "ns", counter("two_lines_ns"),
               LIMITS),
        Figure("bare futex ping-pong, one way, p50", "limits/futex", "ns", counter("futex_ns"), LIMITS),
        Figure("uncontended compare-and-swap", "limits/cas", "ns", counter("cas_ns"), LIMITS),
        Figure("empty system call", "limits/system_call", "ns", counter("system_call_ns"), LIMITS),
        Figure("reading the clock", "limits/clock", "ns", counter("clock_ns"), LIMITS),
        *(Figure(f"64 MiB of shared memory, {text}", "limits/memory", "GB/s", per_ns(f"byte_{key}_ns"), LIMITS)
          for key, text in MEMORY_LIMITS),
    ]


MEMORY_LIMITS = (("written", "written"), ("read", "read"), ("copied", "copied"),
                 ("read_by_other", "read by the other processor, which did not write it"))

# As in bench/latency.cpp: whether the receiver spins or sleeps, the message, messages a second.
LOADS = tuple(("spin", size, rate) for size, rate in (("8B", 10_000), ("8B", 100_000), ("8B", 1_000_000),
                                                      ("4KiB", 10_000), ("4KiB", 100_000), ("1MiB", 1_000))
              ) + tuple(("sleep", size, rate) for size, rate in (("8B", 10_000), ("8B", 100_000), ("4KiB", 10_000),
                                                                 ("1MiB", 1_000)))
WAITING = {"spin": "spinning", "sleep": "sleeping"}


def latency_benchmark(waiting: str, size: str, rate: int) -> str:
    return f"latency/{waiting}/{size}/{rate}"


def spaced(size: str) -> str:
    """8B as 8 B."""
    return re.sub(r"(?<=\d)(?=[A-Z])", " ", size)


def latencies() -> List[Figure]:
    """The tails are of all repetitions together (report.py); of single ones there are the median and the 99th percentile."""
    return [Figure(f"{whose}, {WAITING[waiting]}, {spaced(size)}, {rate:,}/s, p{percent}",
                   latency_benchmark(waiting, size, rate), "ns", counter(f"{key}_p{percent}_ns"), LATENCY)
            for waiting, size, rate in LOADS
            for key, whose in (("port", "port"), ("bare", "bare slots"))
            for percent in (50, 99)]


# As in bench/size.cpp.
SIZES = tuple((name, int(number) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[unit])
              for name, number, unit in ((text, *re.match(r"(\d+)(\w+)", text).groups()) for text in
                                         ("8B", "64B", "512B", "4KiB", "32KiB", "256KiB", "2MiB", "16MiB", "64MiB")))


def gigabytes(size_bytes: int, name: str) -> Callable[[Counters], float]:
    return lambda counters: size_bytes / counters[name]


def sizes() -> List[Figure]:
    return [Figure(f"{whose}, {spaced(size)}, written and read whole", f"size/{size}", "GB/s",
                   gigabytes(size_bytes, key), SIZE)
            for size, size_bytes in SIZES
            for key, whose in (("message_ns", "port"), ("bare_ns", "bare slots"))]


PAIRS = (1, 2, 4, 8)


def millions(name: str) -> Callable[[Counters], float]:
    return lambda counters: 1e3 / counters[name]


def processes() -> List[Figure]:
    figures = []
    for waiting in WAITING:
        for pairs in PAIRS:
            benchmark = f"processes/{waiting}/{pairs}+{pairs}"
            for key, whose in (("port", "messages through a port"), ("ring", "values through the ring")):
                name = f"{whose}, {pairs}+{pairs}, {WAITING[waiting]}"
                figures += [Figure(name, benchmark, "M/s", millions(f"{key}_ns"), PROCESSES),
                            Figure(f"{name}, waits of more than 1 ms", benchmark, "count",
                                   counter(f"{key}_stall_count"), PROCESSES)]
    return figures


FINDINGS = {"watch": "a peer watches", "recheck": "waiting peers re-check once in 100 ms",
            "restart": "its parent starts it again"}
RECOVERED = {
    "producer": {"known": "until its consumer knows", "reaped": "until it is reaped",
                 "restarted": "until the first message of its next life"},
    "consumer": {"known": "until its producer knows", "reaped": "until it is reaped",
                 "restarted": "until the first message is received in its next life"},
}


def milliseconds(name: str) -> Callable[[Counters], float]:
    return lambda counters: counters[name] / 1e6


def recoveries() -> List[Figure]:
    figures = []
    for victim, texts in RECOVERED.items():
        for finding, how in FINDINGS.items():
            benchmark, name = f"recover/{victim}/{finding}", f"{victim} killed, {how}"
            for key in ("restarted" if finding == "restart" else "known", "reaped"):
                figures += [Figure(f"{name}: {texts[key]}{text}", benchmark, "ms", milliseconds(f"{key}{suffix}_ns"),
                                   RECOVERY) for suffix, text in (("", ""), ("_max", ", slowest"))]
            figures += [Figure(f"{name}: longest gap of strangers {when} the kill", benchmark, "ms",
                               milliseconds(f"gap_{when}_max_ns"), RECOVERY) for when in ("before", "after")]
    return figures


FIGURES = (
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
    Figure("ring 1+1, exclusive ends, per value", "ring/ends", "ns", counter("exclusive_ns")),
    Figure("ring 1+1, exclusive ends / shared ends, throughput", "ring/ends", "ratio",
           lambda c: c["shared_ns"] / c["exclusive_ns"]),
    Figure("ring 1+1, exclusive ends, batches, per value", "ring/ends", "ns", counter("exclusive_batch_ns")),
    Figure("ring 1+1, shared ends, batches, per value", "ring/ends", "ns", counter("shared_batch_ns")),
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
    Figure("wake-up of a sleeping consumer, p50", "port/wake_up", "ns", counter("wake_up_ns")),
    Figure("wake-up by a bare futex, p50", "port/wake_up", "ns", counter("futex_ns")),
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
    Figure("the same in place, without the process's start and end", "copy/cached", "ms",
           lambda c: c["run_in_place_ns"] / 1e6),
    Figure("by dd conv=notrunc bs=128K", "copy/cached", "ms", lambda c: c["dd_128k_ns"] / 1e6),
    Figure("by dd conv=notrunc bs=256K", "copy/cached", "ms", lambda c: c["dd_256k_ns"] / 1e6),
    *limits(),
    *latencies(),
    *sizes(),
    *processes(),
    *recoveries(),
)
