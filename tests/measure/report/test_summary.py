"""The numbers of a report against hand counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from envkit.measure.number_text import MINUS, NONE
from envkit.measure.report.data import Difference, ReportData, Row, TaskResult
from envkit.measure.report.summary import summarise
from envkit.measure.report.tables import HELD_OUT_FAILED, Table, results, rewards
from envkit.measure.report.text import headline, warnings


def test_an_arm_in_numbers(run: ReportData) -> None:
    base, sft, _, oracle = summarise(run).rows
    assert sft.solve_rate.interval is not None
    assert sft.solve_rate.interval.estimate == pytest.approx(15 / 40)  # (2+4+3+5+1) of 5 x 8
    assert sft.solve_rate.interval.clusters == 40
    assert sft.rates[1].interval is not None
    assert sft.rates[1].interval.estimate == 1.0  # with 8 of 8 drawn, one solve is enough
    assert sft.tokens_per_solve == pytest.approx(80_000 / 240)
    assert (sft.seconds, sft.tasks, sft.voids) == (40.0, 80, 0)
    assert base.tokens_per_solve == pytest.approx(80_000 / 16)
    assert (base.control, oracle.control) == (False, True)


def test_voids_leave_every_rate_but_are_counted(run: ReportData) -> None:
    items = (
        TaskResult("a", "f", "", 8, 4),
        TaskResult("b", "g", "", 6, 3, voids=2),
        TaskResult("c", "h", "", 0, 0, voids=8),
    )
    (row,) = summarise(replace(run, rows=(Row("x", "", items),), differences=())).rows
    assert row.solve_rate.interval is not None
    assert (row.solve_rate.interval.estimate, row.tasks) == (0.5, 2)
    assert row.rates[1].tasks == 1  # only task a has 8 graded samples
    assert (row.voids, row.samples) == (10, 14)


def test_held_out_checks_are_shown_beside_the_solve_rate(run: ReportData) -> None:
    assert HELD_OUT_FAILED not in results(run, summarise(run)).head
    items = (TaskResult("a", "f", "", 8, 4, held_out=4, held_out_failed=1), TaskResult("b", "g", "", 8, 0))
    asked, other = Row("x", "", items), Row("y", "", (TaskResult("a", "f", "", 8, 0),))
    data = replace(run, rows=(asked, other), differences=())
    summary = summarise(data)
    table = results(data, summary)
    at = table.head.index(HELD_OUT_FAILED)
    assert [row[at] for row in table.rows] == ["25.0", NONE]
    assert any("x: 1 of 4 solved samples fail the held-out" in text for text in warnings(data, summary))
    with pytest.raises(ValueError, match="held_out_failed <= held_out <= solved"):
        TaskResult("a", "f", "", 8, 4, held_out=5)


def test_rewards_are_shown_by_source_if_they_say_more_than_the_solve_rate(run: ReportData) -> None:
    def table(*items: TaskResult) -> Table:
        data = replace(run, rows=(Row("x", "", items), Row("y", "", ())), differences=())
        return rewards(data, summarise(data))

    plain = TaskResult("a", "f", "", 4, 1, rewards={"right": 1.0})
    assert table(plain).rows == ()
    assert table(replace(plain, rewards={"right": 1.5})).rows == (("x", "0.375", "0.375"),)
    costly = TaskResult("b", "g", "", 4, 4, rewards={"right": 4.0, "turn_cost": -1.0})
    found = table(plain, costly)
    assert found.head == ("Agent", "Reward", "right", "turn_cost")
    assert found.rows == (("x", "0.500", "0.625", f"{MINUS}0.125"),)
    with pytest.raises(ValueError, match="expected finite numbers"):
        replace(plain, rewards={"right": math.inf})


def test_differences_pair_by_task(run: ReportData) -> None:
    whole, own, undone = summarise(run).differences
    assert whole.interval is not None
    assert own.interval is not None
    assert undone.interval is not None
    assert whole.interval.estimate == pytest.approx((15 - 1) / 40)
    assert whole.interval.low > 0
    assert own.interval.estimate == pytest.approx(0)
    assert not own.interval.excludes_zero
    assert own.detectable > 0
    assert undone.interval.high < 0
    assert (whole.tasks, whole.unpaired) == (80, 0)


def test_detectable_difference_is_infinite_if_no_task_differs(run: ReportData) -> None:
    base = run.rows[0]
    pairs = (Difference("twin", "base", ""),)
    data = replace(run, rows=(base, replace(base, name="twin")), differences=pairs)
    (entry,) = summarise(data).differences
    assert entry.detectable == math.inf
    (said,) = headline(data, summarise(data))
    assert "0.0 points [\N{MINUS SIGN}8.8, +8.8]. The interval includes zero" in said  # 1 - 0.025 ** (1 / 40)
    assert said.endswith("so this run does not show a difference.")


def test_detectable_difference_is_infinite_if_few_sources_differ(run: ReportData) -> None:
    base = run.rows[0]
    other = next(place for place, item in enumerate(base.results) if not item.solved)
    results = tuple(
        replace(item, solved=1) if place == other else item for place, item in enumerate(base.results)
    )
    pairs = (Difference("twin", "base", ""),)
    data = replace(run, rows=(base, replace(base, name="twin", results=results)), differences=pairs)
    (entry,) = summarise(data).differences
    assert entry.interval is not None
    assert entry.interval.widened
    assert entry.detectable == math.inf


def test_an_arm_that_solves_all_or_nothing_is_not_certain(run: ReportData) -> None:
    nothing = replace(run.rows[0], results=tuple(replace(item, solved=0) for item in run.rows[0].results))
    data = replace(run, rows=(nothing, run.rows[3]), differences=(Difference("oracle", "base", ""),))
    summary = summarise(data)
    for row, ends in zip(summary.rows, ((0.0, 0.0881), (0.9119, 1.0)), strict=True):
        for rate in row.rates:
            assert rate.interval is not None
            assert rate.interval.exact
            assert (rate.interval.low, rate.interval.high) == pytest.approx(ends, abs=1e-4)
    (found,) = summary.differences
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((1 - 2 * 0.0881, 1.0), abs=1e-4)
    assert found.detectable == math.inf


def test_tasks_of_one_arm_only_are_left_out_and_counted(run: ReportData) -> None:
    base, sft, *_ = run.rows
    short = replace(sft, results=sft.results[:60])
    (entry,) = summarise(
        replace(run, rows=(base, short), differences=(Difference("SFT", "base", ""),))
    ).differences
    assert (entry.tasks, entry.unpaired) == (60, 20)
    (none,) = summarise(
        replace(run, rows=(base, replace(sft, results=())), differences=(Difference("SFT", "base", ""),))
    ).differences
    assert (none.interval, none.tasks, none.unpaired) == (None, 0, 80)


def test_rates_by_operator(run: ReportData) -> None:
    comparison, variable = summarise(run).operators
    assert (comparison.operator, comparison.tasks) == ("comparison", 40)
    assert (variable.operator, variable.tasks) == ("wrong variable", 40)
    assert run.ks == (1, 8)
    first, eighth = comparison.rates
    assert first[1] == pytest.approx(15 / 40)  # 80 tasks walk through all five values
    assert eighth[0] == pytest.approx(8 / 40)  # one task in five is solved once in its eight samples
    assert len(first) == len(eighth) == 3  # the control is no contestant
    base, sft, *_ = run.rows
    partial = summarise(
        replace(run, rows=(base, replace(sft, results=sft.results[:1])), differences=())
    ).operators
    assert math.isnan(partial[1].rates[0][1])


def test_a_difference_may_count_only_what_search_leaves_unsolved(run: ReportData) -> None:
    search = replace(
        run.rows[0],
        name="search",
        results=tuple(
            replace(item, samples=1, solved=number % 4 == 0)
            for number, item in enumerate(run.rows[0].results)
        ),
    )
    pair = Difference("SFT+RL", "base", "Where search fails", unsolved_by="search")
    data = replace(run, rows=(*run.rows, search), differences=(pair,))
    (entry,) = summarise(data).differences
    left = [number for number in range(80) if number % 4]
    rates = {row.name: [item.solved / item.samples for item in row.results] for row in run.rows}
    wanted = sum(rates["SFT+RL"][number] - rates["base"][number] for number in left) / len(left)
    assert entry.interval is not None
    assert entry.interval.estimate == pytest.approx(wanted)
    assert (entry.tasks, entry.unpaired) == (60, 0)
