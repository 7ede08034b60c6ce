"""The code editor environment: repair one function of a real Python file."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, final

from envkit.audit.attacks import ATTACKS
from envkit.checks import check
from envkit.display import Display
from envkit.env import Effect, Env, Exploit, Imported
from envkit.environments.code_editor import docstrings, suites, tested
from envkit.environments.code_editor.actions import whole_text
from envkit.environments.code_editor.aim import actions_of, target_of
from envkit.environments.code_editor.app import CodeEditor
from envkit.environments.code_editor.formats import read_format
from envkit.environments.code_editor.prompt import CHECK, SYSTEM, check_script, first_observation
from envkit.environments.code_editor.starter import starter_tasks
from envkit.environments.code_editor.syntax import definitions
from envkit.environments.code_editor.tasksets import standard_heldout, standard_train
from envkit.errors import SandboxError
from envkit.grading import (
    GRADING_LIMITS,
    Answer,
    Call,
    Grade,
    Handover,
    Leniency,
    NotAccepted,
    NumericPolicy,
    Subject,
    answerable,
    answers,
    canonical,
    grade,
)
from envkit.mining.alike import alike_calls
from envkit.mining.build import SOLUTION
from envkit.mining.inputs import fresh_calls
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task, Verdict

#: Fresh inputs per visit, beside the pinned ones that tell the bug from the original.
FRESH_CALLS = 12
#: And of the held-out check, which draws its own.
HELD_OUT_CALLS = 100

# Half of what a candidate may use, so that a slower but right one is not cut off.
_REFERENCE_LIMITS = dataclasses.replace(GRADING_LIMITS, cpu_s=GRADING_LIMITS.cpu_s / 2)

Value = TypeVar("Value")


@final
class _Shared:
    """Results that the members of a group share, computed once. Thread-safe, bounded."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[object, tuple[threading.Lock, list[object]]] = OrderedDict()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        with self._lock:
            lock, box = self._entries.setdefault(key, (threading.Lock(), []))
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        with lock:
            if not box:
                box.append(make())
            return cast("Value", box[0])


