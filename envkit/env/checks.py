"""Checks: the programmatic reward of an environment, as decorated methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from envkit.env.grade import Grade, is_number
from envkit.env.judging import Rubric, card_name
from envkit.env.submission import SubmissionRejected
from envkit.errors import (
    SETUP_ERRORS,
    CheckError,
    ContractError,
    EnvkitError,
    SandboxError,
    UsageError,
)
from envkit.types import Verdict, total_reward

_MARK = "__envkit_check__"

Method = TypeVar("Method", bound=Callable[..., "bool | float | Grade | None"])


@dataclass(frozen=True, slots=True)
class Check:
    """A check of an environment, and its part in the reward.

    Args:
        name: the method's name, the key in ``info["scores"]``.
        weight: its share of the reward, relative to the other weights; 0 only measures.
        gate: if True, the whole reward is 0 unless this check scores 1.
        held_out: if True, it is no part of the reward and only runs after some solved episodes. If it fails
            there, the reward was won without the work.
        each_turn: if True, it also runs after every earlier turn, and its part of the reward is paid as its
            score changes. The episode's total is the same: only the last scores count.
        required: if True, the task is solved only if this check scores 1.
        rubric: the question that it asks a model; ``None`` if it asks none.
        judge: name of that model's card.
    """

    name: str
    weight: float
    gate: bool
    held_out: bool = False
    each_turn: bool = False
    required: bool = True
    rubric: Rubric | None = None
    judge: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The combined result of an episode's checks.

    Args:
        parts: check name -> its part of the reward: score times share of the weights; 0 if a gate failed or a
            check saw tampering.
        solved: every required check scored 1, and none saw tampering.
        withheld: a gate failed or a check saw tampering, so nothing is earned.
        scores: check name -> score in [0, 1].
        verdict: the worst verdict among the checks.
        evidence: check name -> what it found. Never show this to an agent: it may hold hidden inputs.
        weaknesses: check name -> why its verdict proves less than a split oracle's, if it does.
        held_out: held-out check -> score in [0, 1], for those that ran.
    """

    parts: Mapping[str, float]
    solved: bool
    withheld: bool
    scores: Mapping[str, float]
    verdict: Verdict
    evidence: Mapping[str, str]
    weaknesses: Mapping[str, str]
    held_out: Mapping[str, float]

    @property
    def reward(self) -> float:
        """Weighted mean of the scores, in [0, 1]: the sum of `parts`."""
        return total_reward(self.parts.values())


@overload
def check(method: Method, /) -> Method: ...
@overload
def check(
    *,
    weight: float = 1.0,
    gate: bool = False,
    required: bool | None = None,
    held_out: bool = False,
    each_turn: bool = False,
    judged: Rubric | None = None,
) -> Callable[[Method], Method]: ...
def check(
    method: Any = None,
    /,
    *,
    weight: float = 1.0,
    gate: bool = False,
    required: bool | None = None,
    held_out: bool = False,
    each_turn: bool = False,
    judged: Rubric | None = None,
) -> Any:
    """Mark a method of an environment as a check; see `Check`. ``@check`` alone is ``@check()``.

    The method takes no argument and returns a bool, a number in [0, 1] or a `Grade`. A held-out check may
    return ``None`` if it does not apply to the episode; it then counts as not run.

    By default, gates and checks with weight are required. A check that only makes a solution better, such as
    one of its length, is not: ``@check(weight=0.1, required=False)``.

    A check that asks a model names its question, ``@check(weight=0.2, judged=Rubric(...))``, and calls
    `Env.judge`. Its scores are labelled in every report. By default it is not required; it can be, if another
    check that asks no model is required as well.

    A subclass replaces a check with a method that is marked again, and drops it with ``name = None``.

    Some exceptions are results. `SubmissionRejected` is the grade that it carries. ``FileNotFoundError`` and
    `UsageError` are a FAIL with the message as evidence, because the agent's files may be unreadable. Errors
    of the setup, such as `ConfigError`, end the run. Any other exception becomes a `CheckError`.

    Raises:
        ContractError: the weight is negative or not finite, a held-out check is a gate or required, a gate is
            not, a check of each turn has no part of the reward, a judged check is a gate, or a setting is not
            named.
    """
    if not (method is None or callable(cast("object", method))):
        raise ContractError(f"@check got {method!r:.60}; name its settings, such as @check(weight=0.5)")
    if not (math.isfinite(weight) and weight >= 0):
        raise ContractError(f"check weight {weight}; expected a finite number >= 0")
    if held_out and gate:
        raise ContractError("a held-out check is no part of the reward, so it cannot be a gate")
    if held_out and required:
        raise ContractError("a held-out check runs after a solved episode, so it cannot be required")
    if gate and required is False:
        raise ContractError("a gate is required: without it nothing is earned")
    if each_turn and (held_out or not weight):
        raise ContractError("a check of each turn pays reward; expected a weight > 0, and not held_out")
    if judged is not None and gate:
        raise ContractError("a judged check cannot be a gate: a model may be wrong; give it a weight instead")
    weight = 0.0 if held_out else weight
    decides = (gate or weight > 0) and judged is None if required is None else required

    def mark(method: Method) -> Method:
        setattr(method, _MARK, (weight, gate, held_out, each_turn, decides, judged))
        return method

    return mark if method is None else mark(method)


