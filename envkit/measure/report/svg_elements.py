"""SVG elements as markup: text, markers, axes and the figure around a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

SERIES = 5  # colours in the style sheet; further series reuse them


def nice_ticks(low: float, high: float) -> list[float]:
    """About five ticks that enclose ``[low, high]``, low <= high, at steps of 1, 2 or 5 times 10 ** n."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # floats of this size cannot resolve the difference
        high = low + 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def figure(
    key: str, title: str, description: str, width: float, height: float, parts: Sequence[Markup]
) -> Markup:
    """Wrap a chart's parts in an ``svg`` with a title and a description for screen readers."""
    head = [
        tag("title", Markup.escape(title), id=f"{key}-title"),
        tag("desc", Markup.escape(description), id=f"{key}-desc"),
    ]
    box, labels = f"0 0 {width:g} {height:g}", f"{key}-title {key}-desc"
    return tag("svg", *head, *parts, role="img", aria_labelledby=labels, viewBox=box, class_="chart")


def x_axis(ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> Markup:
    """Vertical grid lines at ticks (x, text), with the text below each."""
    marks = [tag("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}", class_="grid") for x, _ in ticks]
    return Markup().join([*marks, *(label(x, bottom + 17, text, "middle", "number") for x, text in ticks)])


def marker(series: int, x: float, y: float) -> Markup:
    """A point in the colour and the shape of its series."""
    look = f"fill s{series % SERIES}"
    if series % 3 == 0:
        return tag("circle", cx=x, cy=y, r=4.5, class_=look)
    if series % 3 == 1:
        return tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=look)
    return tag("path", d=f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z", class_=look)


def label(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> Markup:
    """Text whose start, middle or end (``anchor``) is at ``x``."""
    return tag("text", Markup.escape(text), x=x, y=y, text_anchor=anchor, class_=kind)


def tag(name: str, *children: Markup, **attributes: str | float) -> Markup:
    """An element. ``_`` in attribute names becomes ``-``; floats get one decimal."""
    pairs = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup().join(pairs), Markup().join(children))


def short(text: str, limit: int) -> str:
    """Cut a text that is longer than ``limit`` in the middle: beginning and end tell rows of runs apart."""
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - 1 - end]}…{text[-end:]}"


def tick_label(tick: float) -> str:
    """Format a tick with a true minus sign."""
    return f"{tick:g}".replace("-", "\N{MINUS SIGN}")
