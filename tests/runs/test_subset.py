"""Some of many tasks, from all parts of their list."""

from __future__ import annotations

import pytest

from envkit.runs.folder.subset import evenly_spaced
from envkit.types import Task

TASKS = [Task(str(number), "train", "", {}) for number in range(127)]


@pytest.mark.parametrize(("number", "asked"), [(51, 50), (127, 64), (127, 127), (3, 64), (127, 1), (0, 5)])
def test_as_many_as_asked_from_all_parts_of_the_list(number: int, asked: int) -> None:
    places = [TASKS.index(task) for task in evenly_spaced(TASKS[:number], asked)]
    assert len(places) == min(number, asked)
    gaps = [after - before for before, after in zip(places, [*places[1:], number], strict=False)]
    assert all(gap > 0 for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert places[:1] == [0][:number]
