"""Chance and search: what a trained code editor agent must beat."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from envkit import Baseline
from envkit.agents.scripted import baseline
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.starter import starter_tasks
from envkit.measure.evaluation import episode_keys
from envkit.rollout import Rollouts
from envkit.sandbox import SandboxBackend
from envkit.types import Outcome, Task, Trajectory


@pytest.fixture(scope="module")
def tasks() -> Sequence[Task]:
    return starter_tasks()


def played(name: str, tasks: Sequence[Task], backend: SandboxBackend, samples: int) -> list[Trajectory]:
    chosen = next(one for one in CodeEditorEnv.baselines if one.name == name)
    with Rollouts(lambda: CodeEditorEnv(tasks=tasks, sandbox=backend)) as rollouts:
        return rollouts.play(baseline(chosen, tasks, backend), episode_keys(tasks, samples, 7))


def test_search_repairs_what_the_examples_tell(tasks: Sequence[Task], backend: SandboxBackend) -> None:
    episodes = played("enumerate", tasks, backend, 1)
    assert {episode.outcome for episode in episodes} <= {Outcome.SOLVED, Outcome.FAILED}
    assert sum(episode.solved for episode in episodes) >= len(tasks) / 3
    for episode in episodes:
        edits = [step.turn.text for step in episode.steps]
        assert edits[0] == "submit" or edits[0].startswith("<<<<<<< SEARCH")


def test_a_blind_mutation_depends_on_the_episode(tasks: Sequence[Task], backend: SandboxBackend) -> None:
    episodes = played("blind-mutant", tasks, backend, 4)
    texts = {episode.key: episode.steps[0].turn.text for episode in episodes}
    assert len(set(texts.values())) > 2 * len(tasks)
    again = played("blind-mutant", tasks, backend, 4)
    assert {episode.key: episode.steps[0].turn.text for episode in again} == texts
    assert all(step.observation for episode in episodes for step in episode.steps)


@pytest.mark.parametrize("chosen", CodeEditorEnv.baselines, ids=lambda one: one.name)
def test_without_examples_nothing_is_tried(chosen: Baseline, backend: SandboxBackend) -> None:
    bare = Task("t", "heldout", "", {"solution.py": "def f(a):\n    return a + 1\n"})
    assert chosen.actions(bare, 0, backend) == ["submit"]


@pytest.mark.parametrize("chosen", CodeEditorEnv.baselines, ids=lambda one: one.name)
def test_a_broken_file_is_submitted_as_it_is(chosen: Baseline, backend: SandboxBackend) -> None:
    source = "class Solution:\n    def f(self, a)\n        return a + 1\n"
    shown = {"examples": [{"call": "Solution().f(1)", "value": "1"}]}
    broken = Task("t", "heldout", "", {"solution.py": source}, shown)
    assert chosen.actions(broken, 0, backend) == ["submit"]


def test_only_what_an_agent_sees_is_used(tasks: Sequence[Task], backend: SandboxBackend) -> None:
    for task in tasks[:3]:
        bare = Task(task.id, task.split, task.prompt, task.files, {"examples": task.metadata["examples"]})
        for chosen in CodeEditorEnv.baselines:
            assert chosen.actions(bare, 3, backend) == chosen.actions(task, 3, backend)
