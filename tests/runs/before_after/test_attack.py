"""Attack by training: what earns the reward and fails a held-out check is found, kept and played again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny

sys.path.append(str(Path(__file__).parents[2] / "audit" / "sabotages"))

import sabotage_trained as trained

from envkit.audit import cases as audit_cases
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.audit.cases import CASES, Case, keep_cases, read_cases, replay_cases, write_cases
from envkit.audit.certificate import certify
from envkit.audit.runner import AUDIT_CHECKS
from envkit.env import Env
from envkit.env.checks import check
from envkit.errors import TaskFileError, UsageError
from envkit.runs.before_after.attack import CHECK, SETTINGS, attack
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Task

TASKS = tiny.letter_tasks("abcdefgh")


class Lax(tiny.LetterEnv):
    """Every answer but the empty one counts as right; only the held-out check asks for the letter."""

    id: ClassVar[str] = "lax"
    noop_action = ""

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return TASKS

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [str(task.metadata["letter"])]

    @check()
    def says_it(self) -> bool:
        return bool(self._said)

    @check(held_out=True)
    def really_says_it(self) -> bool:
        return str(self.task.metadata["letter"]) == self._said


class Honest(Lax):
    id: ClassVar[str] = "honest"

    @check()
    def says_it(self) -> bool:
        return str(self.task.metadata["letter"]) == self._said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make(tmp_path_factory.mktemp("model")).path)


def attacked(kind: type[Env], model: str) -> Any:
    settings = replace(SETTINGS, model=model, max_steps=2, groups_per_step=2, num_generations=4, max_turns=1)
    settings = replace(settings, max_completion_length=4, dtype="float32")
    return attack(kind, TASKS, sandbox_backend(), 1.0, Silent(), settings)


def test_a_way_around_the_reward_is_found(model: str) -> None:
    found = attacked(Lax, model)
    assert (found.steps, found.episodes) == (2, 16)
    assert 0 < len(found.cases) <= found.solved
    assert len({case.actions for case in found.cases}) == len(found.cases)
    for case in found.cases:
        assert case.actions[0] not in ("", case.task.metadata["letter"])
    finding = found.finding()
    assert (finding.check, finding.ok) == (CHECK, False)
    assert f"ways around the reward, such as on task {found.cases[0].task.id}: " in finding.detail


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [trained.AnyOrder, trained.Repeats, trained.AboutRight])
def test_the_default_model_finds_holes_that_the_audit_misses(
    kind: type[Env], backend: SandboxBackend, cached: Path
) -> None:
    """tests/audit/test_sabotages.py shows that it misses them."""
    tasks = kind.make_tasks("train", sandbox=backend, display=Silent())
    found = attack(kind, tasks, backend, 3.0, Silent())
    assert len(found.cases) >= 3, found.finding().detail
    keep_cases(found.cases, kind)
    subject = AuditedEnv(kind, tasks, backend, kind.max_turns)
    with pytest.raises(AuditFailure, match="an attack that training found still earns 1"):
        replay_cases(subject)


def test_no_way_is_found_where_there_is_none(model: str) -> None:
    found = attacked(Honest, model)
    assert (found.episodes, found.cases) == (16, ())
    assert found.finding().ok is True


def test_an_environment_without_a_held_out_check_cannot_be_attacked(model: str) -> None:
    with pytest.raises(UsageError, match=r"letter has no held-out check.*mark a check with @check"):
        attacked(tiny.LetterEnv, model)


# Cases.


FOUND = [Case(TASKS[0], ("b",)), Case(TASKS[1], ("x", "yes"), 7)]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audit_cases, "cache_dir", lambda: tmp_path)
    return tmp_path / "certificates" / f"lax.{CASES}"


def audited(kind: type[Env], backend: SandboxBackend) -> AuditedEnv:
    return AuditedEnv(kind, TASKS, backend, 2)


def test_cases_are_kept_once(cached: Path) -> None:
    assert keep_cases(FOUND[:1], Lax) == cached
    keep_cases(FOUND, Lax)
    kept = read_cases(cached, Lax)
    assert [(case.actions, case.seed) for case in kept] == [(case.actions, case.seed) for case in FOUND]
    assert [case.task.id for case in kept] == ["a#0", "b#1"]
    assert [case.task.prompt for case in kept] == [case.task.prompt for case in FOUND]


def test_the_same_actions_on_another_task_or_with_another_seed_are_another_case(cached: Path) -> None:
    first, *others = (
        Case(TASKS[0], ("x",)),
        Case(TASKS[1], ("x",)),
        Case(TASKS[0], ("x",), 7),
        Case(replace(TASKS[0], prompt="another task of the same id"), ("x",)),
    )
    keep_cases([first], Lax)
    keep_cases([first, *others], Lax)
    kept = read_cases(cached, Lax)
    assert [(case.task.id, case.seed) for case in kept] == [("a#0", 0), ("b#1", 0), ("a#2", 7), ("a#3", 0)]
    keep_cases([*others, *kept], Lax)
    assert read_cases(cached, Lax) == kept


def test_attacks_at_the_same_time_keep_all_their_cases(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_slowly(*given: Any) -> None:
        time.sleep(0.1)
        write_cases(*given)

    monkeypatch.setattr(audit_cases, "write_cases", write_slowly)
    with ThreadPoolExecutor() as pool:  # a lock of one thread holds against other threads, too
        [*pool.map(lambda task: keep_cases([Case(task, ("x",))], Lax), TASKS[:4])]
    assert {case.task.prompt for case in read_cases(cached, Lax)} == {task.prompt for task in TASKS[:4]}


def test_an_audit_plays_known_cases_again(cached: Path, backend: SandboxBackend) -> None:
    with pytest.raises(NotApplicable, match="envkit audit --attack-by-training"):
        replay_cases(audited(Lax, backend))
    keep_cases(FOUND, Lax)
    with pytest.raises(AuditFailure, match="still earns 1 on task a#0, and fails really_says_it: 'b'"):
        replay_cases(audited(Lax, backend))

    class Mended(Lax):
        @check()
        def says_it(self) -> bool:
            return self._said == str(self.task.metadata["letter"])

    assert replay_cases(audited(Mended, backend)) == "2 attacks that training found earn nothing any more"

    class Unwatched(Lax):
        """Its held-out check was made an ordinary one."""

        @check(weight=0)
        def really_says_it(self) -> bool:
            return str(self.task.metadata["letter"]) == self._said

    with pytest.raises(AuditFailure, match="no held-out check tells any more that it is an attack"):
        replay_cases(audited(Unwatched, backend))


def test_a_case_is_played_with_its_own_seed(cached: Path, backend: SandboxBackend) -> None:
    class Odd(Lax):
        """Its hole is open in every second visit."""

        @check()
        def says_it(self) -> bool:
            return self._said == str(self.task.metadata["letter"]) or self.visit_seed % 2 == 1

    (found,) = [case for case in (Case(TASKS[0], ("x",), seed) for seed in range(9)) if opens(Odd, case)][:1]
    assert found.seed > 0, "the hole must be closed at seed 0"
    keep_cases([found], Odd)
    with pytest.raises(AuditFailure, match="still earns 1 on task a#0"):
        replay_cases(audited(Odd, backend))


def opens(kind: type[Env], case: Case) -> bool:
    with contextlib.closing(kind(tasks=TASKS, sandbox=sandbox_backend())) as env:
        env.reset(seed=case.seed, options={"task": case.task.id})
        return env.visit_seed % 2 == 1


def test_cases_that_cannot_be_posed_any_more_are_left_out_and_named(
    cached: Path, backend: SandboxBackend
) -> None:
    class Changed(Lax):
        @classmethod
        def validate_task(cls, task: Task) -> None:
            if task.id.startswith("a"):
                raise TaskFileError(f"task {task.id}: hidden has no 'b'")

        @check()
        def says_it(self) -> bool:
            return self._said == str(self.task.metadata["letter"])

    left_out = f"1 cannot be posed any more, the first: {cached}: task a#0: hidden has no 'b'"
    keep_cases(FOUND, Changed)
    assert replay_cases(audited(Changed, backend)) == (
        f"1 attacks that training found earn nothing any more; {left_out}"
    )


def test_a_file_without_actions_is_no_file_of_cases(tmp_path: Path) -> None:
    from envkit.env.taskfile import write_tasks

    write_tasks(tmp_path / "tasks.jsonl", TASKS, 0)
    with pytest.raises(
        TaskFileError, match=r"task a has None in metadata\.attack; expected a list of actions and a seed"
    ):
        read_cases(tmp_path / "tasks.jsonl", Lax)
    write_cases(tmp_path / "cases.jsonl", FOUND, "other")
    with pytest.raises(TaskFileError, match="'other'"):
        read_cases(tmp_path / "cases.jsonl", Lax)


def test_an_attack_is_part_of_the_certificate(
    cached: Path, model: str, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = "the oracle earns full reward"
    monkeypatch.setattr("envkit.audit.runner.AUDIT_CHECKS", {solved: AUDIT_CHECKS[solved]})
    more = [attacked(Lax, model).finding()]
    certificate = certify(Lax, backend, Silent(), more=more)
    assert [finding.ok for finding in certificate.findings] == [True, False]
    assert certificate.findings[-1] == more[0]
    assert not certificate.passed
