"""The warm start's examples: the oracle's first action on every task, or an error that names the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import tiny

from envkit.errors import ContractError, SandboxError
from envkit.studies.warm_start import demonstrations
from envkit.training.demonstration import Demonstration
from envkit.types import Task


class Known(tiny.LetterEnv):
    actions: ClassVar[Sequence[str]] = ("aha", "more")

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [f"{task.id}: {action}" for action in cls.actions]


def test_a_sandbox_may_fail_once() -> None:
    found = demonstrations(Known, tiny.letter_tasks("ab"), tiny.MemoryBackend(frozenset({1})), 2)
    assert found == [Demonstration("Say it.", f"Say {letter}.", f"{letter}: aha") for letter in "ab"]


def test_a_sandbox_that_fails_twice_ends_the_warm_start() -> None:
    with pytest.raises(SandboxError, match="broken on call 2"):
        demonstrations(Known, tiny.letter_tasks("ab"), tiny.MemoryBackend(frozenset({1, 2})), 2)


def test_an_oracle_without_an_action_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Known, "actions", ())
    with pytest.raises(ContractError, match=r"Known\.oracle returned no action for task a"):
        demonstrations(Known, tiny.letter_tasks("a"), tiny.MemoryBackend(), 2)
