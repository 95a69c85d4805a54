"""The report on a run: the machine, report.json, report.md and the plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import peers
import rows
import samples
from plots import Axis, Series, chart, distribution
from rows import Bar, Counters, Figure
from samples import Placement, Repetitions

# --- The machine ------------------------------------------------------------------------------------------------------


def first_line(path: str) -> Optional[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def cpu_quota() -> Optional[str]:
    """How many processors' time this program's control group may use; None where there is no limit."""
    line = first_line("/proc/self/cgroup") or ""
    own = line[3:] if line.startswith("0::") else "/"
    while True:
        limit = first_line(f"/sys/fs/cgroup{own.rstrip('/')}/cpu.max")
        if limit and not limit.startswith("max"):
            quota, period = limit.split()
            return f"{int(quota) / int(period):g} processors"
        if own in ("", "/"):
            return None
        own = os.path.dirname(own)


def mitigations() -> List[str]:
    """What the kernel does against the processor's faults; where nothing is to be done, nothing."""
    found = []
    for path in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*")):
        state = first_line(str(path)) or "unknown"
        if state != "Not affected":
            found.append(f"{path.name}: {state}")
    return found


def describe_compiler(build: Path) -> Dict[str, str]:
    command = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))[0]["command"]
    words = [word for word in shlex.split(command) if "ccache" not in word]
    version = subprocess.run([words[0], "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    flags = [word for word in words if re.match(r"-(O|m|f(?!diagnostics)|g|std=|D(NDEBUG|_GLIBCXX_ASSERTIONS))", word)]
    return {"compiler": version.splitlines()[0], "flags": " ".join(flags)}


def describe_machine(build: Path, cpus: List[int]) -> Dict[str, Any]:
    machine: Dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processors": cpus,
        "governors": sorted({governor for cpu in cpus if (governor := first_line(
            f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"))}),
        "siblings": sorted({threads for cpu in cpus if (threads := first_line(
            f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))}),
        "cpu_quota": cpu_quota(),
        "mitigations": mitigations(),
        "load_before": os.getloadavg()[0],
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
        machine.update(describe_compiler(build))
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        pass
    try:
        options = json.loads((build / "meson-info" / "intro-buildoptions.json").read_text(encoding="utf-8"))
        machine["build_options"] = {option["name"]: option["value"] for option in options
                                    if option["name"] in ("buildtype", "optimization", "b_ndebug", "b_lto")}
    except (OSError, ValueError, KeyError):
        pass
    return machine


# --- Rows -------------------------------------------------------------------------------------------------------------


def samples_of(raw: Repetitions, benchmark: str, value: Callable[[Counters], float]) -> List[float]:
    return [value(run["counters"]) for run in raw[benchmark] if run["kept"]]


def is_oversubscribed(runs: List[Dict[str, Any]]) -> bool:
    counters = runs[0]["counters"]
    return counters.get("process_count", 1) > counters.get("processor_count", 1)


def tails_of(raw: Repetitions) -> List[Dict[str, Any]]:
    """The latency distributions, each of all repetitions that were kept together."""
    tails = []
    for waiting, size, rate in rows.LOADS:
        runs = raw.get(rows.latency_benchmark(waiting, size, rate), [])
        for key, whose in (("port", "port"), ("bare", "bare slots")):
            histogram = samples.merged([run["histograms"][key] for run in runs
                                        if run["kept"] and key in run.get("histograms", {})])
            if histogram:
                tails.append({"whose": whose, "waiting": waiting, "size": size, "rate": rate,
                              "placement": samples.placement_of(runs), "count": sum(histogram.values()),
                              "max_ns": max(histogram), "histogram": sorted(histogram.items())})
    return tails


def make_report(raw: Repetitions, placements: Sequence[Placement], machine: Dict[str, Any], tiny: bool,
                all_bars: Sequence[Bar] = rows.BARS, all_figures: Sequence[Figure] = rows.FIGURES) -> Dict[str, Any]:
    """The raw repetitions are marked already (samples.mark)."""
    bars, figures, missing = [], [], []
    for bar in (*all_bars, *(Bar(**bar) for bar in peers.bars(raw))):
        if bar.benchmark not in raw:
            continue
        values = samples_of(raw, bar.benchmark, bar.value)
        if not values:
            missing.append(bar.benchmark)
            continue
        runs = raw[bar.benchmark]
        value = statistics.median(values)
        bars.append({"name": bar.name, "benchmark": bar.benchmark, "unit": bar.unit, "value": value, "bar": bar.limit,
                     "sense": bar.sense, "holds": bar.holds(value), "samples": values,
                     "dropped": sum(not run["kept"] for run in runs), "placement": samples.placement_of(runs),
                     "oversubscribed": is_oversubscribed(runs)})
    for figure in all_figures:
        if figure.benchmark in raw:
            runs = raw[figure.benchmark]
            values = samples_of(raw, figure.benchmark, figure.value)
            if values:
                figures.append({"name": figure.name, "benchmark": figure.benchmark, "unit": figure.unit,
                                "value": statistics.median(values), "least": min(values), "most": max(values),
                                "section": figure.section, "placement": samples.placement_of(runs),
                                "oversubscribed": is_oversubscribed(runs)})
            else:
                missing.append(figure.benchmark)
    counts = [sum(run["placement"] == number for runs in raw.values() for run in runs)
              for number in range(len(placements))]
    return {"machine": machine, "tiny": tiny, "bars": bars, "figures": figures, "tails": tails_of(raw),
            "placements": [{"low_ns": placement.low_ns, "high_ns": placement.high_ns, "text": placement.describe(),
                            "repetitions": count} for placement, count in zip(placements, counts)],
            "peers": peers.report(raw), "missing": sorted(set(missing)), "raw": raw}


# --- Plots ------------------------------------------------------------------------------------------------------------


def latency_plots(report: Dict[str, Any]) -> Dict[str, str]:
    plots = {}
    for waiting, text in rows.WAITING.items():
        for size in dict.fromkeys(size for _, size, _ in rows.LOADS):
            tails = [tail for tail in report["tails"] if (tail["waiting"], tail["size"]) == (waiting, size)]
            rates = sorted({tail["rate"] for tail in tails})
            if tails:
                plots[f"latency-{waiting}-{size}.svg"] = chart(
                    f"Latency of {rows.spaced(size)} from the intended send time, receiver {text}",
                    Axis("share of the messages that took less", percentile=True), Axis("time", "ns"),
                    [Series(f"{tail['whose']}, {tail['rate']:,}/s", distribution(dict(tail["histogram"])),
                            rates.index(tail["rate"]), tail["whose"] != "port") for tail in tails])
    return plots


def sweep(report: Dict[str, Any], points: Sequence[Tuple[float, str]]) -> List[Tuple[float, float]]:
    """The figures of the given names, each at its place."""
    values = {figure["name"]: figure["value"] for figure in report["figures"]}
    return [(place, values[name]) for place, name in points if name in values]


def size_plot(report: Dict[str, Any]) -> Dict[str, str]:
    names = {key: [(size_bytes, f"{whose}, {rows.spaced(size)}, written and read whole") for size, size_bytes in rows.SIZES]
             for key, whose in (("port", "port"), ("bare", "bare slots"))}
    lines = [Series("port", sweep(report, names["port"]), 0), Series("bare slots", sweep(report, names["bare"]), 1, True)]
    if not lines[0].points:
        return {}
    ends = (rows.SIZES[0][1], rows.SIZES[-1][1])
    for colour, (_, text) in enumerate(rows.MEMORY_LIMITS[:3], 2):
        points = sweep(report, [(end, f"64 MiB of shared memory, {text}") for end in ends])
        lines.append(Series(f"memory {text}, one core", points, colour, True))
    return {"size.svg": chart("Throughput 1+1, messages written and read whole", Axis("message size", "B", binary=True),
                              Axis("throughput", "GB/s"), lines)}


def process_plot(report: Dict[str, Any]) -> Dict[str, str]:
    lines = []
    for colour, (whose, text) in enumerate((("messages through a port", "port"), ("values through the ring", "ring"))):
        for waiting, how in rows.WAITING.items():
            points = sweep(report, [(pairs, f"{whose}, {pairs}+{pairs}, {how}") for pairs in rows.PAIRS])
            lines.append(Series(f"{text}, {how}", points, colour, waiting == "sleep"))
    cores = len(report["machine"]["processors"])
    note = (f"oversubscribed from {cores // 2 + 1} pairs on: {cores} processors" if cores < 2 * rows.PAIRS[-1] else "")
    if not any(line.points for line in lines):
        return {}
    return {"processes.svg": chart("Throughput against the number of processes", Axis("pairs of processes", binary=True),
                                   Axis("messages a second", "millions"), lines, note)}


def make_plots(report: Dict[str, Any]) -> Dict[str, str]:
    """The text of each plot, by its file's name."""
    return {**latency_plots(report), **size_plot(report), **process_plot(report)}


# --- Text -------------------------------------------------------------------------------------------------------------

# What a quantile is of needs so many times beyond it.
BEYOND_MIN = 5
UNITS = {"ratio": "", "count": ""}


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def machine_lines(report: Dict[str, Any]) -> List[str]:
    machine = report["machine"]
    options = ", ".join(f"{name}={value}" for name, value in sorted(machine.get("build_options", {}).items()))
    lines = [f"Taken on {machine['date']}: {machine.get('model', 'unknown processor')}"
             f"{' (virtual machine)' if machine.get('virtual') else ''}, processors "
             f"{', '.join(map(str, machine['processors']))}, {machine['system']}, "
             f"{machine.get('compiler', 'unknown compiler')}{'; ' + options if options else ''}"
             f"{'; ' + machine['flags'] if machine.get('flags') else ''}."]
    more = [f"hardware threads of one core: {' | '.join(machine.get('siblings', [])) or 'unknown'}",
            f"governor: {', '.join(machine.get('governors', [])) or 'unknown'}",
            f"processor quota: {machine.get('cpu_quota') or 'none'}"]
    if "load_before" in machine:
        more.append(f"load before: {machine['load_before']:.2g}")
    lines += ["", "; ".join(more) + "."]
    if machine.get("mitigations"):
        lines += ["", "Mitigations: " + "; ".join(machine["mitigations"]) + "."]
    if report.get("placements"):
        lines += ["", "Placements of the two processors during the repetitions, of which each row counts one only:", ""]
        lines += [f"- {chr(65 + at)}: {placement['text']} ({placement['repetitions']} repetitions)"
                  for at, placement in enumerate(report["placements"])]
    if report["tiny"]:
        lines += ["", "At tiny size: these numbers only show that the benchmarks run."]
    return lines


def named(row: Dict[str, Any]) -> str:
    return row["name"] + (" (oversubscribed)" if row.get("oversubscribed") else "")


def placed(row: Dict[str, Any]) -> str:
    return "" if row.get("placement") is None else chr(65 + row["placement"])


def bar_lines(report: Dict[str, Any]) -> List[str]:
    lines = ["| figure | measured | bar | holds | repetitions (dropped) | middle half | placement |",
             "|---|---:|---:|---|---:|---|---|"]
    for bar in report["bars"]:
        values = sorted(bar["samples"])
        low, high = values[len(values) // 4], values[-1 - len(values) // 4]
        unit = "" if bar["unit"] == "ratio" else " " + bar["unit"]
        limit = f"within {bar['bar']:g}, both ways" if bar["sense"] == "within" else f"{bar['sense']} {bar['bar']:g}"
        lines.append(f"| {named(bar)} | {number(bar['value'])}{unit} | {limit}{unit} | "
                     f"{'yes' if bar['holds'] else '**no**'} | {len(values)} ({bar['dropped']}) | "
                     f"{number(low)} to {number(high)} | {placed(bar)} |")
    return lines


def figure_lines(figures: List[Dict[str, Any]]) -> List[str]:
    lines = ["| figure | median | least | most | placement |", "|---|---:|---:|---:|---|"]
    for figure in figures:
        unit = UNITS.get(figure["unit"], " " + figure["unit"])
        lines.append(f"| {named(figure)} | {number(figure['value'])}{unit} | {number(figure['least'])} | "
                     f"{number(figure['most'])} | {placed(figure)} |")
    return lines


def tail_lines(tails: List[Dict[str, Any]]) -> List[str]:
    shares = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999))
    lines = ["From the intended send time, all repetitions together, in microseconds. A quantile with fewer than "
             f"{BEYOND_MIN} messages beyond it is left out.", "",
             "| through | receiver | size | messages a second | p50 | p99 | p99.9 | p99.99 | max | messages | placement |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    for tail in tails:
        histogram = dict(tail["histogram"])
        quantiles = [number(samples.quantile(histogram, share) / 1e3) if tail["count"] * (1 - share) >= BEYOND_MIN
                     else "" for _, share in shares]
        lines.append(f"| {tail['whose']} | {rows.WAITING[tail['waiting']]} | {rows.spaced(tail['size'])} | "
                     f"{tail['rate']:,} | {' | '.join(quantiles)} | {number(tail['max_ns'] / 1e3)} | "
                     f"{tail['count']:,} | {placed(tail)} |")
    return lines


def markdown(report: Dict[str, Any], plots: Sequence[str] = (), heading: str = "###") -> str:
    """The report as text; `plots` are names of files that lie beside it."""
    lines = [*machine_lines(report), "", *bar_lines(report)]
    sections: Dict[str, List[Dict[str, Any]]] = {}
    for figure in report["figures"]:
        sections.setdefault(figure.get("section", ""), []).append(figure)
    if "" in sections:
        lines += ["", "Without a bar:", "", *figure_lines(sections.pop(""))]
    if report.get("tails"):
        lines += ["", f"{heading} Latency at a given rate", "", *tail_lines(report["tails"])]
        lines += image_lines(plots, "latency-")
    for section, figures in sections.items():
        lines += ["", f"{heading} {section}", "", *figure_lines(figures)]
        lines += image_lines(plots, {rows.SIZE: "size", rows.PROCESSES: "processes"}.get(section))
    if report.get("peers"):
        lines += ["", f"{heading} Peers", *peers.markdown(report["peers"], number)]
    return "\n".join(lines) + "\n"


def image_lines(plots: Sequence[str], prefix: Optional[str]) -> List[str]:
    return [line for plot in plots if prefix and plot.startswith(prefix)
            for line in ("", f"![{plot[:-4].replace('-', ' ')}]({plot})")]


def write(report: Dict[str, Any], folder: Path) -> str:
    """Writes all files; returns the text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plots = make_plots(report)
    for name, text in plots.items():
        (folder / name).write_text(text, encoding="utf-8")
    text = markdown(report, list(plots))
    (folder / "report.md").write_text(f"# Benchmarks of weir\n\n{text.replace('### ', '## ')}", encoding="utf-8")
    return text


# --- The documentation ------------------------------------------------------------------------------------------------

DOCS_BEGIN = "<!-- measured: begin (written by bench/run.py --write-docs) -->"
DOCS_END = "<!-- measured: end -->"


def write_docs(report_path: Path) -> None:
    docs = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
    text = docs.read_text(encoding="utf-8")
    if text.count(DOCS_BEGIN) != 1 or text.count(DOCS_END) != 1 or text.index(DOCS_BEGIN) > text.index(DOCS_END):
        raise ValueError(f"{docs}: the markers are gone, {DOCS_BEGIN!r} and {DOCS_END!r}")
    before, rest = text.split(DOCS_BEGIN)
    after = rest.split(DOCS_END)[1]
    report = json.loads(report_path.read_text(encoding="utf-8"))
    docs.write_text(f"{before}{DOCS_BEGIN}\n\n{markdown(report)}\n{DOCS_END}{after}", encoding="utf-8")
