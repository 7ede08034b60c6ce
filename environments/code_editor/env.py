"""The code editor environment: repair one function of a real Python file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from envkit.audit.attacks import ATTACKS
from envkit.checks import check
from envkit.display import Display
from envkit.env import ActionResult, Env, Exploit, ImportedTasks
from envkit.environments.code_editor.aim import actions_of, target_of
from envkit.environments.code_editor.app import CodeEditor
from envkit.environments.code_editor.called import Called
from envkit.environments.code_editor.extent import changed
from envkit.environments.code_editor.formats import read_format
from envkit.environments.code_editor.judge import EXPECTED, Judge
from envkit.environments.code_editor.prompt import SYSTEM, first_observation
from envkit.environments.code_editor.shared import Shared
from envkit.environments.code_editor.starter import starter_tasks
from envkit.environments.code_editor.suites import Suited
from envkit.environments.code_editor.tasksets import standard_heldout, standard_train
from envkit.environments.code_editor.tested import Tested
from envkit.errors import SandboxError
from envkit.grading import Grade, Submission
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict

#: Fresh inputs per visit, beside the pinned ones that tell the bug from the original.
FRESH_CALLS = 12
#: And of the held-out check, which draws its own.
HELD_OUT_CALLS = 100
#: The repairs of most mined bugs change one or two, and few more than these.
FEW_TOKENS = 8

#: By visit and candidate: equal candidates of a group get equal grades from one run.
_GRADES = Shared(4096)


@final
class CodeEditorEnv(Env):
    """Repair one function of a real Python file.

    **Observation**: the function with its bug, example calls with what they should give, then
    after each action what it changed or why it was refused.

    **Actions**: see `envkit.environments.code_editor.actions.HELP`.

    **Reward**: 1 when the repaired function answers every hidden call as the original does, else 0.
    Hidden calls are the pinned ones that expose the bug, `FRESH_CALLS` drawn anew at each reset, and all
    that are known of the original: its examples and the tests that its package ships. Of a program that came
    with a test program, it is 1 when every assert sees what it should.

    **Measured beside it**: ``edits_a_little``, no part of the reward, for `TrainConfig.shaping`: models often
    give the function back as it was, and where no answer of a group is right, nothing tells them not to.

    **End**: ``submit`` terminates, a used-up turn budget truncates; the file is graded either way.

    **Versions**: v0.
    """

    id: ClassVar[str] = "code-editor"
    system: ClassVar[str] = SYSTEM
    noop_action: ClassVar[str] = "submit"

    # Of the running episode, made by `setup`.
    _judge: Judge
    _app: CodeEditor

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Mined ones, and starters; see `envkit.environments.code_editor.tasksets`."""
        makers = {"train": standard_train, "heldout": standard_heldout}
        if split == "starter":
            return starter_tasks()
        if split not in makers:
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return makers[split](sandbox, display)

    @classmethod
    def import_tasks(cls, format: str, path: Path) -> ImportedTasks:
        """Published repair benchmarks; see `envkit.environments.code_editor.formats`."""
        return read_format(format, path)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The original function, then the end."""
        return [oracle_action(task), "submit"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """The whole catalogue of `envkit.audit.attacks`."""
        if spared := judge_of(task).spared:
            return [Exploit(f"{one.number} {one.name}", (), spared) for one in ATTACKS]
        target, found = target_of(task), list[Exploit]()
        for attack in ATTACKS:
            why = attack.inapplicable(target)
            actions = () if why else tuple(actions_of(attack.build(target), target))
            found.append(Exploit(f"{attack.number} {attack.name}", actions, why or ""))
        return found

    @classmethod
    def clear_caches(cls) -> None:
        """Grades of equal candidates, and what originals answered."""
        _GRADES.forget()
        EXPECTED.forget()

    def setup(self, task: Task) -> str:
        self._judge = judge_of(task)
        for path, data in self._judge.beside().items():
            self.sandbox.write(path, data)
        self._app = self._judge.editor()
        self._app.launch(self.sandbox)
        return first_observation(task, self._app.observe(), self.max_turns)

    def apply(self, action: str) -> ActionResult:
        seen = self._app.act(action)
        if not self._app.submitted and self.turns_left:
            seen += f"\n{self.turns_left} turn(s) left; end with: submit"
        return ActionResult(seen, done=self._app.submitted)

    @check()
    def answers_as_original(self) -> Grade:
        """The repaired function answers hidden calls as the original does."""
        return self._graded(FRESH_CALLS, self.visit_seed)

    @check(held_out=True)
    def answers_many_more(self) -> Grade | None:
        """It answers many more calls so, drawn apart from those that earn the reward, if any are drawn."""
        drawn, seed = HELD_OUT_CALLS, self.visit_seed ^ 1
        if self._judge.visit(drawn, seed) == self._judge.visit(FRESH_CALLS, self.visit_seed):
            return None  # it would be the same question again
        return self._graded(drawn, seed)

    @check(weight=0)
    def edits_a_little(self) -> bool:
        """A few tokens of the file's code are others now, in one stretch: what a repair looks like."""
        try:
            source = self._handed_over().decode()
        except UnicodeDecodeError:
            return False
        return 0 < (changed(self.task.files[self._judge.path], source) or 0) <= FEW_TOKENS

    def _handed_over(self) -> bytes:
        """The file that the agent may change, as it is now.

        Raises:
            SubmissionRejected: it is no plain file any more, or one beside it is not as it was.
        """
        judge = self._judge
        return Submission([judge.path], judge.beside()).collect(self.sandbox)[judge.path]

    def _graded(self, count: int, seed: int) -> Grade:
        judge, source = self._judge, self._handed_over()

        def make() -> Grade:
            found = judge.grade(source, self.backend, count, seed)
            if found.verdict is Verdict.INFRA:  # raised, for a returned grade is kept
                raise SandboxError(found.evidence)
            return dataclasses.replace(found, weakness=found.weakness or judge.weakness)

        return _GRADES.get((judge.visit(count, seed), source), make)


def judge_of(task: Task) -> Judge:
    """Who judges a task, as what is hidden of it tells."""
    if "suite" in task.hidden:
        return Suited(task)
    return Tested(task) if "looks" in task.hidden else Called(task)


def oracle_action(task: Task) -> str:
    """The action that solves a task."""
    return judge_of(task).answer()
