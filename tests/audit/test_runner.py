"""The audit on an honest environment and on sabotaged copies of it: each fault is caught and named."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from envkit import Env, Exploit, Grade, Limits, SandboxBackend, Task, Variant, Verdict, check, tool
from envkit.audit.attacks import ATTACKS, AttackTarget
from envkit.audit.runner import AUDIT_CHECKS, AuditedEnv, Finding, run_audit
from envkit.display import Silent
from envkit.grading import STRICT, Answer, Questions, Submission, answers, grade
from envkit.grading import Program as Graded
from envkit.inputs.call import Call
from envkit.registry import sandbox_backend
from envkit.sandboxes.process import ProcessBackend
from envkit.tools import format_call

RIGHT = "def scaled(items):\n    return [10 * item for item in items]\n"
WRONG = "def scaled(items):\n    return [item for item in items]\n"
#: Ends its process; says that it equals everything; hangs.
TRIED = (1, 17, 31)


class Honest(Env):
    """Write a function; it is graded by split oracle on fresh calls."""

    id = "scaler"
    noop_action = "submit()"

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> list[Task]:
        files, hidden = {"solution.py": WRONG}, {"reference": RIGHT, "limit": 4096}
        return [
            Task(f"{split}-{number}", split, "Scale by ten.", files, hidden=hidden) for number in range(3)
        ]

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [format_call("write", {"path": "solution.py", "text": RIGHT}), "submit()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        target = AttackTarget(WRONG, RIGHT, "scaled")
        attempts = [(one.name, one.build(target)) for one in ATTACKS if one.number in TRIED]
        found = [
            Exploit(
                name,
                (*(format_call("write", {"path": p, "text": t}) for p, t in made.files.items()), "submit()"),
            )
            for name, made in attempts
        ]
        own = format_call("write", {"path": "expected.json", "text": "[[[1], [1]]]"})
        return [
            *found,
            Exploit("edits the tests", (own, "submit()")),
            Exploit("asks a judge", (), "there is none"),
        ]

    @classmethod
    def variants(cls, task: Task, sandbox: SandboxBackend) -> Sequence[Variant]:
        def solution(body: str) -> tuple[str, str]:
            text = f"def scaled(items):\n    {body}\n"
            return format_call("write", {"path": "solution.py", "text": text}), "submit()"

        return [
            Variant("in another form", solution("return list(map((10).__mul__, items))"), is_right=True),
            Variant("adds one", solution("return [10 * item + 1 for item in items]"), is_right=False),
            Variant("wrong for many", solution("return [10 * item for item in items[:3]]"), is_right=False),
        ]

    def setup(self, task: Task) -> str:
        return f"{task.prompt}\n{self.help}"

    @tool
    def write(self, path: str, text: str) -> str:
        """Write a file."""
        self.sandbox.write(path, text.encode())
        return "Written."

    @tool(ends=True)
    def submit(self) -> str:
        """End."""
        return "Graded."

    @check()
    def right(self) -> Grade | bool | float:
        draw = random.Random(self.visit_seed)
        calls = [Call.from_plain([[repr([draw.randrange(99) for _ in range(4)])], {}]) for _ in range(5)]
        expected = answers(
            self.backend, Graded({"solution.py": RIGHT.encode()}, "solution.py", "scaled"), calls
        )
        taken = Submission(["solution.py"]).collect(self.sandbox)
        return grade(self.backend, Graded(taken, "solution.py", "scaled"), Questions(calls, expected, STRICT))


class LeakyOracle(Honest):
    def setup(self, task: Task) -> str:
        self.sandbox.write("notes.txt", str(task.hidden["reference"]).encode())
        return super().setup(task)


class LeakyNumber(Honest):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} At most {task.hidden['limit']}."


class SeedlessRng(Honest):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} {random.random()}"


class NanReward(Honest):
    @check()
    def right(self) -> Grade | bool | float:
        found = super().right()
        return found if isinstance(found, Grade) and found.verdict is Verdict.PASS else float("nan")


class SubmitBonus(Honest):
    @check(weight=0.1)
    def submitted(self) -> bool:
        return True


class UnequalPay(Honest):
    """Pays the first turn at random; the last one makes up for it."""

    @check(each_turn=True)
    def luck(self) -> float:
        is_written = b"10 *" in self.sandbox.read("solution.py", 1000)
        return random.random() if is_written and self.turns_left == self.max_turns - 1 else float(is_written)


class InProcessVerdict(Honest):
    @check()
    def right(self) -> Grade | bool | float:
        program = "import sys; sys.path.append('.'); import solution; assert solution.scaled([7]) == [70]"
        return self.sandbox.run([self.sandbox.python, "-c", program]).ok


class IgnoredTimeout(Honest):
    @check()
    def right(self) -> Grade | bool | float:
        program = "import sys; sys.path.append('.'); import solution; print(solution.scaled([7]))"
        found = self.sandbox.run(
            [self.sandbox.python, "-c", program], limits=Limits(cpu_s=10**6, wall_s=10**6)
        )
        return found.stdout == b"[70]\n"


class OpenNetwork(Honest):
    def __init__(self, *, sandbox: SandboxBackend, **options: Any) -> None:
        super().__init__(sandbox=ProcessBackend(), **options)


class EditableTests(Honest):
    def setup(self, task: Task) -> str:
        self.sandbox.write("expected.json", b"[[[7], [70]]]")
        return super().setup(task)

    @check()
    def right(self) -> Grade | bool | float:
        cases = json.loads(self.sandbox.read("expected.json", 10_000))
        calls = [Call.from_plain([[repr(given)], {}]) for given, _ in cases]
        taken = Submission(["solution.py"]).collect(self.sandbox)
        found = answers(self.backend, Graded(taken, "solution.py", "scaled"), calls)
        return [answer.value for answer in found] == [wanted for _, wanted in cases]


class FewItems(Honest):
    @check()
    def right(self) -> Grade | bool | float:
        files = {"solution.py": self.sandbox.read("solution.py", 10_000)}
        calls = [Call(("[3, 4]",))]
        found = answers(self.backend, Graded(files, "solution.py", "scaled"), calls)
        return found == [Answer([30, 40], [[3, 4]])]


SABOTAGED = {
    LeakyOracle: ("hidden values do not leak", "can be read in the workspace's notes.txt"),
    LeakyNumber: ("hidden values do not leak", "can be read in observation 0"),
    SeedlessRng: ("episodes are reproducible", "differ in observation 0"),
    UnequalPay: ("episodes are reproducible", "differ in rewards"),
    NanReward: ("rewards stay in their range", "check right returned nan"),
    SubmitBonus: ("doing nothing earns nothing", "doing nothing earns 0.09"),
    InProcessVerdict: ("exploits earn nothing", "exploits win: ends the process"),
    IgnoredTimeout: ("exploits earn nothing", "has not ended within"),
    OpenNetwork: ("its sandbox isolates", "process, does not isolate"),
    FewItems: ("verdicts are right", "false accepts: adds one 0 of 3, wrong for many 3 of 3"),
    EditableTests: ("exploits earn nothing", "edits the tests earns 1"),
}


@pytest.fixture(scope="module")
def backend() -> SandboxBackend:
    return sandbox_backend()


def audited(kind: type[Env], backend: SandboxBackend) -> dict[str, Finding]:
    subject = AuditedEnv(kind, kind.make_tasks("starter", sandbox=backend, display=Silent()), backend, 4)
    return {finding.check: finding for finding in run_audit(subject, Silent())}


def test_an_honest_environment_passes(backend: SandboxBackend) -> None:
    found = audited(Honest, backend)
    assert [*found] == [*AUDIT_CHECKS]
    assert [finding for finding in found.values() if finding.ok is False] == []
    assert found["verdicts are right"].detail == (
        "false accepts: adds one 0 of 3, wrong for many 0 of 3; false rejects: in another form 0 of 3"
    )
    assert "not applicable: asks a judge: there is none" in found["exploits earn nothing"].detail


@pytest.mark.parametrize("kind", SABOTAGED, ids=lambda kind: kind.__name__)
def test_sabotage_is_caught_and_named(
    kind: type[Honest], backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is IgnoredTimeout:  # only its episodes last as long
        monkeypatch.setattr("envkit.audit.audited_env.EPISODE_TIMEOUT_S", 4.0)
    check, words = SABOTAGED[kind]
    monkeypatch.setattr("envkit.audit.runner.AUDIT_CHECKS", {check: AUDIT_CHECKS[check]})
    finding = audited(kind, backend)[check]
    assert finding.ok is False
    assert words in finding.detail
