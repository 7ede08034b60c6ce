"""The warm start's examples: the oracle's actions on every task, or an error that names the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import tiny

from envkit.env.authored import ActionResult
from envkit.errors import ContractError, SandboxError
from envkit.runs.before_after.warm_start import demonstrations
from envkit.training.demonstration import Demonstration
from envkit.types import Task


class Known(tiny.LetterEnv):
    actions: ClassVar[Sequence[str]] = ("aha", "more")

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [f"{task.id}: {action}" for action in cls.actions]


def shown(letter: str, turns: int) -> Demonstration:
    first, second = f"{letter}: aha", f"{letter}: more"
    exchanges = ((f"Say {letter}.", first), (f"You said {first!r}. Again.", second))
    return Demonstration("Say it.", exchanges[:turns])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_every_action_is_shown_with_what_it_answers(turns: int) -> None:
    found = demonstrations(Known, tiny.letter_tasks("ab"), tiny.MemoryBackend(), turns)
    assert found == [shown(letter, turns) for letter in "ab"]


def test_actions_after_the_end_are_not_shown() -> None:
    class Ending(Known):
        def apply(self, action: str) -> ActionResult:
            return ActionResult("Done.", done=True)

    found = demonstrations(Ending, tiny.letter_tasks("a"), tiny.MemoryBackend(), 2)
    assert found == [shown("a", 1)]


def test_a_sandbox_may_fail_once() -> None:
    found = demonstrations(Known, tiny.letter_tasks("ab"), tiny.MemoryBackend(frozenset({1})), 2)
    assert found == [shown(letter, 2) for letter in "ab"]


def test_a_sandbox_that_fails_twice_ends_the_warm_start() -> None:
    with pytest.raises(SandboxError, match="broken on call 2"):
        demonstrations(Known, tiny.letter_tasks("ab"), tiny.MemoryBackend(frozenset({1, 2})), 2)


def test_an_oracle_without_an_action_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Known, "actions", ())
    with pytest.raises(ContractError, match=r"Known\.oracle, for task a, has no actions"):
        demonstrations(Known, tiny.letter_tasks("a"), tiny.MemoryBackend(), 2)
