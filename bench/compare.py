"""Two builds, side by side: which figures have changed, and which only moved as they do anyway.

The repetitions of both are interleaved, A B B A, so that what drifts meets both alike, and only those of one placement
are compared (samples.mark). For each figure there is the ratio of the medians, B / A, with a 95% confidence interval by
bootstrap, and the chance of such a difference between samples of one kind, by a two-sided Mann-Whitney U test, corrected
after Holm for all figures together: where it is below 5% the figure has changed, else it is noise. So one comparison in
twenty of a build with itself reports some change, however many figures there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Union

import samples
from report import number
from rows import BARS, FIGURES, Bar, Figure
from samples import Repetitions

CHANCE_MAX = 0.05
REPETITIONS = 10

Row = Union[Bar, Figure]


@dataclasses.dataclass
class Comparison:
    name: str
    unit: str
    first: float   # medians
    second: float
    counts: Sequence[int]
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0
    chance: float = 1.0
    verdict: str = "noise"


def compare_samples(name: str, unit: str, first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Without a verdict, which depends on how many comparisons there are."""
    done = Comparison(name, unit, statistics.median(first), statistics.median(second), (len(first), len(second)))
    if min(*first, *second) > 0:
        done.ratio = done.second / done.first
        done.low, done.high = samples.ratio_interval(first, second)
    elif done.first != done.second:
        # Counts may be 0, and have no ratio then.
        done.ratio = done.low = done.high = float("nan")
    done.chance = samples.mann_whitney(first, second)
    return done


def decide(comparisons: Sequence[Comparison]) -> None:
    for done, chance in zip(comparisons, samples.holm([done.chance for done in comparisons])):
        done.chance = chance
        done.verdict = "change" if chance < CHANCE_MAX else "noise"


def compare(raw: Repetitions, all_rows: Sequence[Row] = (*BARS, *FIGURES)) -> List[Comparison]:
    """The marked repetitions have a "side", "A" or "B"."""
    comparisons = []
    for row in all_rows:
        sides: Dict[str, List[float]] = {"A": [], "B": []}
        for run in raw.get(row.benchmark, []):
            if run["kept"]:
                with contextlib.suppress(KeyError):  # an earlier revision may not have measured it
                    sides[run["side"]].append(row.value(run["counters"]))
        if sides["A"] and sides["B"]:
            comparisons.append(compare_samples(f"{row.benchmark}: {row.name}", row.unit, sides["A"], sides["B"]))
    decide(comparisons)
    return comparisons


def markdown(comparisons: Sequence[Comparison], names: Sequence[str]) -> str:
    changed = [done for done in comparisons if done.verdict == "change"]
    lines = [f"A is {names[0]}, B is {names[1]}. {len(comparisons)} figures, of which {len(changed)} changed.", "",
             "| figure | A | B | B / A | 95% interval | repetitions | chance | verdict |",
             "|---|---:|---:|---:|---|---:|---:|---|"]
    for done in sorted(comparisons, key=lambda done: done.verdict != "change"):
        unit = "" if done.unit in ("ratio", "count") else " " + done.unit
        verdict = "**change**" if done.verdict == "change" else "noise"
        lines.append(f"| {done.name} | {number(done.first)}{unit} | {number(done.second)}{unit} | {done.ratio:.3f} | "
                     f"{done.low:.3f} to {done.high:.3f} | {done.counts[0]}, {done.counts[1]} | {done.chance:.2g} | "
                     f"{verdict} |")
    lines += ["", "Chance: of such a difference between samples of one kind, two-sided Mann-Whitney U, corrected after Holm "
              "for all figures. Interval: of the ratio of the medians, by bootstrap."]
    return "\n".join(lines) + "\n"


def as_json(comparisons: Sequence[Comparison]) -> List[Dict[str, Any]]:
    return [dataclasses.asdict(done) for done in comparisons]


# --- Builds -----------------------------------------------------------------------------------------------------------


def run_step(command: List[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise subprocess.SubprocessError(f"{' '.join(command)}: exit status {done.returncode}")


@contextlib.contextmanager
def builds(names: Sequence[str], jobs: int) -> Iterator[List[Path]]:
    """A build folder for each name, which is one already or a git revision; that is built in a temporary folder."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(tempfile.mkdtemp(prefix="weir-compare-"))
    trees: Dict[str, Path] = {}
    made: List[Path] = []
    try:
        for name in names:
            if (Path(name) / "build.ninja").is_file():
                made.append(Path(name))
                continue
            if name not in trees:
                tree = folder / f"tree{len(trees)}"
                print(f"building {name}", file=sys.stderr, flush=True)
                run_step(["git", "-C", str(root), "worktree", "add", "--detach", str(tree), name])
                trees[name] = tree
                # As ./dev bench builds.
                run_step(["meson", "setup", str(tree / "build"), str(tree), "-Dbuildtype=release",
                          "-Db_ndebug=if-release", "-Dtests=disabled", "-Dtools=disabled", "-Dexamples=disabled"])
                run_step(["ninja", "-C", str(tree / "build"), "-j", str(jobs)])
            made.append(trees[name] / "build")
        yield made
    finally:
        for tree in trees.values():
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(tree)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
