"""What bench/run.py reports of the peers (bench/peers/): bars, tables, and what the kills did.

Every benchmark of a peer is called peers/<group>/<peer> and brings peer_ns and weir_ns, taken by the same processes in
turns; peers/kill/<peer> brings counts (bench/peers/kill.hpp says of what), and is run once. Only what was built is
there; a bar without its peer is left out.
"""

from __future__ import annotations

import statistics
from typing import Any, Callable, Dict, Iterator, List, Optional

Raw = Dict[str, List[Dict[str, Any]]]
Counters = Dict[str, float]

# How a peer is called in the report, where the benchmark's name is not good enough.
NAMES = {
    "weir_ring": "**weir, ring**", "weir_port": "**weir, port**", "vyukov": "Vyukov's queue",
    "ck_ring_mpmc": "Concurrency Kit, ck_ring MPMC", "ck_ring_spsc": "Concurrency Kit, ck_ring SPSC",
    "atomic_queue": "atomic_queue", "atomic_queue_spsc": "atomic_queue, SPSC", "xenium_weak": "xenium, "
    "vyukov_bounded_queue, weak", "rte_ring_mpmc": "DPDK rte_ring, MP/MC", "rte_ring_spsc": "DPDK rte_ring, SP/SC",
    "rte_ring": "DPDK rte_ring", "rte_mempool": "DPDK rte_mempool, cache of a core",
    "moodycamel": "moodycamel ConcurrentQueue", "readerwriterqueue": "moodycamel ReaderWriterQueue",
    "onetbb": "oneTBB concurrent_bounded_queue", "pipe": "pipe", "unix_stream": "Unix socket, stream",
    "unix_seqpacket": "Unix socket, seqpacket", "posix_mq": "POSIX message queue", "iceoryx": "iceoryx",
    "cyclonedds": "Cyclone DDS", "zeromq": "ZeroMQ", "nng": "nng",
}

GROUPS = (
    ("queue/1+1", "Queues of small values, 1+1 processes, per value"),
    ("queue/2+2", "Queues of small values, 2+2 processes, per value"),
    ("queue/exclusive", "Queues with one producer and one consumer, beside weir's ring with exclusive ends"),
    ("queue/latency", "Queues, one way"),
    ("threads/1+1", "Queues that only threads can share, 1+1 threads, per value"),
    ("threads/2+2", "Queues that only threads can share, 2+2 threads, per value"),
    ("threads/exclusive", "Queues for one producer and one consumer that only threads can share, per value"),
    ("threads/latency", "Queues that only threads can share, one way"),
    ("bulk", "Values in bulks of 64, beside weir's ring in batches of 64, 1+1 processes, per value"),
    ("allocate", "Allocate and drop on one core"),
    ("message/8b", "Messages of 8 B, 1+1 processes, per message"),
    ("message/8k", "Messages of 8 KiB, all pages touched, 1+1 processes, per message"),
    ("message/64k", "Messages of 64 KiB, all pages touched, 1+1 processes, per message"),
    ("message/1m", "Messages of 1 MiB, all pages touched, 1+1 processes, per message"),
    ("message/1m_first_line", "Messages of 1 MiB, first line touched, 1+1 processes, per message"),
    ("message_latency/8b", "Messages of 8 B, half a round trip"),
    ("message_latency/8k", "Messages of 8 KiB, all pages touched, half a round trip"),
    ("message_latency/64k", "Messages of 64 KiB, all pages touched, half a round trip"),
    ("message_latency/1m", "Messages of 1 MiB, all pages touched, half a round trip"),
    ("message_latency/1m_first_line", "Messages of 1 MiB, first line touched, half a round trip"),
)

THREADS_ONLY = ("moodycamel", "readerwriterqueue", "onetbb")

KILL = "peers/kill/"


def runs_once(benchmark: str) -> bool:
    """A benchmark that repeats by itself."""
    return benchmark.startswith(KILL)


def weir_is_quicker_by(counters: Counters) -> float:
    return counters["peer_ns"] / counters["weir_ns"]


def kept(raw: Raw, benchmark: str) -> List[Counters]:
    return [repetition["counters"] for repetition in raw.get(benchmark, []) if repetition["kept"]]


def members(raw: Raw, group: str) -> List[str]:
    """The peers of a group, of those that were measured."""
    prefix = f"peers/{group}/"
    return sorted(name[len(prefix):] for name in raw if name.startswith(prefix) and "/" not in name[len(prefix):]
                  and kept(raw, name))


def best(raw: Raw, group: str) -> Optional[str]:
    """The peer beside which weir looks worst."""
    return min(members(raw, group), default=None, key=lambda peer: statistics.median(
        map(weir_is_quicker_by, kept(raw, f"peers/{group}/{peer}"))))


