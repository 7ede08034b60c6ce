"""The examples run unchanged and stay within their line limits."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envkit.audit.audited_env import AuditedEnv
from envkit.audit.certificate import certify
from envkit.audit.runner import AUDIT_CHECKS
from envkit.audit.suite import EnvSuite
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    return lambda name: importlib.import_module(f"examples.{name}")


@pytest.mark.parametrize(("name", "lines"), [("analyst", 40), ("rl_loop", 80)])
def test_an_example_is_short(name: str, lines: int) -> None:
    assert len([line for line in (FOLDER / f"{name}.py").read_text().split("\n") if line.strip()]) <= lines


def test_the_analyst_is_a_whole_environment(load: Any, backend: SandboxBackend) -> None:
    kind = load("analyst").Analyst
    tasks = kind.tasks_of("train", backend)
    assert tasks == kind.tasks_of("train", backend)
    assert not {task.files["table.csv"] for task in tasks} & {
        task.files["table.csv"] for task in kind.tasks_of("heldout", backend)
    }
    env = kind(tasks=tasks, sandbox=backend)
    check_env(env, skip_render_check=True)
    right = {task.id: task.hidden["total"] for task in tasks}
    rows = "csv.DictReader(open('table.csv'))"
    program = f"import csv\nprint(sum(int(row['price']) for row in {rows} if row['item'] == 'A'))"
    for off, earned in ((0, 1.0), (1, 0.0)):
        seen, info = env.reset(seed=1)
        assert "run(code: str)  Run a Python program" in seen
        assert env.step(f"run\n```python\n{program}\n```")[0] == f"{right[info['task']]}\n"
        _, reward, terminated, _, _ = env.step(f"answer({right[info['task']] + off})")
        assert (reward, terminated) == (earned, True)
    env.close()


@pytest.mark.slow
@pytest.mark.model
def test_the_loop_takes_steps(load: Any) -> None:
    rewards = load("rl_loop").main(steps=2)
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)


# The invoice office.


@pytest.fixture(scope="module")
def office() -> Any:
    sys.path.insert(0, str(FOLDER / "invoice_office"))
    try:
        yield importlib.import_module("invoice_office")
    finally:
        sys.path.pop(0)


@pytest.fixture
def desk(office: Any, backend: SandboxBackend) -> Any:
    env = office.InvoiceOffice(
        tasks=importlib.import_module("invoice_office.tasks").generate("train")[:30], sandbox=backend
    )
    yield env
    env.close()


def begin(env: Any, level: int, *, has_reminder: bool = False) -> Any:
    """Begin a task of a level; returns what is hidden."""
    chosen = next(
        task
        for task in env.tasks.values()
        if task.metadata["operator"] == f"level {level}" and (bool(task.hidden["reminders"]) is has_reminder)
    )
    env.reset(seed=0, options={"task": chosen.id})
    return chosen.hidden


def test_the_office_pays_step_by_step_and_for_what_was_asked(desk: Any) -> None:
    hidden = begin(desk, 2)
    [[payment, invoice]] = hidden["matches"]
    assert "unmatched payments: none" in desk.step("payments()")[0]
    seen, reward, *_ = desk.step("import_statement('bank.csv')")
    assert seen.count("\n") == 3
    assert reward == pytest.approx(0.5 - 0.01)
    assert desk.step(f"match({payment}, {invoice})")[1] == pytest.approx(0.5 - 0.01)
    _, reward, terminated, _, info = desk.step("done()")
    assert (reward, terminated, info["solved"]) == (-0.01, True, True)


def test_a_change_that_nobody_asked_for_costs_what_a_right_one_earns(desk: Any) -> None:
    hidden = begin(desk, 1, has_reminder=True)
    late = [
        row["number"]
        for row in json.loads(desk.task.files["start.json"])["invoices"]
        if row["state"] == "open"
    ]
    others = [number for number in late if number not in hidden["reminders"]]
    answers = [desk.step(f"remind({number})") for number in others]
    assert any("reminded" in answer[0] for answer in answers)
    assert any("Not done: invoice" in answer[0] for answer in answers), "some are not overdue"
    *_, info = desk.step(f"remind({hidden['reminders'][0]})")
    assert info["rewards"]["as_asked"] == 0
    *_, info = desk.step("done()")
    assert (info["solved"], info["scores"]["as_asked"]) == (False, 0)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_task_of_the_office_is_solved_by_its_oracle(
    office: Any, backend: SandboxBackend, split: str
) -> None:
    tasks = importlib.import_module("invoice_office.tasks").generate(split)
    env = office.InvoiceOffice(tasks=tasks, sandbox=backend)
    for task in tasks[:: len(tasks) // 12]:
        env.reset(seed=0, options={"task": task.id})
        steps = [env.step(action) for action in env.oracle(task)]
        assert len(steps) <= env.max_turns
        assert (steps[-1][2], steps[-1][4]["solved"]) == (True, True)
    env.close()
    sources = {task.source for task in tasks}
    assert len(sources) == len({task.id for task in tasks}) == len(tasks)


#: Checks that play the most episodes, of ten turns each.
MANY_TURNS = (
    "a fresh process plays the same",
    "breaking earns nothing",
    "claims and padding earn nothing",
    "near misses fail",
    "what is shown depends on nothing hidden",
    "words of the source earn nothing",
)


class TestOfficeAudit(EnvSuite):
    """The office passes its audit of fewer episodes; some checks at night."""

    @pytest.mark.parametrize(
        "check",
        [
            pytest.param(name, marks=pytest.mark.nightly if name in MANY_TURNS else ())
            for name in AUDIT_CHECKS
        ],
    )
    def test_audit(self, audited: AuditedEnv, check: str) -> None:
        super().test_audit(audited, check)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def imported(cls, office: Any) -> None:
        cls.kind = office.InvoiceOffice


@pytest.mark.nightly
def test_the_office_passes_its_whole_audit(office: Any, backend: SandboxBackend) -> None:
    found = certify(office.InvoiceOffice, backend, Silent())
    assert [finding for finding in found.findings if finding.ok is False] == []
