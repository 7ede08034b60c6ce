"""The code editor environment: repair one function of a real Python file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from envkit.env import Env
from envkit.env.authored import ActionResult, Baseline, Exploit, ImportedTasks, Variant
from envkit.env.checks import check
from envkit.env.grade import Grade
from envkit.env.hidden import text_file
from envkit.env.submission import Submission
from envkit.environments.code_editor.attacks import ATTACKS
from envkit.environments.code_editor.baselines import BASELINES
from envkit.environments.code_editor.editor import CodeEditor
from envkit.environments.code_editor.examples import EXAMPLE_RESULTS
from envkit.environments.code_editor.exploits import attack_actions, attack_target
from envkit.environments.code_editor.formats import read_format
from envkit.environments.code_editor.graders.base import EXPECTED_ANSWERS, Grader
from envkit.environments.code_editor.graders.calls import CONTRACTS, REACHED_EDGES, CallGrader
from envkit.environments.code_editor.graders.program import ProgramGrader
from envkit.environments.code_editor.graders.pytest_suite import SuiteGrader
from envkit.environments.code_editor.hidden import ProgramHidden, hidden_of
from envkit.environments.code_editor.mining.hidden import RepairHidden, SuiteHidden
from envkit.environments.code_editor.prompt import SYSTEM, first_observation
from envkit.environments.code_editor.result_cache import ResultCache
from envkit.environments.code_editor.source.edit_size import changed_tokens
from envkit.environments.code_editor.starter import starter_tasks
from envkit.environments.code_editor.tasksets import SPLITS, standard_tasks
from envkit.environments.code_editor.variants import variants_of
from envkit.errors import SandboxError
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.types import Task, Verdict

#: Inputs drawn per visit, in addition to the stored ones that expose the bug.
FRESH_CALLS = 12
#: Inputs drawn for the held-out check.
HELD_OUT_CALLS = 100
#: Most tokens of a small edit. Most mined bugs need one or two; few need more than this.
FEW_TOKENS = 8

#: Grades by visit and file, so that equal candidates of a group are run once.
_GRADES = ResultCache(4096)


@final
class CodeEditorEnv(Env):
    """Repair one function of a real Python file.

    **Observation**: the function with its bug, and example calls with their expected values. Later, the
    change that an action made and what the examples give now, or the reason why it was refused.

    **Actions**: see `envkit.environments.code_editor.actions.HELP`.

    **Reward**: 1 if the repaired function answers every hidden call as the original does, else 0. Hidden
    calls are stored ones that expose the bug, `FRESH_CALLS` drawn at each reset, and all known calls of
    the original: its examples and its package's tests. For a program with a test program, the reward is 1 if
    every assert sees the expected value.

    **Measured**: ``edits_a_little``, not part of the reward, for `TrainConfig.shaping`. Models often return
    the function unchanged; in a group without a right answer, nothing else tells them not to.

    **End**: ``submit`` terminates, but behind an edit only if the examples hold; otherwise the agent sees
    which one fails, and may go on. The last of ``max_turns``, by default 3, truncates. The file is graded
    either way.

    **Versions**: v0.
    """

    id: ClassVar[str] = "code-editor"
    system: ClassVar[str] = SYSTEM
    noop_action: ClassVar[str] = "submit"
    baselines: ClassVar[tuple[Baseline, ...]] = BASELINES

    # Set by `setup` for each episode.
    _grader: Grader
    _app: CodeEditor

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Return mined tasks, or starters; see `envkit.environments.code_editor.tasksets`."""
        if split == "starter":
            return starter_tasks()
        if split not in SPLITS:
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return standard_tasks(split, sandbox, display)

    @classmethod
    def import_tasks(cls, format: str, path: Path) -> ImportedTasks:
        """Read a published benchmark; see `envkit.environments.code_editor.formats`."""
        return read_format(format, path)

    @classmethod
    def validate_task(cls, task: Task) -> None:
        hidden_of(task)

    @classmethod
    def brief(cls, task: Task) -> str:
        """The first observation of an episode of one turn, and where the code is."""
        path = grader_for(task).path
        code = text_file(task, path, "the file to edit")
        seen = first_observation(task, code, 1, runs_examples=False)
        return f"{seen}\nThis is the file {path}. Change it there, so that the examples hold."

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Restore the original and submit in one message. The second is for examples that do not hold."""
        return [f"{oracle_action(task)}\nsubmit", "submit"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Return the whole corpus of `envkit.environments.code_editor.attacks`."""
        if reason := grader_for(task).no_attack_reason:
            return [Exploit(f"{attack.number} {attack.name}", (), reason) for attack in ATTACKS]
        target, found = attack_target(task), list[Exploit]()
        for attack in ATTACKS:
            why = attack.inapplicable(target)
            actions = () if why else tuple(attack_actions(attack.build(target), target))
            found.append(Exploit(f"{attack.number} {attack.name}", actions, why or ""))
        return found

    @classmethod
    def variants(cls, task: Task, sandbox: SandboxBackend) -> Sequence[Variant]:
        """Programs of `envkit.environments.code_editor.variants`, for mined tasks that calls grade."""
        return [*variants_of(task, sandbox)] if isinstance(hidden_of(task), RepairHidden) else ()

    @classmethod
    def clear_caches(cls) -> None:
        """Drop the cached grades, and what is known of the originals."""
        for cache in (_GRADES, EXAMPLE_RESULTS, EXPECTED_ANSWERS, REACHED_EDGES, CONTRACTS):
            cache.clear()

    def setup(self, task: Task) -> str:
        self._grader = grader_for(task)
        for path, data in self._grader.read_only_files().items():
            self.sandbox.write(path, data)
        self._app = self._grader.editor(self.backend)
        self._app.launch(self.sandbox)
        runs = self._app.runs_examples
        return first_observation(task, self._app.observe(), self.max_turns, runs_examples=runs)

    def apply(self, action: str) -> ActionResult:
        seen = self._app.act(action, shows_results=self.turns_left > 0)
        if not self._app.submitted and self.turns_left:
            seen += f"\n{self.turns_left} turn(s) left; end with: submit"
        return ActionResult(seen, done=self._app.submitted)

    @check()
    def answers_as_original(self) -> Grade:
        """The repaired function answers hidden calls as the original does."""
        return self._graded(FRESH_CALLS, self.visit_seed)

    @check(held_out=True)
    def answers_many_more(self) -> Grade | None:
        """The same check on many more calls, drawn separately. ``None`` if the task's grader draws none."""
        drawn, seed = HELD_OUT_CALLS, self.visit_seed ^ 1
        if self._grader.cache_key(drawn, seed) == self._grader.cache_key(FRESH_CALLS, self.visit_seed):
            return None  # it would be the same check again
        return self._graded(drawn, seed)

    @check(weight=0)
    def edits_a_little(self) -> bool:
        """The edit changed one short stretch of code, as most repairs do."""
        try:
            source = self._collect().decode()
        except UnicodeDecodeError:
            return False
        return (
            0
            < (changed_tokens(text_file(self.task, self._grader.path, "the file to edit"), source) or 0)
            <= FEW_TOKENS
        )

    def _collect(self) -> bytes:
        """Read the file that the agent may change.

        Raises:
            SubmissionRejected: it is not a regular file, or another file was changed.
        """
        grader = self._grader
        return Submission([grader.path], grader.read_only_files()).collect(self.sandbox)[grader.path]

    def _graded(self, count: int, seed: int) -> Grade:
        grader, source = self._grader, self._collect()

        def make() -> Grade:
            found = grader.grade(source, self.backend, count, seed)
            if found.verdict is Verdict.INFRA:  # raised, because a returned grade would be cached
                raise SandboxError(found.evidence)
            return dataclasses.replace(found, weakness=found.weakness or grader.weakness)

        return _GRADES.get((grader.cache_key(count, seed), source), make, lambda found: not found.timed_out)


def grader_for(task: Task) -> Grader:
    """Choose the grader by the kind of the task's hidden fields.

    Raises:
        TaskFileError: the task is not one of the code editor.
    """
    hidden = hidden_of(task)
    if isinstance(hidden, SuiteHidden):
        return SuiteGrader(task, hidden)
    if isinstance(hidden, ProgramHidden):
        return ProgramGrader(task, hidden)
    return CallGrader(task, hidden)


def oracle_action(task: Task) -> str:
    """Return the action that solves a task."""
    return grader_for(task).oracle_action()
