"""Certificates: when one is valid, what an audit writes, and how bad files are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from echo_env import Echo
from letters_env import Letters

import envkit
from envkit import Env, SandboxBackend, Task
from envkit.audit import certificate
from envkit.audit.audited_env import AuditedEnv, Coverage
from envkit.audit.certificate import Certificate, certify
from envkit.audit.code_digest import SCHEME, content_digest
from envkit.audit.runner import Finding
from envkit.env.harness import Harness, harnessed
from envkit.env.taskfile import digest
from envkit.environments.code_editor import CodeEditorEnv
from envkit.errors import UsageError
from envkit.runtime.display import Silent
from envkit.sandbox import Lock

GOOD, BAD = Finding("a", True, "fine"), Finding("b", False, "x | y")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def made(*findings: Finding, kind: type[Env] = Echo, standard: bool = True, **fields: Any) -> Certificate:
    return Certificate(
        environment=kind.id,
        digest=content_digest(kind),
        digest_scheme=SCHEME,
        created="2026-01-02",
        sandbox="zygote",
        tasks=3,
        tasks_digest="f" * 64,
        standard=standard,
        coverage=Coverage(2, 3, (1, 2), {"1": (1, 1), "2": (1, 2)}),
        findings=[*findings],
        **fields,
    )


def test_it_is_bound_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert certificate.certificate_problem(Echo) == "it was never audited"
    certificate.write(made(GOOD, Finding("c", None, "none")), certificate.cached(Echo))
    assert certificate.certificate_problem(Echo) == ""
    certificate.require_certified(Echo)
    kept = certificate.read(certificate.cached(Echo))
    assert kept == made(GOOD, Finding("c", None, "none"))
    assert kept.passed
    assert json.loads(certificate.cached(Echo).read_text())["not_applicable"] == {"c": "none"}
    shown = certificate.cached(Echo).with_suffix(".md").read_text()
    assert "Played: 2 of 3 tasks, from 1 of 2 sources." in shown
    assert "| 2 | 1 | 2 |" in shown
    assert "1 of 2 checks do not apply:\n\n- c: none\n" in shown
    certificate.write(made(GOOD, BAD), certificate.cached(Echo))
    with pytest.raises(
        UsageError, match=r"echo has no valid certificate: it has failed its audit: b: x \| y; run"
    ):
        certificate.require_certified(Echo)
    assert "| b | FAIL | x \\| y |" in certificate.cached(Echo).with_suffix(".md").read_text()
    monkeypatch.setattr(certificate, "content_digest", lambda kind: "other")
    assert certificate.certificate_problem(Echo) == "its code has changed since it was audited on 2026-01-02"


def test_what_a_harness_plays_needs_the_environments_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = harnessed(CodeEditorEnv, Harness("test", ("true",)))
    certificate.require_certified(kind, max_turns=90)
    monkeypatch.setattr(certificate, "content_digest", lambda kind: "other")
    with pytest.raises(UsageError, match="; run: envkit audit code-editor, or train"):
        certificate.require_certified(kind, max_turns=90)


def test_a_digest_of_another_scheme_is_of_other_code() -> None:
    other = dataclasses.replace(made(GOOD), digest_scheme="bytes-1")
    certificate.write(other, certificate.cached(Echo))
    assert certificate.certificate_problem(Echo) == "its code has changed since it was audited on 2026-01-02"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificate:
    """A valid certificate that is installed with the environment."""
    monkeypatch.setattr(certificate, "shipped", lambda kind: tmp_path / certificate.SHIPPED)
    found = made(GOOD)
    certificate.write(found, tmp_path / certificate.SHIPPED)
    assert certificate.certificate_problem(Echo) == ""
    return found


def test_a_standard_audit_that_failed_outweighs_a_shipped_certificate(shipped: Certificate) -> None:
    path = certificate.write_cached(Echo, dataclasses.replace(shipped, findings=[BAD]))
    assert path == certificate.cached(Echo)
    assert certificate.certificate_problem(Echo) == "it has failed its audit: b: x | y"


def test_a_failure_with_given_tasks_leaves_a_shipped_certificate_valid(shipped: Certificate) -> None:
    failed = dataclasses.replace(shipped, findings=[BAD], standard=False)
    assert certificate.write_cached(Echo, failed) is None
    assert not certificate.cached(Echo).exists()
    certificate.write(failed, certificate.cached(Echo))  # by hand, or before the other was installed
    assert certificate.certificate_problem(Echo) == ""


def test_without_a_valid_one_an_audit_with_given_tasks_decides() -> None:
    certificate.write_cached(Echo, made(BAD, standard=False))
    assert certificate.certificate_problem(Echo) == "it has failed its audit: b: x | y"
    certificate.write_cached(Echo, made(GOOD, standard=False))
    assert certificate.certificate_problem(Echo) == ""
    certificate.write_cached(Echo, made(BAD, standard=False))
    assert certificate.certificate_problem(Echo) == "", "it took the place of a valid one"


def test_another_environment_in_the_same_folder_has_no_certificate(shipped: Certificate) -> None:
    class Sibling(Echo):
        id = "sibling"

    assert certificate.certificate_problem(Sibling) == "it was never audited"


def test_an_audit_records_its_tasks_and_passes(backend: SandboxBackend) -> None:
    found = certify(Echo, backend, Silent())
    starters = Echo.make_tasks("starter")
    assert [finding for finding in found.findings if finding.ok is False] == []
    assert (found.tasks, found.standard) == (len(starters), True)
    assert found.tasks_digest == digest(sorted(starters, key=lambda task: task.id))
    given = certify(Echo, backend, Silent(), tasks=starters[::-1])
    assert (given.tasks_digest, given.standard) == (found.tasks_digest, False)
    assert (found.max_turns, found.lock, found.contents) == (3, "", "")
    assert not {"lock", "contents"} & json.loads(found.to_json()).keys()
    assert f"{len(starters)} tasks, 3 turns an episode, isolation sandbox." in found.markdown()


def test_an_audit_records_what_the_sandboxes_held_and_the_number_of_turns(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(certificate, "run_audit", lambda *_: [GOOD])  # the real one plays for a minute
    found = certify(Letters, backend, Silent(), max_turns=5)
    lock = Letters.equip(backend).lock
    assert (found.max_turns, found.lock, found.contents) == (5, lock.digest, str(lock))
    assert "jinja2 3.1.6" in found.contents
    assert f"Sandboxes held {lock}." in found.markdown()
    certificate.write(found, tmp_path / "written.json")
    assert certificate.read(tmp_path / "written.json") == found


OLD, NEW = Lock(("jinja2==3.1.5 --hash=sha256:aa",)), Lock(("jinja2==3.1.6 --hash=sha256:bb",))


def test_it_is_valid_for_what_the_sandboxes_held_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "shipped", lambda kind: tmp_path / certificate.SHIPPED)
    certificate.write(made(GOOD, lock=OLD.digest, contents=str(OLD)), certificate.shipped(Echo))
    assert certificate.certificate_problem(Echo, OLD) == ""
    assert certificate.certificate_problem(Echo, NEW) == (
        f"it was audited with sandboxes that held {OLD}, and here they hold {NEW}"
    )
    assert certificate.certificate_problem(Echo, Lock()).endswith("and here they hold nothing beside Python")
    here = made(GOOD, lock=NEW.digest, contents=str(NEW))
    certificate.write_cached(Echo, here)
    assert certificate.valid(Echo, NEW) == here, "this machine's own audit counts beside the shipped one"
    assert certificate.certificate_problem(Echo, OLD) == ""
    certificate.write_cached(Echo, made(GOOD))
    assert "held nothing beside Python, and here" in certificate.certificate_problem(Echo, NEW)


def test_it_is_valid_for_no_more_turns_than_were_audited() -> None:
    certificate.write_cached(Echo, made(GOOD, max_turns=5))
    certificate.require_certified(Echo, max_turns=5)
    with pytest.raises(
        UsageError,
        match="audited with 5 turns an episode, and this run has 6; run: envkit audit echo --max-turns 6",
    ):
        certificate.require_certified(Echo, max_turns=6)
    assert certificate.fewer_turns(Echo, Lock(), 5) == ""
    assert certificate.fewer_turns(Echo, Lock(), 6) == "", "there is no valid one to speak of"
    fewer = "echo was audited with 5 turns an episode; this run has 2."
    assert certificate.fewer_turns(Echo, Lock(), 2) == fewer


def test_one_that_does_not_say_its_turns_had_the_environments_own() -> None:
    certificate.write_cached(Echo, made(GOOD))
    assert "max_turns" not in json.loads(certificate.cached(Echo).read_text())
    assert certificate.certificate_problem(Echo, max_turns=3) == ""
    assert "audited with 3 turns" in certificate.certificate_problem(Echo, max_turns=4)


@pytest.mark.parametrize(
    ("turns", "lock", "message"),
    [
        (4, None, "audited with 3 turns an episode, and this run has 4"),
        (3, OLD, "here they hold jinja2 3.1.6"),
    ],
    ids=["more turns", "other packages"],
)
def test_training_refuses_what_was_not_audited_before_it_begins(
    turns: int,
    lock: Lock | None,
    message: str,
    backend: SandboxBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = lock or Letters.equip(backend).lock
    certificate.write(
        made(GOOD, kind=Letters, max_turns=3, lock=held.digest, contents=str(held)),
        certificate.cached(Letters),
    )
    monkeypatch.setattr("envkit.env.registry.environment", lambda name: Letters)
    with pytest.raises(UsageError, match=message):
        envkit.train("letters", config={"max_turns": turns}, root=tmp_path / "runs", display="quiet")
    assert not (tmp_path / "runs").exists()


TASKS = [
    Task(f"given-{number}", "train", "Say it backwards.", {}, hidden={"said": f"word number {number}"})
    for number in range(10)
]


def test_the_order_of_tasks_makes_no_difference(backend: SandboxBackend) -> None:
    samples = [AuditedEnv(Echo, tasks, backend, 3).tasks for tasks in (TASKS, TASKS[::-1])]
    assert samples[0] == samples[1]
    assert [task.id for task in samples[0]] == [f"given-{number}" for number in (0, 1, 3, 5, 6, 8)]


@pytest.mark.parametrize("hidden", [{}, {"other": 1}])
def test_tasks_of_another_environment_are_refused_before_anything_is_written(
    hidden: dict[str, Any], backend: SandboxBackend
) -> None:
    tasks = [*TASKS[:3], Task("a", "train", "Say it.", {}, hidden=hidden)]
    with pytest.raises(UsageError, match=r"environment echo cannot pose task 'a' \(KeyError: 'said'\)"):
        certify(Echo, backend, Silent(), tasks=tasks)
    assert not certificate.cached(Echo).exists()


@pytest.mark.parametrize("tasks", [[], [TASKS[0], TASKS[0]]], ids=["none", "one twice"])
def test_impossible_task_lists_are_refused(tasks: Sequence[Task], backend: SandboxBackend) -> None:
    with pytest.raises(UsageError, match=r"no tasks|several tasks have the id"):
        certify(Echo, backend, Silent(), tasks=tasks)


DAMAGED = ["", "[]", "{}", "[" * 100_000, '{"schema": 3, "passed": true, "findings": 3}', '{"schema": 3}']


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_no_certificate_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="make it again with: envkit audit"):
        certificate.read(path)


def test_a_certificate_of_an_older_version_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps({"schema": 1, "passed": True, "environment": "echo", "findings": []}))
    with pytest.raises(UsageError, match="of schema 1, expected 3; make it again with: envkit audit"):
        certificate.read(path)


def test_given_tasks_or_fewer_turns_do_not_replace_a_standard_audit() -> None:
    failed = made(BAD, max_turns=3)
    certificate.write_cached(Echo, failed)
    easy = made(GOOD, standard=False, max_turns=3)
    assert certificate.write_cached(Echo, dataclasses.replace(easy, tasks_digest="a" * 64)) is None
    assert certificate.certificate_problem(Echo) == "it has failed its audit: b: x | y"

    certificate.write_cached(Echo, made(GOOD, max_turns=3))
    fewer = dataclasses.replace(easy, max_turns=1)
    assert certificate.write_cached(Echo, fewer) is None
    assert certificate.certificate_problem(Echo, max_turns=3) == ""
    assert certificate.write_cached(Echo, dataclasses.replace(easy, max_turns=9)) is not None
    assert certificate.certificate_problem(Echo, max_turns=9) == "", "more turns of the same tasks"


def test_code_that_changes_during_its_audit_gets_no_certificate(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "after"])
    monkeypatch.setattr(certificate, "content_digest", lambda kind: next(digests))
    monkeypatch.setattr(certificate, "run_audit", lambda audited, display: [GOOD])
    with pytest.raises(UsageError, match="the code of echo was changed during its audit"):
        certify(Echo, backend, Silent())
