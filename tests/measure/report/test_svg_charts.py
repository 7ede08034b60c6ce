"""Charts: the geometry matches the numbers, and labels are escaped."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.measure.report.svg_charts import Bar, Curve, Spot, bars, curves, dots, line, moving_mean, scatter
from envkit.measure.report.svg_elements import nice_ticks


def _floats(elements: list[ET.Element], attribute: str) -> list[float]:
    return [float(element.attrib[attribute]) for element in elements]


def test_bar_lengths_are_proportional_and_start_at_zero() -> None:
    rows = [Bar(0, "a", 10, 5, 15, "ten"), Bar(1, "b", 40, 30, 50, "forty")]
    rects = ET.fromstring(bars("k", "title", "said", rows)).findall("rect")
    widths = _floats(rects, "width")
    assert widths[1] / widths[0] == pytest.approx(4, rel=0.01)
    assert len(set(_floats(rects, "x"))) == 1


def test_a_bar_without_an_interval_has_no_whisker() -> None:
    inf = float("inf")
    chart = ET.fromstring(bars("k", "t", "d", [Bar(0, "a", 10, -inf, inf, "ten")]))
    assert len(chart.findall("rect")) == 1
    assert not [path for path in chart.findall("path") if path.attrib["class"] == "whisker"]


def test_a_missing_value_has_no_dot() -> None:
    chart = ET.fromstring(dots("k", "t", "d", ["x", "y"], [("row", [50.0, float("nan")])]))
    circles = chart.findall("circle")
    assert len(circles) == 2  # legend and the one value
    assert len(chart.findall("rect")) == 1  # legend only


def test_higher_values_are_drawn_higher() -> None:
    chart = ET.fromstring(line("k", "t", "d", [(1.0, 0.2), (2.0, 0.8), (3.0, 1.4)], unit_interval=True))
    heights = _floats(chart.findall("circle"), "cy")
    assert heights == sorted(heights, reverse=True)
    assert min(heights) >= 0  # a value beyond one stretches the axis


def test_labels_are_text_only() -> None:
    hostile = '</text><script>"&'
    chart = ET.fromstring(bars("k", hostile, hostile, [Bar(0, hostile, 1, 0, 2, hostile)]))
    assert {element.tag for element in chart.iter()} == {"svg", "title", "desc", "path", "text", "rect"}
    assert chart.findtext("title") == hostile


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_enclose_the_range_in_few_even_steps(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step * 1e-6
    assert ticks[-1] >= high - step * 1e-6
    assert 2 <= len(ticks) <= 8
    assert [x - y for x, y in zip(ticks[1:], ticks, strict=False)] == pytest.approx([step] * (len(ticks) - 1))


def test_moving_mean() -> None:
    assert moving_mean([1, 2, 6, 4], 1) == [1.5, 3, 4, 5]
    assert moving_mean([1, 2, 6], 0) == [1, 2, 6]


def test_a_scatter_joins_what_nothing_beats_and_names_every_point() -> None:
    spots = [
        Spot(0, "cheap", 0.001, 20.0, 15.0, 25.0, best=True),
        Spot(1, "dear <b>", 0.1, 80.0, 70.0, 88.0, best=True),
        Spot(2, "worse", 0.1, 40.0, -math.inf, math.inf, best=False),
    ]
    drawn = str(scatter("p", "Title", "Said.", spots, "$"))
    assert drawn.count('class="frontier"') == 1
    assert drawn.count('class="whisker"') == 2
    assert "dear &lt;b&gt;" in drawn
    assert ">$0.001<" in drawn
    assert ">$0.1<" in drawn
    lone = str(scatter("p", "Title", "Said.", spots[:1], "$"))
    assert "frontier" not in lone


def test_a_long_legend_is_wrapped() -> None:
    names = [f"agent number {i} of 7" for i in range(7)]
    chart = ET.fromstring(dots("k", "t", "d", names, [("row", [50.0] * 7)]))
    width, height = (float(end) for end in chart.attrib["viewBox"].split()[2:])
    places = [(element.attrib["x"], element.attrib["y"]) for element in chart.findall("text")]
    assert len(set(places)) == len(places)
    labels = [element for element in chart.findall("text") if element.text in names]
    assert len(labels) == 7
    assert all(float(each.attrib["x"]) + 7 * len(each.text or "") <= width for each in labels)
    [row] = [element for element in chart.findall("text") if element.text == "row"]
    assert max(_floats(labels, "y")) < float(row.attrib["y"]) < height


@pytest.mark.parametrize("count", [3, 8, 30])
def test_names_of_equal_curves_stay_in_the_picture(count: int) -> None:
    rows = [Curve(i, f"row {i}", ((1, 0.0), (4, 0.0))) for i in range(count)]
    chart = ET.fromstring(curves("c", "Title", "Said.", rows))
    heights = sorted(float(each.attrib["y"]) for each in chart.findall("text") if "row" in (each.text or ""))
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))
    assert heights[0] >= 10
    assert heights[-1] <= float(chart.attrib["viewBox"].split()[3])


def test_curves_double_from_tick_to_tick_and_their_names_do_not_overlap() -> None:
    rows = [Curve(i, f"row {i}", ((1, 10.0), (2, 20.0), (4, 30.0))) for i in range(3)]
    drawn = str(curves("c", "Title", "Said.", rows))
    assert [f">{k}</text>" in drawn for k in (1, 2, 4, 8)] == [True, True, True, False]
    heights = sorted(float(found) for found in re.findall(r'y="([\d.]+)"[^>]*>row', drawn))
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))
