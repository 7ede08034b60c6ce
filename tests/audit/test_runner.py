"""The audit on an honest environment and on sabotaged copies of it: each fault is caught and named."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from scaler_env import Scaler

from envkit import Env, Grade, Limits, SandboxBackend, Task, Verdict, check
from envkit.audit.runner import AUDIT_CHECKS, AuditedEnv, Finding, run_audit
from envkit.env.submission import Submission
from envkit.environments.code_editor.graders.oracle import Answer, answers
from envkit.environments.code_editor.graders.oracle import Program as Graded
from envkit.environments.code_editor.inputs.call import Call
from envkit.runtime.display import Silent
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes.process import ProcessBackend


class LeakyOracle(Scaler):
    def setup(self, task: Task) -> str:
        self.sandbox.write("notes.txt", str(task.hidden["reference"]).encode())
        return super().setup(task)


class LeakyNumber(Scaler):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} At most {task.hidden['limit']}."


class SeedlessRng(Scaler):
    def setup(self, task: Task) -> str:
        return f"{super().setup(task)} {random.random()}"


class NanReward(Scaler):
    @check()
    def right(self) -> Grade | bool | float:
        found = super().right()
        return found if isinstance(found, Grade) and found.verdict is Verdict.PASS else float("nan")


class SubmitBonus(Scaler):
    @check(weight=0.1)
    def submitted(self) -> bool:
        return True


class UnequalPay(Scaler):
    """Pays the first turn at random; the last one makes up for it."""

    @check(each_turn=True)
    def luck(self) -> float:
        is_written = b"10 *" in self.sandbox.read("solution.py", 1000)
        return random.random() if is_written and self.turns_left == self.max_turns - 1 else float(is_written)


class InProcessVerdict(Scaler):
    @check()
    def right(self) -> Grade | bool | float:
        program = "import sys; sys.path.append('.'); import solution; assert solution.scaled([7]) == [70]"
        return self.sandbox.run([self.sandbox.python, "-c", program]).ok


class IgnoredTimeout(Scaler):
    @check()
    def right(self) -> Grade | bool | float:
        program = "import sys; sys.path.append('.'); import solution; print(solution.scaled([7]))"
        found = self.sandbox.run(
            [self.sandbox.python, "-c", program], limits=Limits(cpu_s=10**6, wall_s=10**6)
        )
        return found.stdout == b"[70]\n"


class OpenNetwork(Scaler):
    def __init__(self, *, sandbox: SandboxBackend, **options: Any) -> None:
        super().__init__(sandbox=ProcessBackend(), **options)


class EditableTests(Scaler):
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


class FewItems(Scaler):
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
    found = audited(Scaler, backend)
    assert [*found] == [*AUDIT_CHECKS]
    assert [finding for finding in found.values() if finding.ok is False] == []
    assert found["verdicts are right"].detail == (
        "false accepts: adds one 0 of 3, wrong for many 0 of 3; false rejects: in another form 0 of 3"
    )
    assert "not applicable: asks a judge: there is none" in found["exploits earn nothing"].detail


@pytest.mark.parametrize("kind", SABOTAGED, ids=lambda kind: kind.__name__)
def test_sabotage_is_caught_and_named(
    kind: type[Scaler], backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is IgnoredTimeout:  # only its episodes last as long
        monkeypatch.setattr("envkit.audit.audited_env.EPISODE_TIMEOUT_S", 4.0)
    check, words = SABOTAGED[kind]
    monkeypatch.setattr("envkit.audit.runner.AUDIT_CHECKS", {check: AUDIT_CHECKS[check]})
    finding = audited(kind, backend)[check]
    assert finding.ok is False
    assert words in finding.detail
