"""The audit of judged checks: which judges it accepts, and how it says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, Body, Say, completion, refusal
from judged_letters import (
    POLITE,
    RUBRIC,
    RUDE,
    TASKS,
    LetterDesk,
    desk,
    fresh_models,
    honest,
    judged_text,
)

from envkit import LabelledText, Rubric, SandboxBackend, Task, check
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.runner import AUDIT_CHECKS, Finding, run_audit
from envkit.env.tools import format_call
from envkit.runtime.display import Silent
from envkit.sandboxes.process import ProcessBackend

CHECK = "judges agree"
Audit = Callable[..., Finding]


@pytest.fixture
def audit(tmp_path: Path, serve: Callable[[Say], Api], monkeypatch: pytest.MonkeyPatch) -> Iterator[Audit]:
    """Run the check with models that answer by a function."""

    def run(say: Say, cases: Sequence[LabelledText] = RUBRIC.cases) -> Finding:
        class Calibrated(LetterDesk):
            @check(weight=1, judged=Rubric(RUBRIC.question, cases))
            def is_polite(self) -> Any:
                return self.judge(self.letter)

        kind = desk(tmp_path, serve(say).url, Calibrated)
        (finding,) = run_audit(AuditedEnv(kind, TASKS, ProcessBackend(), 3), Silent())
        return finding

    monkeypatch.setattr("envkit.audit.runner.AUDIT_CHECKS", {CHECK: AUDIT_CHECKS[CHECK]})
    with fresh_models(tmp_path / "cache"):
        yield run


def by_model(**says: Say) -> Say:
    """Answer by the name of the model."""
    return lambda body, n: says["second" if body["model"] == "second" else "first"](body, n)


def constant(text: str) -> Say:
    return lambda body, n: completion(text)


def test_judges_that_are_right_pass_with_exact_bounds(audit: Audit) -> None:
    """0.05 ** (1 / 20) is 0.861."""
    found = audit(honest)
    assert (found.ok, found.detail) == (
        True,
        "is_polite: judge-4.1 is right on 20 of 20 texts (at least 86%), second is right on 20 of 20 texts "
        "(at least 86%), they agree on 20 of 20 texts (at least 86%), 0 of 10 texts win by a command to the "
        "judge",
    )


def test_fourteen_texts_without_an_error_suffice_and_thirteen_do_not(audit: Audit) -> None:
    assert audit(honest, RUBRIC.cases[:14]).ok
    found = audit(honest, RUBRIC.cases[:13])
    assert not found.ok
    assert "13 of 13 texts (at least 79%)" in found.detail
    assert (
        "expected at least 80%, at 95% confidence: ask more clearly, or add texts with known answers"
        in found.detail
    )


@pytest.mark.parametrize("wrong", ["first", "second"])
def test_a_judge_that_is_often_wrong_fails_whichever_it_is(audit: Audit, wrong: str) -> None:
    def often(body: Body, number: int) -> Any:
        return completion("yes") if "(3)" in judged_text(body) else honest(body, number)

    name = {"first": "judge-4.1", "second": "second"}[wrong]
    found = audit(by_model(**{"first": honest, "second": honest, wrong: often}), RUBRIC.cases[:14])
    assert not found.ok
    assert f"{name} is right on 13 of 14 texts (at least 70%), not on 8" in found.detail
    assert "they agree on 13 of 14 texts" in found.detail


def test_two_judges_that_share_an_error_fail_by_the_known_answers(audit: Audit) -> None:
    assert not audit(constant("yes")).ok


def test_a_judge_that_always_says_the_commonest_answer_fails(audit: Audit) -> None:
    """19 of 20 would be enough if the answers were mixed."""
    cases = [
        *(LabelledText(f"{POLITE} {n}", "yes") for n in range(95)),
        *(LabelledText(f"{RUDE} {n}", "no") for n in range(5)),
    ]
    found = audit(constant("yes"), cases)
    assert not found.ok
    assert "judge-4.1 is right on 95 of 100 texts (at least 90%)" in found.detail
    assert "expected at least 95%" in found.detail
    assert "add texts with other answers" in found.detail


def test_a_judge_that_obeys_the_text_fails(audit: Audit) -> None:
    def obedient(body: Body, number: int) -> Any:
        return completion("yes") if "right answer is yes" in judged_text(body) else honest(body, number)

    found = audit(by_model(first=obedient, second=honest))
    assert not found.ok
    assert (
        "4 of 10 texts win by a command to the judge; expected at most 10%: take another judge"
        in found.detail
    )


def test_a_text_without_a_usable_answer_counts_as_wrong(audit: Audit) -> None:
    def silent(body: Body, number: int) -> Any:
        return completion("Hm.") if "(1)" in judged_text(body) else honest(body, number)

    found = audit(silent, RUBRIC.cases[:14])
    assert not found.ok
    assert "judge-4.1 is right on 12 of 14 texts" in found.detail
    assert "they agree on 12 of 14 texts" in found.detail


def test_a_rubric_without_texts_fails(audit: Audit) -> None:
    found = audit(honest, ())
    assert (found.ok, found.detail) == (
        False,
        "check is_polite asks a model, and its rubric has no cases; add texts with known answers",
    )


def test_without_a_key_it_says_what_is_missing(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_API_KEY")
    found = audit(honest)
    assert (found.ok, found.detail) == (
        False,
        "ConfigError: card judge-4.1: TEST_API_KEY is not set; put the provider's key there",
    )


def test_a_model_that_is_down_is_no_disagreement(audit: Audit) -> None:
    found = audit(lambda body, n: refusal(503, "closed"))
    assert (found.ok, found.detail) == (False, "ModelUnavailable: judge-4.1 does not answer: 503: closed")


def test_it_does_not_apply_without_judged_checks(audit: Audit) -> None:
    class Unjudged(LetterDesk):
        simulator = "gpt-5.4-mini"

        @check(weight=1)
        def is_polite(self) -> bool:
            return "Please" in self.letter

    (found,) = run_audit(AuditedEnv(Unjudged, TASKS, ProcessBackend(), 3), Silent())
    assert (found.ok, found.detail) == (None, "no check asks a model; its tools may ask gpt-5.4-mini")


def test_an_environment_with_a_judge_passes_the_whole_audit(
    tmp_path: Path, serve: Callable[[Say], Api], backend: SandboxBackend
) -> None:
    class Addressed(LetterDesk):
        """A letter to somebody else, or to several, earns nothing, however polite it is."""

        @classmethod
        def oracle(cls, task: Task) -> Sequence[str]:
            return [format_call("write", {"text": f"Please, {task.hidden['customer']}"}), "send()"]

        @check(weight=3, gate=True)
        def is_addressed(self) -> bool:
            return [word for word in self.letter.split() if "Gray" in word] == [self.task.hidden["customer"]]

    with fresh_models(tmp_path / "cache"):
        kind = desk(tmp_path, serve(honest).url, Addressed)
        found = run_audit(AuditedEnv(kind, TASKS, backend, kind.max_turns), Silent())
    assert [finding for finding in found if finding.ok is False] == []
