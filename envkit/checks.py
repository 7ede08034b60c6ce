"""Checks: the programmatic reward of an environment, as decorated methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from envkit.errors import ContractError, SandboxError
from envkit.grading import Grade
from envkit.types import Verdict

_MARK = "__envkit_check__"

Method = TypeVar("Method", bound=Callable[..., "bool | float | Grade"])


@dataclass(frozen=True, slots=True)
class Check:
    """How one check counts.

    Args:
        name: the method's name, the key in ``info["scores"]``.
        weight: its share of the reward, relative to the other weights; 0 for a mere measurement.
        gate: when true the whole reward is 0 unless this check scores 1.
    """

    name: str
    weight: float
    gate: bool


@dataclass(frozen=True, slots=True)
class Score:
    """What the checks of one finished episode found.

    Args:
        reward: weighted mean in [0, 1], 0 behind a failed gate.
        solved: every weighted check and every gate scored 1.
        scores: check name -> score in [0, 1].
        verdict: the worst verdict among the checks.
        evidence: check name -> what was found; host only, it may show hidden inputs.
        weaknesses: check name -> why its verdict proves less than a split oracle's, where it does.
    """

    reward: float
    solved: bool
    scores: Mapping[str, float]
    verdict: Verdict
    evidence: Mapping[str, str]
    weaknesses: Mapping[str, str]


def check(*, weight: float = 1.0, gate: bool = False) -> Callable[[Method], Method]:
    """Mark a method of an environment as a check.

    It takes no argument and returns a bool, a number in [0, 1] or a `Grade`.

    Raises:
        ContractError: the weight is negative or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ContractError(f"check weight {weight}; expected a finite number >= 0")

    def mark(method: Method) -> Method:
        setattr(method, _MARK, (weight, gate))
        return method

    return mark


def checks_of(cls: type) -> tuple[Check, ...]:
    """The checks of a class, base classes first, in order of definition."""
    found: dict[str, Check] = {}
    for base in reversed(cls.__mro__):
        for name in vars(base):
            marked: Any = getattr(getattr(cls, name, None), _MARK, None)
            if marked is not None:
                found[name] = Check(name, *marked)
    return tuple(found.values())


def run_checks(env: object, checks: tuple[Check, ...]) -> Score:
    """Run every check once and combine the scores.

    Raises:
        SandboxError: a check's machinery failed (verdict INFRA): no reward may come of it.
        ContractError: a check returned something that is no score, or no check has weight.
    """
    total = sum(check.weight for check in checks)
    if total <= 0:
        raise ContractError(f"{type(env).__name__} has no check with weight > 0; mark one with @check()")
    scores: dict[str, float] = {}
    evidence: dict[str, str] = {}
    weaknesses: dict[str, str] = {}
    verdict, gated = Verdict.PASS, False
    for item in checks:
        result = getattr(env, item.name)()
        if isinstance(result, Grade):
            if result.verdict is Verdict.INFRA:
                raise SandboxError(f"check {item.name}: {result.evidence}")
            score = float(result.verdict is Verdict.PASS)
            evidence[item.name] = result.evidence
            if result.weakness:
                weaknesses[item.name] = result.weakness
            if result.verdict is Verdict.TAMPERED:
                verdict = Verdict.TAMPERED
        elif isinstance(result, bool | int | float) and 0 <= result <= 1:  # NaN fails both
            score = float(result)
        else:
            raise ContractError(f"check {item.name} returned {result!r}; expected a bool, [0, 1] or a Grade")
        scores[item.name] = score
        if score < 1 and (item.gate or item.weight > 0):
            gated = gated or item.gate
            verdict = Verdict.FAIL if verdict is Verdict.PASS else verdict
    reward = 0.0 if gated else sum(scores[item.name] * item.weight for item in checks) / total
    return Score(reward, verdict is Verdict.PASS, scores, verdict, evidence, weaknesses)
