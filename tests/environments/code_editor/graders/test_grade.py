"""Grades: what follows from a verdict or a score, and what contradicts itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from envkit.env.grade import Grade
from envkit.errors import ContractError
from envkit.types import Verdict


@pytest.mark.parametrize(
    ("given", "verdict", "score"),
    [
        ({"verdict": Verdict.PASS}, Verdict.PASS, 1),
        ({"verdict": Verdict.FAIL}, Verdict.FAIL, 0),
        ({"verdict": Verdict.TAMPERED}, Verdict.TAMPERED, 0),
        ({"score": 1}, Verdict.PASS, 1),
        ({"score": 0.5}, Verdict.FAIL, 0.5),
        ({"verdict": Verdict.FAIL, "score": 0.5}, Verdict.FAIL, 0.5),
    ],
)
def test_verdict_and_score_follow_from_each_other(given: Any, verdict: Verdict, score: float) -> None:
    found = Grade(**given, evidence="because")
    assert (found.verdict, found.score, found.evidence) == (verdict, score, "because")
    assert dataclasses.replace(found, evidence="else").score == score


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"verdict": Verdict.PASS, "score": 0.9},
        {"verdict": Verdict.FAIL, "score": 1},
        {"verdict": Verdict.TAMPERED, "score": 0.1},
        {"verdict": Verdict.INFRA, "score": 0.1},
        {"score": 1.1},
        {"score": -0.1},
        {"score": float("nan")},
        {"verdict": True},
        {"verdict": 0.5},
        {"verdict": "PASS"},
        {"verdict": True, "score": 1},
    ],
)
def test_contradictions_are_refused(given: Any) -> None:
    with pytest.raises(ContractError, match="a Grade has"):
        Grade(**given)


def test_counts_are_no_score() -> None:
    with pytest.raises(TypeError):
        Grade(Verdict.FAIL, "three rows are right", 3, 6)  # type: ignore[call-arg]
    assert Grade(Verdict.FAIL, "three calls are right", passed=3, total=6).score == 0
