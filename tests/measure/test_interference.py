"""The matrix of adapters by environments, and what it says of one adapter for several tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import sample_reports

from envkit import UsageError
from envkit.measure.number_text import MINUS, NONE
from envkit.measure.report.data import Origin, ReportData, Row, TaskResult
from envkit.measure.stats import Interval
from envkit.runtime.store import folder_name
from envkit.studies.interference.table import (
    BASE,
    JOINT,
    MERGED,
    SPECIALIST,
    Interference,
    MatrixCell,
    MatrixRow,
    make_matrix,
    sentences,
    write_page,
)

ARMS = (
    MatrixRow("base", BASE),
    MatrixRow("only desk", SPECIALIST, {"desk": 800}, 90),
    MatrixRow("only shell", SPECIALIST, {"shell": 800}, 90),
    MatrixRow("joint", JOINT, {"desk": 800, "shell": 400}, 90),
    MatrixRow("merged ties", MERGED, {"desk": 800, "shell": 800}),
)
NAMES = [arm.row for arm in ARMS]
GAIN = Interval(0.2, 0.1, 0.3, 50)


def report(environment: str, solved: dict[str, list[int]]) -> ReportData:
    """A report whose rows solved so many of 4 samples of each task; a task is 50 alike of 50 sources."""
    rows = [
        Row(
            name,
            "",
            tuple(
                TaskResult(f"task-{n}-{copy}", f"source-{n}-{copy}", "", 4, count)
                for n, count in enumerate(counts)
                for copy in range(50)
            ),
            origin=Origin("local", "m", "" if name == "base" else name),
        )
        for name, counts in solved.items()
    ]
    return replace(sample_reports.report(environment=environment), rows=tuple(rows), differences=())


def matrix(joint_on_shell: list[int]) -> Interference:
    desk = {"base": [0, 0], "only desk": [4, 2], "only shell": [1, 0], "joint": [4, 2], "merged ties": [0, 1]}
    shell = {"base": [0, 1], "only desk": [0, 1], "only shell": [3, 4], "merged ties": [3, 4]}
    return make_matrix(
        [report("desk", desk), report("shell", {**shell, "joint": joint_on_shell})],
        ARMS,
    )


def test_every_adapter_is_compared_with_each_environments_specialist() -> None:
    found = matrix([3, 4])
    assert found.environments == ("desk", "shell")
    rates = [[cell.rate.estimate for cell in row] for row in found.cells]
    assert rates == [[0, 1 / 8], [6 / 8, 1 / 8], [1 / 8, 7 / 8], [6 / 8, 7 / 8], [1 / 8, 7 / 8]]
    differences = [[cell.difference and cell.difference.estimate for cell in row] for row in found.cells]
    assert differences[1:3] == [[None, -6 / 8], [-5 / 8, None]]
    assert differences[3:] == [[0, 0], [-5 / 8, 0]]
    assert found.cells[0][0].detectable > 0


def test_one_of_many_environments_fails_at_a_corrected_level_only() -> None:
    far, near = Interval(-0.1, -0.14, -0.06, 50), Interval(-0.1, -0.16, -0.04, 50)
    held = MatrixCell(near, Interval(0.0, -0.02, 0.02, 50), corrected=Interval(0.0, -0.03, 0.03, 50))
    for corrected, verdict in ((near, "UNDECIDED"), (far, "FAILED")):
        cells = (MatrixCell(near, far, corrected=corrected), held, held)
        joint = MatrixRow("joint", JOINT, {"a": 1, "b": 1, "c": 1})
        assert Interference(("a", "b", "c"), (joint,), (cells,), 3 * (GAIN,)).verdict(0) == verdict


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(GAIN, "HELD"), (Interval(0.1, 0.04, 0.16, 50), "UNDECIDED"), (None, "UNDECIDED")],
)
def test_nothing_holds_unless_every_specialist_has_learned_what_could_be_lost(
    gain: Interval | None, verdict: str
) -> None:
    same = MatrixCell(GAIN, Interval(0.0, -0.02, 0.02, 50), corrected=Interval(0.0, -0.03, 0.03, 50))
    joint = MatrixRow("joint", JOINT, {"a": 1, "b": 1})
    assert Interference(("a", "b"), (joint,), ((same, same),), (GAIN, gain)).verdict(0) == verdict


def test_a_joint_adapter_is_judged_only_where_it_was_trained() -> None:
    worse = Interval(-0.5, -0.6, -0.4, 50)
    same = MatrixCell(GAIN, Interval(0.0, -0.02, 0.02, 50), corrected=Interval(0.0, -0.03, 0.03, 50))
    joint = MatrixRow("joint", JOINT, {"a": 1, "b": 1})
    cells = (same, same, MatrixCell(GAIN, worse, corrected=worse))
    found = Interference(("a", "b", "c"), (joint,), (cells,), 3 * (GAIN,))
    assert found.verdict(0) == "HELD"
    said = " ".join(sentences(found))
    assert "joint was not trained on c, and is not judged there" in said
    assert "c " + MINUS not in said


@pytest.mark.parametrize(
    ("joint_on_shell", "verdict"),
    [([3, 4], "HELD"), ([4, 4], "HELD"), ([2, 4], "FAILED"), ([1, 0], "FAILED")],
)
def test_a_joint_adapter_holds_only_if_it_is_as_good_everywhere(
    joint_on_shell: list[int], verdict: str
) -> None:
    found = matrix(joint_on_shell)
    assert found.verdict(NAMES.index("joint")) == verdict
    assert found.verdict(NAMES.index("merged ties")) == "FAILED"


def test_few_tasks_decide_nothing() -> None:
    few = report("desk", {"only desk": [2], "joint": [2]})
    rows = [replace(row, results=row.results[:3]) for row in few.rows]
    noisy = replace(
        rows[1], results=tuple(replace(r, solved=s) for r, s in zip(rows[1].results, (1, 2, 3), strict=True))
    )
    found = make_matrix(
        [replace(few, rows=(rows[0], noisy))], [ARMS[1], MatrixRow("joint", JOINT, {"desk": 800})]
    )
    assert found.verdict(1) == "UNDECIDED"


def test_without_a_specialist_for_every_environment_nothing_holds() -> None:
    shell = report("shell", {"joint": [4, 4]})
    desk = report("desk", {"only desk": [2], "joint": [4]})
    only = [replace(shell, rows=(*shell.rows, replace(shell.rows[0], name="only desk"))), desk]
    assert make_matrix(only, [ARMS[1], ARMS[3]]).verdict(1) == "UNDECIDED"


def test_what_the_matrix_cannot_show_is_said() -> None:
    said = " ".join(sentences(matrix([2, 4])))
    assert "points or more would be seen in four of five repetitions" in said
    assert "joint, within 5.0 points of every specialist: FAILED (desk 0.0" in said
    assert f"shell {MINUS}12.5 [" in said
    assert "joint was trained on 400 episodes of shell, its specialist on 800" in said
    assert "of desk, its specialist" not in said
    assert "joint imitated 90 known answers, its specialists 180 together" in said
    equal = [replace(arm, known_answers=180) if arm.kind == JOINT else arm for arm in ARMS]
    unknown = [replace(arm, known_answers=None) if arm.row == "only desk" else arm for arm in ARMS]
    for arms in (equal, unknown):
        assert "imitated" not in " ".join(sentences(replace(matrix([2, 4]), arms=tuple(arms))))
    assert "Specialist minus base: desk +75.0 [" in said
    assert "say nothing of other seeds" in said


def test_a_row_of_void_episodes_alone_is_named() -> None:
    void = report("desk", {"only desk": [1], "joint": [1]})
    lost = replace(
        void.rows[1], results=tuple(replace(each, samples=0, solved=0) for each in void.rows[1].results)
    )
    with pytest.raises(UsageError, match="joint has no graded episode"):
        make_matrix([replace(void, rows=(void.rows[0], lost))], [ARMS[1], ARMS[3]])


def test_a_row_that_is_not_played_yet_is_named() -> None:
    with pytest.raises(UsageError, match="the report of desk has no row 'joint' yet"):
        make_matrix([report("desk", {"base": [0]})], [ARMS[0], ARMS[3]])


def test_the_page_shows_both_tables(tmp_path: Path) -> None:
    page = write_page(matrix([2, 4]), tmp_path, "envkit study interference a b").read_text()
    assert "| joint | 75.0 [" in page
    assert f"| only shell | {MINUS}62.5 [" in page
    assert f"| {NONE} |" in page
    assert "[desk](desk/report.html)" in page
    assert "`envkit study interference a b`" in page
    harness = replace(matrix([2, 4]), environments=("desk@programs/own.toml", "shell"))
    page = write_page(harness, tmp_path, "").read_text()
    assert f"]({quote(folder_name('desk@programs/own.toml'))}/report.html)" in page
