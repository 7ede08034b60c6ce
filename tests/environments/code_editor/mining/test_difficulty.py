"""The difficulty score orders tasks plausibly without running a model."""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.mining.difficulty import difficulty, difficulty_of
from envkit.environments.code_editor.mining.miner import Wanted, mine
from envkit.environments.code_editor.mining.mutations.mutate import OPERATORS
from envkit.sandbox import SandboxBackend

EASY = {"operator": "negation", "lines": 2, "killers": 9, "total": 9}


@pytest.mark.parametrize("harder", [{"operator": "variable"}, {"lines": 20}, {"killers": 2}])
def test_subtler_operators_longer_code_and_fewer_failing_calls_are_harder(harder: dict[str, object]) -> None:
    assert difficulty(**{**EASY, **harder}) > difficulty(**EASY)  # type: ignore[arg-type]


def test_every_operator_has_a_different_score_between_0_and_1() -> None:
    scores = [difficulty(operator, 7, 3, 9) for operator in OPERATORS]
    assert len(set(scores)) == len(OPERATORS)
    assert difficulty("negation", 1, 1, 1) == 0
    assert 0.9 < difficulty("statement", 10_000, 1, 1000) <= 1


def test_mined_tasks_have_a_difficulty(tiny: str, backend: SandboxBackend) -> None:
    tasks = mine(tiny, seed=0, split="train", backend=backend, wanted=Wanted(4))
    scores = {str(task.metadata["operator"]): difficulty_of(task) for task in tasks}
    assert all(0 < score < 1 for score in scores.values())
    assert len(set(scores.values())) == len(scores) > 1
