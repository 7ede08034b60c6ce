"""The suite that environments inherit: a sound one passes, and each fault fails the test that is about it.

The checks of the audit have tests of their own; whole environments inherit the suite in theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import echo_env
import pytest
from echo_env import Echo

from envkit import ActionResult, Env, SandboxBackend, UsageError, tool
from envkit.audit.suite import EnvSuite


class TestEcho(EnvSuite):
    kind = Echo


def suite_of(kind: type[Env]) -> EnvSuite:
    return type("Suite", (EnvSuite,), {"kind": kind})()


def with_instance(test: Callable[..., None], suite: EnvSuite, backend: SandboxBackend, **more: Any) -> None:
    """Run a test as pytest would."""
    env = suite.kind(tasks=suite.kind.make_tasks("starter"), sandbox=backend, max_turns=suite.max_turns)  # pyright: ignore[reportCallIssue]
    try:
        test(suite, env, **more)
    finally:
        env.close()


def test_an_action_that_raises_is_named(backend: SandboxBackend) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"the action \"say\(words='.*'\)\" raises UnicodeEncodeError"
    ):
        with_instance(EnvSuite.test_hostile_actions_are_answered, suite_of(echo_env.Choking), backend)


def test_a_bent_action_that_raises_is_named(backend: SandboxBackend) -> None:
    suite, tasks = suite_of(echo_env.Choking), echo_env.Choking.make_tasks("starter")
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)\d+ actions raise, the first: .*UnicodeEncodeError"
    ):
        suite.test_bent_actions_neither_raise_nor_hold_the_host(backend, tasks)


def test_a_check_that_breaks_on_what_was_said_is_named(backend: SandboxBackend) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"check length returned \d+"):
        with_instance(EnvSuite.test_hostile_actions_are_answered, suite_of(echo_env.Overpaying), backend)


def test_numbers_that_are_none_are_tried(backend: SandboxBackend) -> None:
    said: list[str] = []

    class Pouring(Echo):
        @tool
        def pour(self, litres: float) -> str:
            return "Poured."

        def apply(self, action: str) -> ActionResult:
            said.append(action)
            return super().apply(action)

    with_instance(EnvSuite.test_hostile_actions_are_answered, suite_of(Pouring), backend)
    assert {"pour(litres='nan')", "pour(litres='-inf')"} <= {*said}


def test_a_task_that_is_not_posed_is_found(backend: SandboxBackend) -> None:
    tasks = Echo.make_tasks("starter")
    with pytest.raises(UsageError, match="no task 'starter tea'"):
        with_instance(
            EnvSuite.test_the_task_that_is_asked_for_is_posed, suite_of(echo_env.Choosy), backend, tasks=tasks
        )


def test_what_is_left_of_an_episode_is_found(backend: SandboxBackend) -> None:
    with pytest.raises(pytest.fail.Exception, match="It is episode 2"):
        with_instance(EnvSuite.test_closing_is_final_and_harmless, suite_of(echo_env.Ageing), backend)


@pytest.mark.parametrize(
    ("kind", "processes", "words"),
    [(echo_env.Gossip, False, "Before: "), (echo_env.Local, True, "This is process ")],
)
def test_a_vector_that_differs_is_found(
    backend: SandboxBackend, kind: type[Env], processes: bool, words: str
) -> None:
    tasks = Echo.make_tasks("starter")
    with pytest.raises(pytest.fail.Exception, match=words):
        suite_of(kind).test_vectors_play_as_single_instances_do(backend, tasks, processes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (echo_env.Leaking, "both trained on and held out"),
        (echo_env.Restless, "two calls of make_tasks give other train tasks"),
    ],
)
def test_faulty_splits_are_found(backend: SandboxBackend, kind: type[Env], words: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=words):
        suite_of(kind).test_tasks_are_the_same_at_every_call_and_shared_by_no_split(backend)


def test_what_does_not_apply_is_skipped_in_its_words(backend: SandboxBackend) -> None:
    suite = suite_of(echo_env.Unmeasured)
    with pytest.raises(pytest.skip.Exception, match="there are no heldout tasks"):
        suite.test_tasks_are_the_same_at_every_call_and_shared_by_no_split(backend)
    with pytest.raises(pytest.skip.Exception, match="it names no exploits"):
        suite.test_audit(backend, Echo.make_tasks("starter"), "exploits earn nothing")


def test_a_fault_that_the_audit_finds_fails_in_its_words(backend: SandboxBackend) -> None:
    with pytest.raises(pytest.fail.Exception, match="equal episodes differ in observation 0"):
        suite_of(echo_env.Gossip).test_audit(backend, Echo.make_tasks("starter"), "episodes are reproducible")
