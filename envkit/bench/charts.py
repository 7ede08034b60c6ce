"""Charts as inline SVG: pure functions from numbers to markup, coloured by the page's style sheet.

Every chart carries a title and a description for screen readers; its numbers also stand in a table
beside it. Series are told apart by colour class (``s0``, ``s1`` ...) and by marker shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 720.0
SERIES = 5  # colours in the style sheet; further series begin again


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its whisker, in the units of the axis; ``label`` is printed at its end."""

    series: int
    name: str
    value: float
    low: float
    high: float
    label: str


def bars(key: str, title: str, description: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars from zero with interval whiskers.

    Args:
        key: prefix of element ids, unique on the page.
        title: what the chart shows, read aloud and shown as tooltip.
        description: its content in a sentence.
        rows: from top to bottom, values >= 0.
    """
    left, right, pitch, top = 150.0, 150.0, 34.0, 6.0
    ends = [bar.high if math.isfinite(bar.high) else bar.value for bar in rows]
    ticks = nice_ticks(0.0, max([*ends, 1e-9]))
    span, bottom = WIDTH - left - right, top + pitch * len(rows)

    def x(value: float) -> float:
        return left + span * value / ticks[-1]

    parts = [_x_axis([(x(tick), _round(tick)) for tick in ticks], top, bottom)]
    for i, bar in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        width = x(bar.value) - left
        parts.append(_text(left - 10, middle + 4, _short(bar.name, 20), "end"))
        parts.append(
            _tag("rect", x=left, y=middle - 9, width=width, height=18, class_=f"fill s{bar.series % SERIES}")
        )
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            low, high = x(bar.low), x(bar.high)
            capped = f"M{low:.1f} {middle - 5:.1f}v10m0 -5H{high:.1f}m0 -5v10"
            parts.append(_tag("path", d=capped, class_="whisker"))
        parts.append(_text(WIDTH, middle + 4, bar.label, "end", "number"))
    return _svg(key, title, description, WIDTH, bottom + 24, parts)


def dots(
    key: str, title: str, description: str, series: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]
) -> Markup:
    """One row per category, one marker per series, on a shared axis from 0 to 100.

    Args:
        key: prefix of element ids, unique on the page.
        title: what the chart shows.
        description: its content in a sentence.
        series: names for the legend.
        rows: (category, one value in [0, 100] per series, NaN where there is none).
    """
    left, right, pitch, top = 150.0, 20.0, 30.0, 30.0
    span, bottom = WIDTH - left - right, top + pitch * len(rows)
    ticks = nice_ticks(0.0, 100.0)
    parts = [_x_axis([(left + span * tick / 100, _round(tick)) for tick in ticks], top, bottom)]
    at = left
    for i, name in enumerate(series):
        shown = _short(name, 20)
        parts += [_marker(i, at + 5, 12.0), _text(at + 15, 16, shown)]
        at += 40 + 7.2 * len(shown)
    for row, (category, values) in enumerate(rows):
        middle = top + pitch * (row + 0.5)
        parts.append(_text(left - 10, middle + 4, _short(category, 20), "end"))
        parts.append(_tag("path", d=f"M{left:.1f} {middle:.1f}h{span:.1f}", class_="guide"))
        for i, value in enumerate(values):
            if math.isfinite(value):
                lane = (i - (len(values) - 1) / 2) * 4  # equal values stay visible side by side
                parts.append(_marker(i, left + span * value / 100, middle + lane))
    return _svg(key, title, description, WIDTH, bottom + 24, parts)


def line(
    key: str,
    title: str,
    description: str,
    points: Sequence[tuple[float, float]],
    *,
    unit_interval: bool = False,
) -> Markup:
    """A small panel: each measured value as a dot, their moving mean as a line.

    Args:
        key: prefix of element ids, unique on the page.
        title: what the chart shows.
        description: its content in a sentence.
        points: (step, value) by rising step, at least one, all finite.
        unit_interval: the value axis shows at least [0, 1].
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
        parts.append(_tag("path", d=f"M{left:.1f} {y:.1f}H{width - right:.1f}", class_="grid"))
        parts.append(_text(left - 8, y + 4, _round(tick), "end", "number"))
    parts.append(_text(left, height - 10, f"step {first:g}", kind="number"))
    parts.append(_text(width - right, height - 10, f"{last:g}", "end", "number"))
    for x, y in points:
        across, up = place(x, y)
        parts.append(_tag("circle", cx=across, cy=up, r=2.0, class_="raw"))
    path = "L".join(f"{across:.1f} {up:.1f}" for across, up in map(place, xs, moving_mean(ys, len(ys) // 12)))
    parts.append(_tag("path", d=f"M{path}", class_="curve"))
    return _svg(key, title, description, width, height, parts)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose ``[low, high]``, low <= high."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # below what floats of this size can divide
        high = low + 1.0
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value with up to ``reach`` neighbours on either side, same length."""
    spans = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def _svg(
    key: str, title: str, description: str, width: float, height: float, parts: Sequence[Markup]
) -> Markup:
    head = [
        _tag("title", Markup.escape(title), id=f"{key}-title"),
        _tag("desc", Markup.escape(description), id=f"{key}-desc"),
    ]
    box, labels = f"0 0 {width:g} {height:g}", f"{key}-title {key}-desc"
    return _tag("svg", *head, *parts, role="img", aria_labelledby=labels, viewBox=box, class_="chart")


def _x_axis(ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> Markup:
    marks = [_tag("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}", class_="grid") for x, _ in ticks]
    return Markup().join([*marks, *(_text(x, bottom + 17, label, "middle", "number") for x, label in ticks)])


def _marker(series: int, x: float, y: float) -> Markup:
    look = f"fill s{series % SERIES}"
    if series % 3 == 0:
        return _tag("circle", cx=x, cy=y, r=4.5, class_=look)
    if series % 3 == 1:
        return _tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=look)
    return _tag("path", d=f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z", class_=look)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> Markup:
    return _tag("text", Markup.escape(text), x=x, y=y, text_anchor=anchor, class_=kind)


def _tag(name: str, *children: Markup, **attributes: str | float) -> Markup:
    """An element; ``_`` in attribute names stands for ``-``, numbers keep one decimal."""
    pairs = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup().join(pairs), Markup().join(children))


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _round(tick: float) -> str:
    return f"{tick:g}".replace("-", "\N{MINUS SIGN}")
