"""`envkit study passk`: rows before and after training, by pass@k."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sample_reports
from typer.testing import CliRunner

from envkit import UsageError
from envkit.cli.main import app
from envkit.measure.passk import compare_pass_at_k, sentences
from envkit.measure.report.data import Origin, ReportData, Row, TaskResult
from envkit.measure.report.page import load_report

OFFICE = Path(__file__).parents[2] / "docs" / "results" / "invoice-office" / "seed-0"
UNTOUCHED, TRAINED = Origin("local", "m"), Origin("local", "m", "adapter")


def made(name: str, origin: Origin, solved: list[int], samples: int = 8) -> Row:
    results = [
        TaskResult(f"task-{number}", f"source-{number}", "", samples, count)
        for number, count in enumerate(solved)
    ]
    return Row(name, "", tuple(results), origin=origin)


def report(*rows: Row, run: str = "bench-1") -> ReportData:
    return replace(sample_reports.report(run, environment="env"), rows=rows, differences=())


def test_rare_solutions_made_frequent_are_caught_up_with() -> None:
    base = made("base", UNTOUCHED, [1, 1, 1, 1])
    trained = made("RL", TRAINED, [8, 8, 0, 0])
    [found] = compare_pass_at_k([report(base, trained)])
    assert [point.k for point in found.points] == [1, 2, 4, 8]
    assert [point.row.estimate for point in found.points] == [0.5] * 4
    assert [point.against.estimate for point in found.points] == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1.0])
    assert [point.difference.estimate for point in found.points] == pytest.approx([3 / 8, 2 / 8, 0, -0.5])
    assert found.crossing == 4
    assert found.learned == ("task-0", "task-1")
    assert found.learned_from_none == ()
    assert sentences(found)[0] == "From k = 4 on, base solves as many tasks or more."
    assert "2 tasks. base solved 2 of them at least once, and 0 never." in sentences(found)[1]


def test_new_tasks_are_told_apart_and_the_largest_k_is_what_all_tasks_have() -> None:
    base = made("base", UNTOUCHED, [0, 3, 6], samples=6)
    trained = made("RL", TRAINED, [7, 8, 8, 8])
    [found] = compare_pass_at_k([report(base), report(trained)])
    assert [point.k for point in found.points] == [1, 2, 4, 6]
    assert found.crossing is None
    assert found.learned == ("task-0",)
    assert found.learned_from_none == ("task-0",)
    assert sentences(found)[0] == "RL is ahead at every k up to 6."


def test_a_short_lead_in_the_middle_is_no_crossing_before_it() -> None:
    base, trained = made("base", UNTOUCHED, [2, 2, 0]), made("RL", TRAINED, [4, 0, 0])
    [found] = compare_pass_at_k([report(base, trained)])
    signs = [point.difference.estimate > 0 for point in found.points]
    assert signs == [False] * 4
    assert found.crossing == 1


def test_a_late_lead_is_no_lead_at_every_k_and_chance_is_told() -> None:
    base, trained = made("base", UNTOUCHED, [8, 0, 0, 0]), made("RL", TRAINED, [1, 1, 1, 1])
    [found] = compare_pass_at_k([report(base, trained)])
    assert found.crossing is None
    assert (found.learned, found.lost) == ((), ("task-0",))
    lead, learned, shown = sentences(found)
    assert learned.endswith("The other way round: 1. Two equal rows have about as many both ways.")
    assert lead == "RL is ahead at every k up to 8 except k = 1, 2."
    assert shown == "The interval of the difference includes zero at every k."


def test_what_is_clear_of_zero_is_told() -> None:
    base, trained = made("base", UNTOUCHED, [1] * 40), made("RL", TRAINED, [8] * 20 + [0] * 20)
    [found] = compare_pass_at_k([report(base, trained)])
    assert sentences(found)[2] == (
        "The interval of the difference is clear of zero: above zero at k = 1, 2 and below zero at k = 8."
    )


def test_runs_of_different_conditions_are_refused() -> None:
    base, trained = (
        report(made("base", UNTOUCHED, [1])),
        report(made("RL", TRAINED, [1]), run="bench-2"),
    )
    conditions = replace(sample_reports.CONDITIONS, environment="env", max_turns=3)
    with pytest.raises(UsageError, match="bench-1 and bench-2 differ in max_turns"):
        compare_pass_at_k([base, replace(trained, conditions=conditions)])


def test_a_script_of_two_runs_may_take_another_time() -> None:
    base, trained = made("base", UNTOUCHED, [1, 1]), made("RL", TRAINED, [8, 8])
    search = made("enumerate", Origin(), [8, 0])
    later = replace(search, results=tuple(replace(result, seconds=9.0) for result in search.results))
    [found] = compare_pass_at_k([report(base, search), report(trained, later, run="bench-2")])
    assert found.row == "RL"
    other = made("enumerate", Origin(), [8, 8])
    with pytest.raises(UsageError, match="two rows of env are named 'enumerate'"):
        compare_pass_at_k([report(base, search), report(trained, other, run="bench-2")])


def test_a_model_that_was_shown_solved_tasks_is_not_untouched() -> None:
    shown = made("shown", replace(UNTOUCHED, shots=3), [1, 0])
    base, trained = made("base", UNTOUCHED, [1, 1]), made("RL", TRAINED, [8, 8])
    [found] = compare_pass_at_k([report(shown, base, trained)], row="RL")
    assert found.against == "base"


def test_an_adapter_is_compared_with_its_own_base() -> None:
    larger = made("larger", replace(UNTOUCHED, digest="other weights"), [6, 6])
    base, trained = made("base", UNTOUCHED, [1, 1]), made("RL", TRAINED, [8, 8])
    greedy = made("greedy", replace(UNTOUCHED, temperature=0.1), [6, 6])
    [found] = compare_pass_at_k([report(larger, greedy, base, trained)])
    assert found.against == "base"
    with pytest.raises(UsageError, match="no row of the untouched model of RL, asked alike, to compare with"):
        compare_pass_at_k([report(larger, trained)])


@pytest.mark.parametrize(
    ("rows", "row", "against", "words"),
    [
        ([made("base", UNTOUCHED, [1])], None, None, "no row of a trained adapter"),
        ([made("RL", TRAINED, [1])], None, None, "no row of the untouched model of RL"),
        ([made("base", UNTOUCHED, [1]), made("RL", TRAINED, [1])], "SFT", None, "env has no row 'SFT'"),
        ([made("base", UNTOUCHED, [0], samples=0), made("RL", TRAINED, [1])], None, None, "in common"),
        ([made("base", UNTOUCHED, [1]), made("base", UNTOUCHED, [2])], "base", None, "two rows of env"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    rows: list[Row], row: str | None, against: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        compare_pass_at_k([report(each) for each in rows], row, against)


def test_a_run_that_measured_nothing_says_so() -> None:
    with pytest.raises(UsageError, match="env: nothing was measured"):
        compare_pass_at_k([report()])


def test_a_published_run_is_read_as_its_report_reads_it() -> None:
    shown = CliRunner().invoke(app, ["study", "passk", str(OFFICE), "--json"])
    found = {one["row"]: one for one in json.loads(shown.stdout)}
    rates = {row.name: row for row in load_report(OFFICE).rows}
    assert found["SFT+RL"]["points"][0]["row"]["estimate"] == pytest.approx(
        sum(each.solved / each.samples for each in rates["SFT+RL"].results) / len(rates["SFT+RL"].results)
    )
    assert [point["k"] for point in found["SFT+RL"]["points"]] == [1, 2, 4]
    text = CliRunner().invoke(app, ["study", "passk", str(OFFICE), "--row", "SFT+RL"]).stdout
    assert "SFT+RL against base, 37 tasks" in text
