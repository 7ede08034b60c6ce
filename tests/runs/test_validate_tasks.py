"""The check of tasks by control agents, and what it shows of an oracle that fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from envkit import Env, SandboxBackend, Task, check, tool
from envkit.env.tools import format_call
from envkit.runs.benchmark.validate_tasks import faults_alike, validate_tasks, with_transcripts
from envkit.runtime.display import Silent


class Lamp(Env):
    """Switch a lamp on. The oracle of one task misspells an argument."""

    id: ClassVar[str] = "lamp"

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return [Task(name, split, "Light!", {}) for name in ("good", "misspelt")]

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        argument = "seconds" if task.id == "good" else "second"
        return [format_call("switch_on", {argument: 3}), "done()"]

    def setup(self, task: Task) -> str:
        self.lit = False
        return task.prompt

    @tool
    def switch_on(self, seconds: int) -> str:
        """Switch the lamp on."""
        self.lit = True
        return "It shines. " * 40

    @tool(ends=True)
    def done(self) -> str:
        """End."""
        return "Bye."

    @check()
    def is_lit(self) -> bool:
        return self.lit


def test_a_failed_oracle_is_shown_with_what_each_action_was_answered(backend: SandboxBackend) -> None:
    tasks = Lamp.make_tasks("train")
    faults = validate_tasks(Lamp, tasks, backend, Silent(), seed=0)
    [fault] = with_transcripts(faults, Lamp, tasks, backend, seed=0)
    assert (fault.agent, fault.task) == ("oracle", "misspelt")
    refused, ended = fault.transcript
    assert refused.startswith("switch_on(second=3) -> switch_on: seconds: Field required"), refused
    assert ended == "done() -> Bye."


def test_faults_that_differ_only_in_their_task_are_told_together(backend: SandboxBackend) -> None:
    class Dark(Lamp):
        @check()
        def is_lit(self) -> bool:
            return False

    tasks = [Task(name, "train", "Light!", {}) for name in ("good", "a", "misspelt", "b")]
    faults = validate_tasks(Dark, tasks, backend, Silent(), seed=0)
    groups = faults_alike(with_transcripts(faults, Dark, tasks, backend, seed=0))
    assert [[fault.task for fault in group] for group in groups] == [["good", "a", "misspelt", "b"]]
    assert [bool(fault.transcript) for fault in groups[0]] == [True, False, False, False]
    assert faults_alike([]) == []


def test_a_fault_of_the_environments_code_is_told_once_with_where_it_was_raised(
    backend: SandboxBackend,
) -> None:
    class Faulty(Lamp):
        @check()
        def is_lit(self) -> bool:
            return self.lamp  # type: ignore[attr-defined,no-any-return]  # the fault

    tasks = [Task(name, "train", "Light!", {}) for name in ("good", "a", "b")]
    faults = validate_tasks(Faulty, tasks, backend, Silent(), seed=0)
    [alike] = faults_alike(with_transcripts(faults, Faulty, tasks, backend, seed=0))
    assert [fault.task for fault in alike] == ["good", "a", "b"]
    assert alike[0].transcript[-1].startswith("done() raised CheckError: ")
    assert "AttributeError" in alike[0].transcript[-1]


def test_long_answers_are_cut(backend: SandboxBackend) -> None:
    class Dim(Lamp):
        @check()
        def is_bright(self) -> bool:
            return False

    tasks = Lamp.make_tasks("train")[:1]
    faults = validate_tasks(Dim, tasks, backend, Silent(), seed=0)
    found = with_transcripts(faults, Dim, tasks, backend, seed=0)
    assert [fault.agent for fault in found] == ["oracle"]
    answer = found[0].transcript[0].partition(" -> ")[2]
    assert len(answer) == 160
    assert answer.endswith("\N{HORIZONTAL ELLIPSIS}")
