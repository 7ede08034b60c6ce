"""The code editor environment: repair one function of a real Python file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast, final

from envkit.checks import check
from envkit.env import Effect, Env
from envkit.environments.code_editor.app import CodeEditor
from envkit.environments.code_editor.prompt import check_script, first_observation
from envkit.errors import SandboxError
from envkit.grading import Answer, Call, Grade, NumericPolicy, Subject, answers, grade
from envkit.mining.inputs import fresh_calls
from envkit.sandbox import SandboxBackend
from envkit.types import JSON, Task

#: Fresh inputs per visit, beside the pinned ones that tell the bug from the original.
FRESH_CALLS = 12

_SOLUTION = "solution.py"
_CHECK = "check.py"

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


# Expected answers by (task, visit), and grades by (task, visit, candidate): equal candidates of a
# group get equal grades from one run.
_EXPECTED, _GRADES = _Shared(256), _Shared(4096)


@final
class CodeEditorEnv(Env):
    """Repair one function of a real Python file.

    **Observation**: the function with its bug, example calls with what they should give, then
    after each action what it changed or why it was refused.

    **Actions**: see `envkit.environments.code_editor.actions.HELP`.

    **Reward**: 1 when the repaired function answers every hidden call as the original does, else 0.
    Hidden calls are the pinned ones that expose the bug plus `FRESH_CALLS` drawn anew at each reset.

    **End**: ``submit`` or, with ``max_turns=1``, the first edit terminates; a used-up turn budget
    truncates; the file is graded either way.

    **Versions**: v0.
    """

    id: ClassVar[str] = "code-editor"

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        sandbox: SandboxBackend,
        max_turns: int = 3,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(tasks=tasks, sandbox=sandbox, max_turns=max_turns, render_mode=render_mode)
        self._app: CodeEditor | None = None

    def setup(self, task: Task) -> str:
        for path, text in task.files.items():
            self.sandbox.write(path, text.encode())
        self.sandbox.write(_CHECK, check_script(task).encode())
        self._app = CodeEditor(_SOLUTION, focus=str(task.hidden["function"]), check=_CHECK)
        self._app.launch(self.sandbox)
        return first_observation(task, self._app.observe(), self.max_turns)

    def apply(self, action: str) -> Effect:
        if self._app is None:
            raise SandboxError("the editor is not running")
        seen = self._app.act(action)
        if not self._app.submitted:
            seen += f"\n{self.turns_left} turn(s) left; end with: submit"
        return Effect(seen, done=self._app.submitted)

    @check()
    def answers_as_original(self) -> Grade:
        """The repaired function answers hidden calls as the original does."""
        task, visit = self.task, self.visit_seed
        source = self.sandbox.read(_SOLUTION, 262_144)
        calls = hidden_calls(task, visit)
        kept, expected = _EXPECTED.get((task.id, visit), lambda: self._expected(task, calls))
        subject = _subject(task, source)
        policy = numeric_policy(task)
        return _GRADES.get(
            (task.id, visit, source), lambda: grade(self.backend, subject, kept, expected, policy)
        )

    def _expected(self, task: Task, calls: Sequence[Call]) -> tuple[list[Call], list[Answer]]:
        """The original's answers, computed in a sandbox that no candidate ever enters."""
        reference = _subject(task, str(task.hidden["reference"]).encode())
        found = answers(self.backend, reference, calls)
        # Inputs that the original rejects say nothing about the repair.
        pairs = [(c, a) for c, a in zip(calls, found, strict=False) if a.raises is None]
        if not pairs:
            raise SandboxError(f"task {task.id}: the original answers none of {len(calls)} calls")
        return [call for call, _ in pairs], [answer for _, answer in pairs]


def hidden_calls(task: Task, visit: int) -> list[Call]:
    """The calls that a visit is graded on: pinned ones first, since they fail fastest."""
    pinned = [Call.from_json(item) for item in cast("Sequence[JSON]", task.hidden["killers"])]
    examples = [Call.from_json(item) for item in cast("Sequence[JSON]", task.hidden["examples"])]
    return [*pinned, *fresh_calls(examples, seed=visit, count=FRESH_CALLS)]


def numeric_policy(task: Task) -> NumericPolicy:
    return NumericPolicy(**cast("dict[str, Any]", task.hidden.get("policy", {})))


def oracle_action(task: Task) -> str:
    """The edit that undoes the task's mutation, in the shortest form of the action language."""
    edit = cast("Mapping[str, str]", task.hidden["edit"])
    minus = "".join(f"-{line}\n" for line in edit["search"].split("\n"))
    plus = "".join(f"+{line}\n" for line in edit["replace"].split("\n"))
    return f"```diff\n{minus}{plus}```"


def _subject(task: Task, source: bytes) -> Subject:
    modules = tuple(str(name) for name in cast("Sequence[JSON]", task.hidden["modules"]))
    return Subject({_SOLUTION: source}, _SOLUTION, str(task.hidden["function"]), modules)
