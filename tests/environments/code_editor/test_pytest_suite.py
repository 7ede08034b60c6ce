"""Tasks mined from a checkout: one editable file, other files to view, graded by the project's suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shop_checkout import lay_out

from envkit.audit.runner import AuditedEnv, run_audit
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.env import oracle_action
from envkit.environments.code_editor.mining.suite.miner import mine_checkout
from envkit.runs.benchmark.validate_tasks import validate_tasks
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend
from envkit.types import Task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, backend: SandboxBackend) -> list[Task]:
    root = lay_out(tmp_path_factory.mktemp("shop"))
    return [*mine_checkout(root, seed=0, split="train", backend=backend, per_function=1).tasks]


@pytest.fixture(scope="module")
def due(tasks: list[Task]) -> Task:
    return next(task for task in tasks if task.metadata["function"] == "due")


def played(task: Task, backend: SandboxBackend, *actions: str) -> tuple[list[str], float, dict[str, Any]]:
    """Return the observations, the reward, and the last step's info."""
    env = CodeEditorEnv(tasks=[task], sandbox=backend, max_turns=len(actions))
    seen, reward, facts = [env.reset(seed=0)[0]], 0.0, {}
    for action in actions:
        observation, reward, _, _, facts = env.step(action)
        seen.append(observation)
    env.close()
    return seen, float(reward), facts


def test_the_oracle_earns_1_and_the_no_op_0(tasks: list[Task], backend: SandboxBackend) -> None:
    assert len({task.source for task in tasks}) > 4
    assert validate_tasks(CodeEditorEnv, tasks, backend, Silent(), seed=0) == []


def test_the_held_out_check_is_skipped_if_no_inputs_are_drawn(due: Task, backend: SandboxBackend) -> None:
    env = CodeEditorEnv(tasks=[due], sandbox=backend, max_turns=2)
    env.reset(seed=0, options={"held_out": True})
    _, reward, _, _, facts = env.step(CodeEditorEnv.oracle(due)[0])
    env.close()
    assert (reward, facts.get("held_out", {})) == (1.0, {})


def test_tasks_of_a_checkout_pass_the_audit(due: Task, backend: SandboxBackend) -> None:
    findings = run_audit(AuditedEnv(CodeEditorEnv, [due], backend, 3, quick=True), Silent())
    assert [finding for finding in findings if finding.ok is False] == []


def test_the_report_states_the_weaker_grading(due: Task, backend: SandboxBackend) -> None:
    for actions, verdict in (([oracle_action(due), "submit"], "PASS"), (["submit"], "FAIL")):
        _, reward, facts = played(due, backend, *actions)
        assert (reward, facts["verdict"]) == (float(verdict == "PASS"), verdict)
        assert "one process" in facts["weaknesses"]["answers_as_original"]


def test_the_function_is_shown_and_other_files_can_be_viewed(due: Task, backend: SandboxBackend) -> None:
    views = (
        "outline",
        "view shop/stock.py",
        "view shop/stock.py 1-2",
        "view shop/stock.py Stock.take",
        "view due",
    )
    seen, *_ = played(due, backend, *views)
    assert "shop/basket.py has a bug, and tests of shop fail." in seen[0]
    assert "def due(stock, wanted, nets):" in seen[0]
    assert "Files beside it, for view: shop/__init__.py, shop/prices.py, shop/stock.py" in seen[1]
    assert "def add(self, name, count=1):" in seen[2]
    assert seen[3].split("\n")[0] == "class Stock:"
    assert "def take" in seen[4]
    assert "def add" not in seen[4]
    assert "def due" in seen[5]


def test_the_suite_is_not_visible(due: Task, backend: SandboxBackend) -> None:
    seen, reward, _ = played(due, backend, "view tests/test_shop.py", "run", "submit")
    assert "There is no tests/test_shop.py" in seen[1]
    assert "no tests to run" in seen[2]
    assert reward == 0


def test_changing_another_file_is_tampering(due: Task, backend: SandboxBackend) -> None:
    env = CodeEditorEnv(tasks=[due], sandbox=backend, max_turns=1)
    env.reset(seed=0)
    env.sandbox.write("shop/stock.py", b"class Stock: pass\n")
    _, reward, _, _, facts = env.step("submit")
    assert (reward, facts["verdict"]) == (0, "TAMPERED")


def test_a_repair_that_breaks_another_test_earns_no_reward(due: Task, backend: SandboxBackend) -> None:
    repair = oracle_action(due)
    _, reward, facts = played(
        due, backend, repair, "```python\ndef filled(names):\n    return None\n```\nsubmit"
    )
    assert (reward, facts["verdict"]) == (0, "FAIL")


def test_a_changed_file_beside_the_edited_one_is_graded_anew(due: Task, backend: SandboxBackend) -> None:
    broken = replace(due, files={**due.files, "shop/stock.py": "raise RuntimeError\n"})
    rewards = [played(task, backend, oracle_action(due), "submit")[1] for task in (due, broken, due)]
    assert rewards == [1.0, 0.0, 1.0]


def test_the_attack_corpus_is_not_played(due: Task) -> None:
    found = CodeEditorEnv.exploits(due)
    assert found
    assert all(not one.actions and "weaker" in one.inapplicable for one in found)