def find_checks(cls: type) -> tuple[Check, ...]:
    """The checks of a class, base classes first, in order of definition.

    Raises:
        ContractError: see `find_marked`.
    """
    judges: list[str | Path] = [*getattr(cls, "judges", ())]
    found: list[Check] = []
    for name, method in find_marked(cls, _MARK, "check").items():
        marked: Any = getattr(method, _MARK)
        is_judged = judges and marked[-1] is not None
        found.append(Check(name, *marked, judge=card_name(judges[0]) if is_judged else ""))
    return tuple(found)


def find_marked(cls: type, mark: str, kind: str) -> dict[str, Any]:
    """The methods of a class that have a mark, base classes first, in order of definition.

    A subclass drops one with ``name = None``.

    Args:
        mark: the attribute that the decorator sets.
        kind: name of the decorator, for the message.

    Raises:
        ContractError: an override lacks the decorator. Nobody would notice that it is no check or tool.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if member is None:
                found.pop(name, None)
            elif name in found or hasattr(member, mark):
                found[name] = getattr(cls, name)
    for name, method in found.items():
        if not hasattr(method, mark):
            raise ContractError(
                f"{cls.__name__}.{name} replaces a {kind} and is not marked with @{kind}; mark it, or drop "
                f"the {kind} with {name} = None"
            )
    return found


def run_checks(env: object, checks: tuple[Check, ...], *, held_out: bool = False) -> Score:
    """Run every check once and combine the scores.

    Args:
        held_out: also run the held-out checks if the others say that the task is solved.

    Raises:
        SandboxError: a check's machinery failed (verdict INFRA), so there is no reward.
        CheckError: a check raised, or returned something that is no score.
        ContractError: no check has weight.
    """
    total = _total_weight(env, checks)
    scores: dict[str, float] = {}
    evidence: dict[str, str] = {}
    weaknesses: dict[str, str] = {}
    verdict, gated = Verdict.PASS, False
    counting = [item for item in checks if not item.held_out]
    for item in counting:
        score, found = _run_counting(env, item)
        if found is not None:
            evidence[item.name] = found.evidence
            if found.verdict is Verdict.TAMPERED:
                verdict = Verdict.TAMPERED
        if weakness := _weakness(item, found):
            weaknesses[item.name] = weakness
        scores[item.name] = score
        if score < 1 and item.required:
            gated = gated or item.gate
            verdict = Verdict.FAIL if verdict is Verdict.PASS else verdict
    withheld = gated or verdict is Verdict.TAMPERED
    parts = {
        item.name: 0.0 if withheld else scores[item.name] * item.weight / total
        for item in counting
        if item.weight
    }
    solved, held = verdict is Verdict.PASS, dict[str, float]()
    if solved and held_out:
        for item in checks:
            if item.held_out and (outcome := _run(env, item)) is not None:
                held[item.name], found = outcome
                if found is not None:
                    evidence[item.name] = found.evidence
                if item.rubric:
                    weaknesses[item.name] = _weakness(item, found)
    return Score(parts, solved, withheld, scores, verdict, evidence, weaknesses, held)


def run_turn_checks(env: object, checks: tuple[Check, ...]) -> dict[str, float]:
    """Run the checks of each turn, before the last one; returns check name -> its part of the reward so far.

    Raises:
        SandboxError, CheckError, ContractError: see `run_checks`.
    """
    total = _total_weight(env, checks)
    return {item.name: _run_counting(env, item)[0] * item.weight / total for item in checks if item.each_turn}


def _weakness(item: Check, found: Grade | None) -> str:
    """Why a check's verdict proves less than a split oracle's, if it does: a label that no check can omit."""
    own = "" if found is None else found.weakness
    return own if item.rubric is None else "; ".join(filter(None, (f"judged by {item.judge}", own)))


def _total_weight(env: object, checks: tuple[Check, ...]) -> float:
    total = sum(check.weight for check in checks)
    if total <= 0:
        raise ContractError(f"{type(env).__name__} has no check with weight > 0; mark one with @check()")
    return total


def _run_counting(env: object, item: Check) -> tuple[float, Grade | None]:
    """Run a check that must return a score."""
    if (outcome := _run(env, item)) is None:
        raise CheckError(f"check {item.name} returned None; expected a bool, [0, 1] or a Grade")
    return outcome


def _run(env: Any, item: Check) -> tuple[float, Grade | None] | None:
    """Run one check; returns its score and its grade, if any. ``None`` if a held-out check does not apply."""
    env.running_check = item  # decides whom it may ask
    try:
        result = getattr(env, item.name)()
    except SETUP_ERRORS:
        raise
    except SubmissionRejected as refused:
        result = Grade(refused.verdict, refused.evidence)
    except (FileNotFoundError, UsageError) as error:
        result = Grade(Verdict.FAIL, str(error))
    except EnvkitError:
        raise
    except Exception as error:
        raise CheckError(f"check {item.name} raised {type(error).__name__}: {error}") from error
    finally:
        env.running_check = None
    if result is None:
        return None
    if isinstance(result, Grade):
        if result.verdict is Verdict.INFRA:
            raise SandboxError(f"check {item.name}: {result.evidence}")
        return result.score, result
    if is_number(result) and 0 <= result <= 1:  # NaN fails both
        return float(result), None
    raise CheckError(f"check {item.name} returned {result!r}; expected a bool, [0, 1] or a Grade")
