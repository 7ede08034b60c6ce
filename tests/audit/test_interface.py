"""Checks of the interface: each fault of an environment is found and named."""

from __future__ import annotations

import echo_env
import pytest
from echo_env import Echo

from envkit import ActionResult, Env, SandboxBackend, TaskFileError, UsageError, tool
from envkit.audit.audited_env import AuditedEnv, AuditFailure
from envkit.audit.runner import AUDIT_CHECKS


def run(kind: type[Env], check: str, backend: SandboxBackend) -> str:
    tasks = kind.make_tasks("starter")  # pyright: ignore[reportCallIssue]
    return AUDIT_CHECKS[check](AuditedEnv(kind, tasks, backend, 3, own_tasks=True))


class Greedy(Echo):
    """Poses some task for any id."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # pyright: ignore[reportArgumentType]
        self.tasks = Anything(self.tasks)


class Anything(dict):  # pyright: ignore[reportMissingTypeArgument]
    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> object:
        return next(iter(self.values()))


FAULTY = [
    (echo_env.Choking, "hostile actions are answered", r"the action \"say\(words='.*'\)\" raises Unicode"),
    (echo_env.Overpaying, "hostile actions are answered", r"check length returned \d+"),
    (
        echo_env.Choking,
        "bent actions raise nothing",
        r"(?s)\d+ actions raise, the first: .*UnicodeE",
    ),
    (echo_env.Ageing, "closing is final", "It is episode 2"),
    (Greedy, "the task that is asked for is posed", "poses a task for an id that no task has"),
    (echo_env.Gossip, "vectors play as single instances", "Before: "),
    (echo_env.Local, "vectors play as single instances", "This is process "),
    (echo_env.Leaking, "splits share no task", "1 sources are of train and held-out tasks"),
    (echo_env.Restless, "splits share no task", "two calls of make_tasks give other train tasks"),
    (echo_env.Undisclosed, "splits share no task", "a task of split test names the split 'heldout'"),
    (
        echo_env.Unreported,
        "splits share no task",
        r"make_tasks\('test'\) raises KeyError: 'tset'; expected tasks, or a UsageError if there are none",
    ),
]


@pytest.mark.parametrize(("kind", "check", "words"), FAULTY)
def test_each_fault_is_named(kind: type[Env], check: str, words: str, backend: SandboxBackend) -> None:
    with pytest.raises(AuditFailure, match=words):
        run(kind, check, backend)


def test_tasks_for_final_reports_that_cannot_be_read_are_not_left_out(backend: SandboxBackend) -> None:
    with pytest.raises(TaskFileError, match=r"test\.jsonl, line 3"):
        run(echo_env.Unreadable, "splits share no task", backend)


def test_a_task_that_is_not_posed_is_found(backend: SandboxBackend) -> None:
    with pytest.raises(UsageError, match="no task 'starter ash'"):
        run(echo_env.Choosy, "the task that is asked for is posed", backend)


def test_numbers_that_are_none_are_tried(backend: SandboxBackend) -> None:
    said: list[str] = []

    class Pouring(Echo):
        @tool
        def pour(self, litres: float) -> str:
            return "Poured."

        def apply(self, action: str) -> ActionResult:
            said.append(action)
            return super().apply(action)

    run(Pouring, "hostile actions are answered", backend)
    assert {"pour(litres='nan')", "pour(litres='-inf')"} <= {*said}