def bars(raw: Raw) -> Iterator[Dict[str, Any]]:
    """The bars of the peers that were measured, as the arguments of a Bar."""
    def bar(name: str, benchmark: str, limit: float, value: Callable[[Counters], float] = weir_is_quicker_by,
            sense: str = "at least") -> Iterator[Dict[str, Any]]:
        if kept(raw, benchmark):
            yield {"name": name, "benchmark": benchmark, "unit": "ratio", "value": value, "limit": limit,
                   "sense": sense}

    for group, what in (("queue/1+1", "ring throughput 1+1 / best MPMC peer"),
                        ("queue/2+2", "ring throughput 2+2 / best MPMC peer"),
                        ("queue/exclusive", "ring with exclusive ends 1+1 / best SPSC peer across processes")):
        peer = best(raw, group)
        if peer:
            yield from bar(f"{what} ({NAMES.get(peer, peer)})", f"peers/{group}/{peer}", 1.0)
    yield from bar("ring in batches of 64 / DPDK rte_ring in bulks of 64", "peers/bulk/rte_ring", 0.7)
    yield from bar("ring with exclusive ends in batches of 64 / DPDK rte_ring, SP/SC, in bulks of 64", "peers/bulk/rte_ring",
                   0.7, lambda c: c["peer_exclusive_ns"] / c["weir_exclusive_ns"])
    yield from bar("allocate + drop / DPDK rte_mempool get + put", "peers/allocate/rte_mempool", 1.5,
                   lambda c: c["weir_ns"] / c["peer_ns"], "at most")
    yield from bar("message stream 1+1, 8 B, throughput / iceoryx", "peers/message/8b/iceoryx", 12.0)
    yield from bar("message stream 1+1, 1 MiB, first line touched, throughput / iceoryx",
                   "peers/message/1m_first_line/iceoryx", 12.0)


def report(raw: Raw) -> Optional[Dict[str, Any]]:
    """Tables of what was measured, and the outcomes of the kills; None where no peer was."""
    tables = []
    for group, title in GROUPS:
        rows = []
        for peer in members(raw, group):
            runs = kept(raw, f"peers/{group}/{peer}")
            ratios = [weir_is_quicker_by(counters) for counters in runs]
            rows.append({"peer": peer, "peer_ns": statistics.median(counters["peer_ns"] for counters in runs),
                         "weir_ns": statistics.median(counters["weir_ns"] for counters in runs),
                         "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
        if rows:
            rows.sort(key=lambda row: row["ratio"])
            tables.append({"group": group, "title": title, "rows": rows})
    kills = [{"peer": peer, **kept(raw, KILL + peer)[-1]} for peer in members(raw, "kill")]
    threads_only = [peer for peer in THREADS_ONLY if any(peer == row["peer"] for table in tables for row in table["rows"])]
    return {"tables": tables, "kills": kills, "threads_only": threads_only} if tables or kills else None


def markdown(found: Dict[str, Any], number: Callable[[float], str]) -> List[str]:
    lines = ["", "Beside what others have made, in the same minutes by the same processes (docs/performance.md says how):"]
    for table in found["tables"]:
        lines += ["", f"{table['title']}:", "", "| peer | peer | weir beside it | weir is quicker by | least | most |",
                  "|---|---:|---:|---:|---:|---:|"]
        for row in table["rows"]:
            lines.append(f"| {NAMES.get(row['peer'], row['peer'])} | {number(row['peer_ns'])} ns | "
                         f"{number(row['weir_ns'])} ns | {number(row['ratio'])} | {number(row['least'])} | "
                         f"{number(row['most'])} |")
    if found["kills"]:
        lines += ["", "Killed at random under load:", "",
                  "| peer | kills | all went on, nothing lost | somebody blocked | messages lost (how many) | twice | "
                  "garbled | buffers leaked (how many) | somebody failed | longest pause |",
                  "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for kill in found["kills"]:
            count = {name: int(kill[f"{name}_count"]) for name in (
                "kill", "went_on", "blocked", "losing", "lost_messages", "doubling", "garbling", "leaking",
                "leaked_buffers", "failed")}
            lines.append(f"| {NAMES.get(kill['peer'], kill['peer'])} | {count['kill']:,} | {count['went_on']:,} | "
                         f"{count['blocked']} | {count['losing']} ({count['lost_messages']:,}) | {count['doubling']} | "
                         f"{count['garbling']} | {count['leaking']} ({count['leaked_buffers']:,}) | {count['failed']} | "
                         f"{number(kill['pause_ns'] / 1e6)} ms |")
        lines += [f"| {NAMES[peer]} | dies with its process: threads only ||||||||||" for peer in found["threads_only"]]
    seen = {row["peer"] for table in found["tables"] for row in table["rows"]} | {kill["peer"] for kill in found["kills"]}
    absent = [name for peer, name in NAMES.items() if peer not in seen and not peer.startswith("weir")]
    if absent:
        lines += ["", f"Not measured, and without a bar: {'; '.join(absent)}."]
    return lines
