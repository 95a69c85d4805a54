"""What is done with repetitions before they count: which are steady, where the processors lay, quantiles, and tests of two
samples. Nothing here runs or writes anything.

Repetitions are kept as {"round", "counters", "kept", "placement", ...}, in a list for each benchmark.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import random
import statistics
from typing import Any, Dict, List, Optional, Sequence, Tuple

from rows import Counters, ping_pong_ns

# The ping-pong before and after a repetition may differ by a fifth.
CHANGE_MAX = 0.2

Repetitions = Dict[str, List[Dict[str, Any]]]


def is_steady(counters: Counters) -> bool:
    before, after = counters.get("pingpong_before_ns"), counters.get("pingpong_after_ns")
    if before is None or after is None:
        return True
    return max(before, after) <= min(before, after) * (1 + CHANGE_MAX)


# --- Placement --------------------------------------------------------------------------------------------------------

# Where a virtual processor lies is not told, and changes. The time of the bare ping-pong tells: it comes in clusters, one for
# each way in which two processors can lie to each other. Between two clusters there is a gap of a quarter, and none spans
# more than a factor of two.
GAP_MIN = 1.25
SPAN_MAX = 2.0


@dataclasses.dataclass(frozen=True)
class Placement:
    low_ns: float
    high_ns: float
    median_ns: float

    def describe(self) -> str:
        # What such a time usually means; on bare metal the topology in the machine's description knows.
        like = ("two threads of one core" if self.median_ns < 40 else
                "two cores that are close" if self.median_ns < 120 else "two cores that are distant")
        return f"ping-pong {self.low_ns:.0f} to {self.high_ns:.0f} ns, like {like}"


def classify(times_ns: Sequence[float]) -> List[Placement]:
    """The clusters of ping-pong times, the quickest first."""
    def split(times: List[float]) -> List[List[float]]:
        gaps = [(high / low, index) for index, (low, high) in enumerate(zip(times, times[1:]), 1)]
        if not gaps or (max(gaps)[0] <= GAP_MIN and times[-1] / times[0] <= SPAN_MAX):
            return [times]
        index = max(gaps)[1]
        return split(times[:index]) + split(times[index:])

    return [Placement(times[0], times[-1], statistics.median(times)) for times in split(sorted(times_ns)) if times]


def mark(raw: Repetitions, keeps_all: bool = False) -> List[Placement]:
    """Says of each repetition what its placement was and whether it is kept: the steady ones of one placement. That is the
    commonest of the run, unless a benchmark has at least twice as many repetitions of another. Returns the placements;
    "placement" is a number in it, or None without a ping-pong."""
    runs = [run for runs in raw.values() for run in runs]
    for run in runs:
        run["placement"], run["kept"] = None, keeps_all or is_steady(run["counters"])
    timed = [run for run in runs if run["kept"] and "pingpong_before_ns" in run["counters"]] if not keeps_all else []
    placements = classify([ping_pong_ns(run["counters"]) for run in timed])
    for run in timed:
        time_ns = ping_pong_ns(run["counters"])
        run["placement"] = bisect.bisect_left([placement.high_ns for placement in placements], time_ns)
    commonness = collections.Counter(run["placement"] for run in timed)
    for own in raw.values():
        # Where two builds are compared, the one that has fewer repetitions of a placement decides.
        sides = {run.get("side") for run in own}
        counts = {placement: min(sum(run["placement"] == placement and run.get("side") == side for run in own)
                                 for side in sides)
                  for placement in {run["placement"] for run in own} - {None}}
        if counts:
            enough = [placement for placement, count in counts.items() if 2 * count > max(counts.values())]
            chosen = max(enough or counts, key=lambda placement: (commonness[placement], -placement))
            for run in own:
                run["kept"] = run["kept"] and run["placement"] == chosen
    return placements


def placement_of(runs: List[Dict[str, Any]]) -> Optional[int]:
    """That of the repetitions that were kept."""
    return next((run["placement"] for run in runs if run["kept"]), None)


# --- Latency distributions --------------------------------------------------------------------------------------------

Histogram = Dict[int, int]  # how often a time was measured, in ns


def parse_histograms(label: str) -> Dict[str, Histogram]:
    """What bench/histogram.hpp writes: NAME=TIME:COUNT,... NAME=..."""
    histograms: Dict[str, Histogram] = {}
    for word in label.split():
        name, _, buckets = word.partition("=")
        histograms[name] = {int(time): int(count) for time, count in
                            (bucket.split(":") for bucket in buckets.split(",") if bucket)}
    return histograms


def merged(histograms: Sequence[Histogram]) -> Histogram:
    total: Histogram = collections.Counter()
    for histogram in histograms:
        for time_ns, count in histogram.items():
            total[time_ns] += count
    return dict(total)


def quantile(histogram: Histogram, share: float) -> int:
    """The least time that `share` of all do not exceed."""
    # 0.999 of 1,000 is 999, though a float may say a hair more.
    wanted = max(1, math.ceil(share * sum(histogram.values()) - 1e-6))
    seen = 0
    for time_ns in sorted(histogram):
        seen += histogram[time_ns]
        if seen >= wanted:
            return time_ns
    raise ValueError("there is no quantile of nothing")


# --- Two samples ------------------------------------------------------------------------------------------------------


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """How likely two samples differ at least so much in rank when they are of one kind: the two-sided Mann-Whitney U test,
    exact where there are no ties, and the normal approximation, corrected for ties, where there are."""
    n, m = len(first), len(second)
    if n == 0 or m == 0:
        return 1.0
    u = sum((a > b) + (a == b) / 2 for a in first for b in second)
    u = min(u, n * m - u)
    together = collections.Counter([*first, *second])
    if max(together.values()) == 1 and n * m <= 2_500:
        return min(1.0, 2 * sum(rank_sums(n, m)[: int(u) + 1]) / math.comb(n + m, n))
    ties = sum(count ** 3 - count for count in together.values())
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return math.erfc(max(0.0, n * m / 2 - u - 0.5) / math.sqrt(2 * variance))


def rank_sums(n: int, m: int) -> List[int]:
    """In how many of the orders of n and m samples U is 0, 1, 2, ...: the coefficients of the Gaussian binomial."""
    counts = [1] + [0] * (n * m)
    for number in range(1, n + 1):
        for place in range(n * m, m + number - 1, -1):
            counts[place] -= counts[place - m - number]
        for place in range(number, n * m + 1):
            counts[place] += counts[place - number]
    return counts


def holm(chances: Sequence[float]) -> List[float]:
    """The chances of many tests, corrected after Holm: with a limit of 5% for them, all tests together err with at most 5%."""
    order = sorted(range(len(chances)), key=lambda index: chances[index])
    corrected, least = [1.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, chances[index] * (len(chances) - rank)))
        corrected[index] = least
    return corrected


def ratio_interval(first: Sequence[float], second: Sequence[float], seed: int = 1, rounds: int = 1_000,
                   confidence: float = 0.95) -> Tuple[float, float]:
    """A confidence interval of median(second) / median(first), by bootstrap: the middle share of the ratios of as large
    samples, drawn from the samples with repetition."""
    random_numbers = random.Random(seed)
    ratios = sorted(statistics.median(random_numbers.choices(second, k=len(second))) /
                    statistics.median(random_numbers.choices(first, k=len(first))) for _ in range(rounds))
    outside = int((1 - confidence) / 2 * rounds)
    return ratios[outside], ratios[-1 - outside]
