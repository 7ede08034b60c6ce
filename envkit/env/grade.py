"""The result of a check: a verdict, a score and the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TypeGuard, final

import numpy as np

from envkit.errors import ContractError
from envkit.types import Verdict


def is_number(found: object) -> TypeGuard[float]:
    """True for a real number or a bool, of Python or numpy."""
    return isinstance(found, Real | np.bool_)


@final
@dataclass(frozen=True, slots=True, init=False)
class Grade:
    """The result of a check with its evidence: ``Grade(score=0.5, evidence="3 of 6 rows are right")``.

    Args:
        verdict: by default PASS for a score of 1, else FAIL.
        evidence: reason for the verdict. It may show hidden inputs, so it stays on the host.
        score: in [0, 1]; by default 1 for PASS, else 0. A FAIL may have partial credit, below 1.
        weakness: for reports, why the grade proves less than one of the split oracle; empty for the split
            oracle itself.
        passed: calls or tests that passed, for people. It does not change the score.
        total: calls or tests in all.
        timed_out: wall time ended the candidate, not CPU time. A stalled machine can cause that, so the grade
            holds for this episode only and is not cached.

    Raises:
        ContractError: neither verdict nor score is given, they contradict each other, or what should be a
            verdict is none.
    """

    verdict: Verdict
    evidence: str
    score: float
    weakness: str
    passed: int
    total: int
    timed_out: bool

    def __init__(
        self,
        verdict: Verdict | None = None,
        evidence: str = "",
        *,
        score: float | None = None,
        weakness: str = "",
        passed: int = 0,
        total: int = 0,
        timed_out: bool = False,
    ) -> None:
        if score is not None and not is_number(score):
            raise ContractError(f"a Grade has score {score!r:.60}; expected a number in [0, 1]")
        if verdict is None:
            if score is None:
                raise ContractError("a Grade has neither a verdict nor a score; expected one of them")
            verdict = Verdict.PASS if score == 1 else Verdict.FAIL
        if type(verdict) is not Verdict:  # a bool, or a number, would score 0
            raise ContractError(
                f"a Grade has verdict {verdict!r}; expected a Verdict, or score=... for a number or a bool"
            )
        if score is None:
            score = float(verdict is Verdict.PASS)
        possible = score == 1 if verdict is Verdict.PASS else 0 <= score < 1
        if not possible or (score and verdict not in (Verdict.PASS, Verdict.FAIL)):
            raise ContractError(
                f"a Grade has score {score} and verdict {verdict}; expected 1 for PASS, below 1 for FAIL, "
                "and 0 otherwise"
            )
        values = (verdict, evidence, float(score), weakness, passed, total, timed_out)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)
