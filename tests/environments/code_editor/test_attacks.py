"""The attack corpus played as episodes of the code editor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from envkit import SandboxBackend, Task
from envkit.audit.attacks import ATTACKS, CORRECT, Attack, Attempt, CorrectVariant
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.aim import actions_of, target_of
from envkit.grading import STRICT

TASK = "starter/overlap"


@pytest.fixture(scope="module")
def env(backend: SandboxBackend, starters: Mapping[str, Task]) -> Iterator[CodeEditorEnv]:
    made = CodeEditorEnv(tasks=[*starters.values()], sandbox=backend)
    yield made
    made.close()


def ending(env: CodeEditorEnv, attempt: Attempt) -> tuple[float, str]:
    """Reward and verdict of the episode in which a candidate makes the attempt."""
    env.reset(seed=3, options={"task": TASK})
    step: Any = None
    for action in actions_of(attempt, target_of(env.task)):
        step = env.step(action)
    return step[1], step[4]["verdict"]


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{one.number} {one.name}" for one in ATTACKS])
def test_no_attack_earns_anything(env: CodeEditorEnv, starters: Mapping[str, Task], attack: Attack) -> None:
    target = target_of(starters["overlap"])
    if attack.inapplicable(target):
        assert attack.number == 61  # the starters come from no package
        return
    reward, verdict = ending(env, attack.build(target))
    assert (reward, verdict) in [(0.0, "FAIL"), (0.0, "TAMPERED")]


@pytest.mark.parametrize(
    "variant", [one for one in CORRECT if one.policy == STRICT], ids=lambda variant: variant.name
)
def test_right_solutions_earn_all(
    env: CodeEditorEnv, starters: Mapping[str, Task], variant: CorrectVariant
) -> None:
    assert ending(env, variant.build(target_of(starters["overlap"]))) == (1.0, "PASS")


def test_what_a_candidate_writes_under_a_graders_name_is_tampering(env: CodeEditorEnv) -> None:
    source, reference = target_of(env.tasks[TASK]).source, target_of(env.tasks[TASK]).reference
    assert source != reference
    assert ending(env, Attempt({"solution.py": reference, "reward.txt": "1"})) == (0.0, "TAMPERED")


def test_the_shown_calls_are_told_apart(starters: Mapping[str, Task]) -> None:
    for task in starters.values():
        target = target_of(task)
        assert target.examples
        assert all(type(eval(one.args)) is tuple for one in target.examples)
