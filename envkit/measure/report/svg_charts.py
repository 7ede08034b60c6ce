"""Charts as inline SVG: pure functions from numbers to markup. The page's style sheet sets the colours.

Every chart has a title and a description for screen readers, and the page also has its numbers in a table.
Series differ in colour class (``s0``, ``s1`` ...) and in marker shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from envkit.measure.report.svg_elements import (
    SERIES,
    figure,
    label,
    marker,
    nice_ticks,
    short,
    tag,
    tick_label,
    x_axis,
)

WIDTH = 720.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its interval, in the units of the axis; ``label`` is printed at the right edge."""

    series: int
    name: str
    value: float
    low: float
    high: float
    label: str


def bars(key: str, title: str, description: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars that start at zero, with whiskers for intervals.

    Args:
        key: prefix of element ids, unique on the page.
        title: title, read aloud and shown as tooltip.
        description: content of the chart in a sentence.
        rows: bars from top to bottom, values >= 0.
    """
    left, right, pitch, top = 150.0, 150.0, 34.0, 6.0
    ends = [bar.high if math.isfinite(bar.high) else bar.value for bar in rows]
    ticks = nice_ticks(0.0, max([*ends, 1e-9]))
    span, bottom = WIDTH - left - right, top + pitch * len(rows)

    def x(value: float) -> float:
        return left + span * value / ticks[-1]

    parts = [x_axis([(x(tick), tick_label(tick)) for tick in ticks], top, bottom)]
    for i, bar in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        width = x(bar.value) - left
        parts.append(label(left - 10, middle + 4, short(bar.name, 20), "end"))
        parts.append(
            tag("rect", x=left, y=middle - 9, width=width, height=18, class_=f"fill s{bar.series % SERIES}")
        )
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            low, high = x(bar.low), x(bar.high)
            capped = f"M{low:.1f} {middle - 5:.1f}v10m0 -5H{high:.1f}m0 -5v10"
            parts.append(tag("path", d=capped, class_="whisker"))
        parts.append(label(WIDTH, middle + 4, bar.label, "end", "number"))
    return figure(key, title, description, WIDTH, bottom + 24, parts)


def dots(
    key: str, title: str, description: str, series: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]
) -> Markup:
    """One row per category, one marker per series, on a shared axis from 0 to 100.

    Args:
        key: prefix of element ids, unique on the page.
        title: title of the chart.
        description: content of the chart in a sentence.
        series: names for the legend.
        rows: (category, one value in [0, 100] per series; NaN if there is none).
    """
    left, right, pitch, top = 150.0, 20.0, 30.0, 30.0
    span, legend_x, legend = WIDTH - left - right, left, list[Markup]()
    for i, name in enumerate(series):
        text = short(name, 20)
        width = 15 + 7.2 * len(text)
        if legend_x > left and legend_x + width > WIDTH - right:
            legend_x, top = left, top + 18
        legend += [marker(i, legend_x + 5, top - 18), label(legend_x + 15, top - 14, text)]
        legend_x += width + 25
    bottom = top + pitch * len(rows)
    ticks = nice_ticks(0.0, 100.0)
    parts = [x_axis([(left + span * tick / 100, tick_label(tick)) for tick in ticks], top, bottom), *legend]
    for row, (category, values) in enumerate(rows):
        middle = top + pitch * (row + 0.5)
        parts.append(label(left - 10, middle + 4, short(category, 20), "end"))
        parts.append(tag("path", d=f"M{left:.1f} {middle:.1f}h{span:.1f}", class_="guide"))
        for i, value in enumerate(values):
            if math.isfinite(value):
                offset = (i - (len(values) - 1) / 2) * 4  # equal values stay visible side by side
                parts.append(marker(i, left + span * value / 100, middle + offset))
    return figure(key, title, description, WIDTH, bottom + 24, parts)


def line(
    key: str,
    title: str,
    description: str,
    points: Sequence[tuple[float, float]],
    *,
    unit_interval: bool = False,
) -> Markup:
    """A small panel with each value as a dot and their moving mean as a line.

    Args:
        key: prefix of element ids, unique on the page.
        title: title of the chart.
        description: content of the chart in a sentence.
        points: (step, value), sorted by step, at least one, all finite.
        unit_interval: if True, the value axis covers at least [0, 1].
    """
    width, height, left, top, right, bottom = 350.0, 190.0, 46.0, 8.0, 8.0, 160.0
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks = nice_ticks(min([*ys, 0.0]), max([*ys, 1.0 if unit_interval else 0.0]))
    first, last = xs[0], max(xs[-1], xs[0] + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * (x - first) / (last - first)
        return across, bottom - (bottom - top) * (y - ticks[0]) / (ticks[-1] - ticks[0])

    parts: list[Markup] = []
    for tick in ticks:
        y = place(first, tick)[1]
        parts.append(tag("path", d=f"M{left:.1f} {y:.1f}H{width - right:.1f}", class_="grid"))
        parts.append(label(left - 8, y + 4, tick_label(tick), "end", "number"))
    parts.append(label(left, height - 10, f"step {first:g}", kind="number"))
    parts.append(label(width - right, height - 10, f"{last:g}", "end", "number"))
    for x, y in points:
        across, up = place(x, y)
        parts.append(tag("circle", cx=across, cy=up, r=2.0, class_="raw"))
    path = "L".join(f"{across:.1f} {up:.1f}" for across, up in map(place, xs, moving_mean(ys, len(ys) // 12)))
    parts.append(tag("path", d=f"M{path}", class_="curve"))
    return figure(key, title, description, width, height, parts)


@dataclass(frozen=True, slots=True)
class Spot:
    """A point with the interval of ``y``.

    Args:
        series: index of its colour and marker.
        name: label beside the point.
        x: finite, > 0.
        y: in [0, 100].
        low, high: ends of the interval of ``y``.
        best: True if the point is on the Pareto frontier.
    """

    series: int
    name: str
    x: float
    y: float
    low: float
    high: float
    best: bool


def scatter(key: str, title: str, description: str, spots: Sequence[Spot], unit: str) -> Markup:
    """Points over a logarithmic axis, with a line along the Pareto frontier.

    Args:
        key: prefix of element ids, unique on the page.
        title: title of the chart.
        description: content of the chart in a sentence.
        spots: points, at least one; left and up is better.
        unit: prefix of the numbers on the horizontal axis.
    """
    left, right, top, bottom, height = 46.0, 24.0, 12.0, 300.0, 330.0
    first = math.floor(math.log10(min(spot.x for spot in spots)) - 0.05)
    last = max(math.ceil(math.log10(max(spot.x for spot in spots)) + 0.05), first + 1)

    def across(x: float) -> float:
        return left + (WIDTH - left - right) * (math.log10(x) - first) / (last - first)

    def up(y: float) -> float:
        return bottom - (bottom - top) * y / 100

    powers = range(first, last + 1)
    ticks = [(across(10.0**power), f"{unit}{10.0**power:.{max(0, -power)}f}") for power in powers]
    parts = [x_axis(ticks, top, bottom)]
    for tick in (0, 25, 50, 75, 100):
        parts.append(tag("path", d=f"M{left:.1f} {up(tick):.1f}H{WIDTH - right:.1f}", class_="grid"))
        parts.append(label(left - 8, up(tick) + 4, str(tick), "end", "number"))
    best = sorted((across(spot.x), up(spot.y)) for spot in spots if spot.best)
    if len(best) > 1:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in best[1:])
        parts.append(tag("path", d=f"M{best[0][0]:.1f} {best[0][1]:.1f}{steps}", class_="frontier"))
    for spot in spots:
        x, y = across(spot.x), up(spot.y)
        if math.isfinite(spot.low) and math.isfinite(spot.high):
            parts.append(tag("path", d=f"M{x:.1f} {up(spot.low):.1f}V{up(spot.high):.1f}", class_="whisker"))
        at_end = x > WIDTH / 2
        name = label(x - 10 if at_end else x + 10, y - 7, short(spot.name, 28), "end" if at_end else "start")
        parts += [marker(spot.series, x, y), name]
    return figure(key, title, description, WIDTH, height, parts)


@dataclass(frozen=True, slots=True)
class Curve:
    """A named series of (x, y), sorted by ``x``, with ``x`` >= 1 and ``y`` in [0, 100]."""

    series: int
    name: str
    points: tuple[tuple[float, float], ...]


def curves(key: str, title: str, description: str, rows: Sequence[Curve]) -> Markup:
    """Lines over a base-2 logarithmic axis, each with its name at the end.

    Args:
        key: prefix of element ids, unique on the page.
        title: title of the chart.
        description: content of the chart in a sentence.
        rows: at least one curve, each with at least one point.
    """
    left, right, top, pitch = 46.0, 180.0, 12.0, 15.0
    bottom = max(230.0, top + pitch * len(rows))
    last_x = max(row.points[-1][0] for row in rows)
    doublings = max(1, math.ceil(math.log2(last_x) - 1e-9))

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log2(x) / doublings
        return left + (WIDTH - left - right) * share, bottom - (bottom - top) * y / 100

    ticks = [(place(2.0**power, 0)[0], f"{2**power}") for power in range(doublings + 1)]
    parts = [x_axis(ticks, top, bottom)]
    for tick in (0, 25, 50, 75, 100):
        y = place(1, tick)[1]
        parts.append(tag("path", d=f"M{left:.1f} {y:.1f}H{WIDTH - right:.1f}", class_="grid"))
        parts.append(label(left - 8, y + 4, str(tick), "end", "number"))
    ends = [place(*row.points[-1]) for row in rows]
    # Only names at the right edge can overlap.
    at_edge = [i for i, row in enumerate(rows) if row.points[-1][0] == last_x]
    heights = spread([ends[i][1] for i in at_edge], pitch, bottom)
    name_heights = dict(zip(at_edge, heights, strict=True))
    for i, row in enumerate(rows):
        spots = [place(x, y) for x, y in row.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(tag("path", d=f"M{path}", class_=f"series s{row.series % SERIES}"))
        parts += [marker(row.series, x, y) for x, y in spots]
        parts.append(label(ends[i][0] + 12, name_heights.get(i, ends[i][1]) + 4, short(row.name, 24)))
    return figure(key, title, description, WIDTH, bottom + 30, parts)


def svg_file(chart: Markup) -> str:
    """Make a chart a file of its own, in the colours of the reports."""
    style = resources.files("envkit.measure.report").joinpath("chart.css").read_text("utf-8")
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" style="background: '
        'var(--paper)" '
    )
    opened, closed = str(chart).removeprefix("<svg ").split(">", 1)
    return f"{head}{opened}><style>\n{style}</style>{closed}\n"


def spread(heights: Sequence[float], apart: float, lowest: float) -> list[float]:
    """Move heights so that they are at least ``apart``, none of them below ``lowest``, the largest."""
    placed, order = [*heights], sorted(range(len(heights)), key=lambda i: heights[i])
    last = -math.inf
    for index in order:
        last = placed[index] = max(placed[index], last + apart)
    last = lowest + apart
    for index in reversed(order):
        last = placed[index] = min(placed[index], last - apart)
    return placed


def moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and up to ``reach`` neighbours on each side; as long as ``values``."""
    spans = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]
