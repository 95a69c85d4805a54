"""Plots as SVG: lines over a logarithmic axis, or over one that stretches percentiles. Nothing but text is made here.

    svg = chart("Title", Axis("message size", "B", binary=True), Axis("throughput", "GB/s"),
                [Series("port", [(8, 0.1), (64, 0.8)])])

The colours are in the middle between black and white, and text follows the reader's colour scheme.
"""

from __future__ import annotations

import dataclasses
import math
from typing import List, Sequence, Tuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 74, 210, 44, 52
COLOURS = ("#3b82c4", "#d97706", "#3f9b5f", "#b5539c", "#8a6d3b", "#6b7280")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #444 } .title { font-size: 14px; font-weight: 600 }
.grid { stroke: #8884; stroke-width: 1 } .frame { stroke: #888; stroke-width: 1; fill: none }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }
"""


@dataclasses.dataclass(frozen=True)
class Axis:
    label: str
    unit: str = ""
    binary: bool = False      # ticks at powers of two, as of sizes and counts
    percentile: bool = False  # values are shares below 1, and what is left of 1 is drawn logarithmically


@dataclasses.dataclass(frozen=True)
class Series:
    label: str
    points: Sequence[Tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def scientific(value: float, binary: bool) -> str:
    """1500 as 1.5k, or 2048 as 2Ki."""
    step, prefixes = (1024, ("", "Ki", "Mi", "Gi")) if binary else (1000, ("", "k", "M", "G"))
    for prefix in prefixes:
        if abs(value) < step or prefix == prefixes[-1]:
            return f"{value:.3g}{' ' if prefix else ''}{prefix}"
        value /= step
    return f"{value:.3g}"


def time_text(value_ns: float) -> str:
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if value_ns < limit:
            return f"{value_ns / limit * 1e3:.3g} {unit}"
    return f"{value_ns / 1e9:.3g} s"


def position(axis: Axis, value: float) -> float:
    return -math.log10(1 - value) if axis.percentile else math.log10(value)


def ticks(axis: Axis, low: float, high: float) -> List[Tuple[float, str]]:
    """Positions between low and high, which are positions too, and what stands there."""
    if axis.percentile:
        values = [0.5] + [1 - 10.0 ** -nines for nines in range(1, 8)]
        texts = ["50%", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%", "99.99999%"]
        found = [(position(axis, value), text) for value, text in zip(values, texts)]
    elif axis.binary:
        exponents = range(math.floor(low / math.log10(2)), math.ceil(high / math.log10(2)) + 1)
        step = max(1, round(len(exponents) / 8))
        found = [(math.log10(2.0 ** exponent), scientific(2.0 ** exponent, True)) for exponent in exponents
                 if exponent % step == 0]
    else:
        factors = (1, 2, 5) if high - low < 3.2 else (1,)
        found = [(exponent + math.log10(factor),
                  time_text(factor * 10.0 ** exponent) if axis.unit == "ns" else scientific(factor * 10.0 ** exponent, False))
                 for exponent in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [(place, text) for place, text in found if low - 1e-9 <= place <= high + 1e-9]


def bounds(axis: Axis, values: Sequence[float]) -> Tuple[float, float]:
    places = [position(axis, value) for value in values]
    low, high = min(places), max(places)
    if axis.percentile:
        return 0.0, max(high, 1.0)
    if axis.binary:
        return low, max(high, low + math.log10(2))
    # A little room, so that a line does not lie on the frame.
    room = max(0.05 * (high - low), 0.05)
    return low - room, high + room


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], note: str = "") -> str:
    """Series without a point are left out; values that no logarithm has, too."""
    drawn = []
    for one in series:
        points = [(a, b) for a, b in one.points if b > 0 and (a < 1 if x.percentile else a > 0)]
        if points:
            drawn.append((one, points))
    x_low, x_high = bounds(x, [a for _, points in drawn for a, _ in points] or [1.0 if not x.percentile else 0.0])
    y_low, y_high = bounds(y, [b for _, points in drawn for _, b in points] or [1.0])
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(place: float) -> float:
        return LEFT + (place - x_low) / (x_high - x_low) * width

    def down(place: float) -> float:
        return TOP + height - (place - y_low) / (y_high - y_low) * height

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
             f'aria-label="{escape(title, {chr(34): "&quot;"})}">', f"<style>{STYLE}</style>",
             f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    if note:
        lines.append(f'<text x="{LEFT}" y="36" opacity="0.75">{escape(note)}</text>')
    for place, text in ticks(x, x_low, x_high):
        lines += [f'<line class="grid" x1="{across(place):.1f}" y1="{TOP}" x2="{across(place):.1f}" y2="{TOP + height}"/>',
                  f'<text x="{across(place):.1f}" y="{TOP + height + 17}" text-anchor="middle">{escape(text)}</text>']
    for place, text in ticks(y, y_low, y_high):
        lines += [f'<line class="grid" x1="{LEFT}" y1="{down(place):.1f}" x2="{LEFT + width}" y2="{down(place):.1f}"/>',
                  f'<text x="{LEFT - 7}" y="{down(place) + 4:.1f}" text-anchor="end">{escape(text)}</text>']
    lines.append(f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>')
    # Times have their units at the ticks.
    x_label, y_label = (axis.label + (f" ({axis.unit})" if axis.unit not in ("", "ns") else "") for axis in (x, y))
    lines += [f'<text x="{LEFT + width / 2:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
              f'<text transform="translate(16 {TOP + height / 2:.1f}) rotate(-90)" text-anchor="middle">'
              f'{escape(y_label)}</text>']
    for row, (one, points) in enumerate(drawn):
        look = (f'stroke="{COLOURS[one.colour % len(COLOURS)]}"' + (' stroke-dasharray="5 4"' if one.dashed else ""))
        path = " ".join(f"{across(position(x, a)):.1f},{down(position(y, b)):.1f}" for a, b in points)
        lines.append(f'<polyline class="line" {look} points="{path}"/>')
        if not x.percentile:
            lines += [f'<circle cx="{across(position(x, a)):.1f}" cy="{down(position(y, b)):.1f}" r="2.5" '
                      f'fill="{COLOURS[one.colour % len(COLOURS)]}"/>' for a, b in points]
        at = TOP + 10 + 20 * row
        lines += [f'<line class="line" {look} x1="{LEFT + width + 12}" y1="{at}" x2="{LEFT + width + 40}" y2="{at}"/>',
                  f'<text x="{LEFT + width + 46}" y="{at + 4}">{escape(one.label)}</text>']
    return "\n".join([*lines, "</svg>"]) + "\n"


def distribution(histogram: dict) -> List[Tuple[float, float]]:
    """A latency distribution as points (share of all times below, time), but for the slowest, which has none above it: the
    maximum is drawn where one more sample would be."""
    total, seen, points = sum(histogram.values()), 0, []
    for time in sorted(histogram):
        points.append((seen / total, float(time)))
        seen += histogram[time]
        points.append((seen / total if seen < total else 1 - 0.5 / total, float(time)))
    return points