# Expected answers by visit, and grades by visit and candidate: equal candidates of a group get
# equal grades from one run.
_EXPECTED, _GRADES = _Shared(256), _Shared(4096)


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

    **End**: ``submit`` terminates, a used-up turn budget truncates; the file is graded either way.

    **Versions**: v0.
    """

    id: ClassVar[str] = "code-editor"
    system: ClassVar[str] = SYSTEM
    idle: ClassVar[str] = "submit"

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        sandbox: SandboxBackend,
        max_turns: int = 3,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(tasks=tasks, sandbox=sandbox, max_turns=max_turns, render_mode=render_mode)
        self._app: CodeEditor  # of the running episode, made by `setup`

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
    def import_tasks(cls, format: str, path: Path) -> Imported:
        """Published repair benchmarks; see `envkit.environments.code_editor.formats`."""
        return read_format(format, path)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The original function, then the end."""
        return [suites.oracle_action(task) if suites.has_suite(task) else oracle_action(task), "submit"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """The whole catalogue of `envkit.audit.attacks`."""
        if suites.has_suite(task):
            return [Exploit(f"{one.number} {one.name}", (), suites.NO_EXPLOITS) for one in ATTACKS]
        target = target_of(task)
        other = "a program" if tested.is_tested(task) else "a method" if "." in target.function else ""
        found: list[Exploit] = []
        for attack in ATTACKS:
            asks = f"it attacks by a function, and the task asks for {other}" if other else ""
            why = asks or attack.inapplicable(target)
            actions = () if why else tuple(actions_of(attack.build(target), target))
            found.append(Exploit(f"{attack.number} {attack.name}", actions, why or ""))
        return found

    def setup(self, task: Task) -> str:
        if suites.has_suite(task):
            path, beside = suites.path_of(task), suites.others(task)
            self._app = CodeEditor(path, focus=str(task.hidden["function"]), beside=beside)
            self._app.launch(self.sandbox)
            return first_observation(task, self._app.observe(), self.max_turns)
        self.sandbox.write(CHECK, check_script(task).encode())
        # A file that was written whole is shown whole: its bug may be outside the function that is asked.
        focus = None if _is_stated(task) else str(task.hidden["function"])
        self._app = CodeEditor(SOLUTION, focus=focus, check=CHECK, whole=bool(task.metadata.get("whole")))
        self._app.launch(self.sandbox)
        return first_observation(task, self._app.observe(), self.max_turns)

    def apply(self, action: str) -> Effect:
        seen = self._app.act(action)
        if not self._app.submitted and self.turns_left:
            seen += f"\n{self.turns_left} turn(s) left; end with: submit"
        return Effect(seen, done=self._app.submitted)

    @check()
    def answers_as_original(self) -> Grade:
        """The repaired function answers hidden calls as the original does."""
        return self._judge(FRESH_CALLS, self.visit_seed)

    @check(held_out=True)
    def answers_many_more(self) -> Grade:
        """It answers many more calls so, drawn apart from those that earn the reward."""
        return self._judge(HELD_OUT_CALLS, self.visit_seed ^ 1)

    def _judge(self, count: int, seed: int) -> Grade:
        # Ids are unique within one task file; another file may give one another meaning.
        hidden = hashlib.sha256(canonical(self.task.hidden).encode()).digest()
        if suites.has_suite(self.task):
            return self._judge_by_suite(hidden)
        visit = (self.task.id, hidden, count, seed)
        shown = {CHECK: check_script(self.task).encode()}
        try:
            source = Handover([SOLUTION], shown).collect(self.sandbox)[SOLUTION]
        except NotAccepted as refused:
            return Grade(refused.verdict, refused.evidence, 0, 0)

        def graded() -> Grade:
            calls, expected = _EXPECTED.get(
                visit, lambda: self._expected(hidden_calls(self.task, seed, count))
            )
            return self._grade(source, calls, expected)

        return _GRADES.get((visit, source), graded)

    def _judge_by_suite(self, hidden: bytes) -> Grade:
        task = self.task
        try:
            source = suites.handed_over(task, self.sandbox)
        except NotAccepted as refused:
            return Grade(refused.verdict, refused.evidence, 0, 0, suites.WEAKNESS)

        def graded() -> Grade:
            found = suites.judge(task, source, self.backend)
            if found.verdict is Verdict.INFRA:  # raised, for a returned grade is kept
                raise SandboxError(found.evidence)
            return found

        return _GRADES.get((task.id, hidden, source), graded)

    def _grade(self, source: bytes, calls: Sequence[Call], expected: Sequence[Answer]) -> Grade:
        hidden = self.task.hidden
        if tested.is_tested(self.task):
            policies = tested.places_by_policy(self.task)
        else:
            policies = {NumericPolicy(**cast("dict[str, Any]", hidden.get("policy", {}))): range(len(calls))}
        leniency = Leniency(**cast("dict[str, Any]", hidden.get("leniency", {})))
        subject, weakness = _subject(self.task, source), str(hidden.get("weakness", ""))
        passed: list[Grade] = []
        for policy, part in policies.items():  # nearly always one
            asked, wanted = [calls[index] for index in part], [expected[index] for index in part]
            found = grade(self.backend, subject, asked, wanted, policy, leniency=leniency)
            if found.verdict is Verdict.INFRA:  # raised, for a returned grade is kept
                raise SandboxError(found.evidence)
            if found.verdict is not Verdict.PASS:
                return dataclasses.replace(found, weakness=weakness)
            passed.append(found)
        return dataclasses.replace(passed[-1], weakness=weakness)

    def _expected(self, calls: Sequence[Call]) -> tuple[Sequence[Call], Sequence[Answer]]:
        """The original's answers, computed in a sandbox that no candidate ever enters."""
        task = self.task
        reference = _subject(task, str(task.hidden["reference"]).encode())
        if tested.is_tested(task):
            return calls, tested.expected(task, answers(self.backend, reference, calls, _REFERENCE_LIMITS))
        # Inputs that the original rejects, or answers with what cannot be compared, say nothing.
        deaths = 3 if _is_stated(task) else 0
        asked, answered = answerable(self.backend, reference, calls, _REFERENCE_LIMITS, deaths)
        if not asked:
            raise SandboxError(f"task {task.id}: the original answers none of {len(calls)} calls")
        return asked, answered


def hidden_calls(task: Task, seed: int, count: int = FRESH_CALLS) -> list[Call]:
    """The calls that a visit is graded on: pinned ones first, since they fail fastest."""
    pinned = [Call.from_json(item) for item in cast("Sequence[JSON]", task.hidden["killers"])]
    examples = [Call.from_json(item) for item in cast("Sequence[JSON]", task.hidden["examples"])]
    if _is_stated(task):
        names = cast("Sequence[str]", task.hidden["parameters"])
        fresh = alike_calls(examples, seed, cast("int", task.hidden["fresh"]), task.prompt, names)
    else:
        fresh = fresh_calls(examples, seed=seed, count=count)
    return [*pinned, *fresh, *(call for call in examples if call not in pinned)]


def oracle_action(task: Task) -> str:
    """The original function, whole.

    Chosen on pilots with the 135M model: it repairs while it copies, and seldom when it must first
    name the wrong line, as in a diff.
    """
    source, function = str(task.hidden["reference"]), str(task.hidden["function"])
    if _is_stated(task):
        return whole_text(task.files[SOLUTION], source)
    [found] = [item for item in definitions(source) if item.name == function]
    code, _ = docstrings.split(found.lines(source))
    return f"```python\n{code}\n```"


def _is_stated(task: Task) -> bool:
    """Whether others have stated the problem, as the readers of `formats` tell."""
    return "parameters" in task.hidden


def _subject(task: Task, source: bytes) -> Subject:
    if tested.is_tested(task):
        return tested.subject(task, source)
    modules = tuple(cast("Sequence[str]", task.hidden["modules"]))
    return Subject({SOLUTION: source}, SOLUTION, str(task.hidden["function"]), modules)
