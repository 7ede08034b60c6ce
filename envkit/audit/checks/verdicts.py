"""Checks that verdicts are right for solutions that are known to be right or wrong."""

from __future__ import annotations

from collections import Counter
from typing import Final

from envkit.audit.actions.answers import near_misses
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable

#: Highest shares of nearly right variants that are accepted, and of right ones that are rejected.
_MAX_ACCEPTED: Final = 0.1
_MAX_REJECTED: Final = 0.02
#: Highest share of near misses of one kind that may pass, because some are right. A few prove nothing.
_MAX_PASSED: Final = 0.8
_MIN_MISSES: Final = 4


def near_misses_fail(audited: AuditedEnv) -> str:
    """Most answers that differ from the oracle's by a character fail.

    Only values that matter are changed: junk in their place must fail.
    """
    passed: Counter[str] = Counter()
    played: Counter[str] = Counter()
    for task in audited.tasks:
        for answer in audited.needed_answers(task):
            for kind, values in near_misses(answer.value).items():
                played[kind] += len(values)
                passed[kind] += sum(audited.solves(task, answer, value) for value in values)
    if not played.total():
        raise NotApplicable("the oracle's actions hold no value that matters and can be changed a little")
    found = "near misses that pass: " + ", ".join(
        f"{kind} {passed[kind]} of {played[kind]}" for kind in played
    )
    for kind, count in played.items():
        if count >= _MIN_MISSES and passed[kind] > _MAX_PASSED * count:
            raise AuditFailure(f"{found}; expected at most {_MAX_PASSED:.0%} of each kind")
    return found


def verdicts_are_right(audited: AuditedEnv) -> str:
    """Variants that the environment names pass if they are right, and fail if they are wrong."""
    wrong: Counter[tuple[bool, str]] = Counter()
    played: Counter[tuple[bool, str]] = Counter()
    for task in audited.tasks:
        for variant in audited.kind.variants(task, audited.backend):
            solved = audited.play(task, variant.actions, seed=11).info["solved"]
            played[variant.is_right, variant.kind] += 1
            wrong[variant.is_right, variant.kind] += solved is not variant.is_right
    if not played:
        raise NotApplicable("it names no variants; see Env.variants")

    def rates(name: str, *, is_right: bool) -> str:
        counts = ", ".join(f"{key[1]} {wrong[key]} of {played[key]}" for key in played if key[0] is is_right)
        return f"{name}: {counts or 'not measured'}"

    def share(*, is_right: bool) -> float:
        keys = [key for key in played if key[0] is is_right]
        return sum(wrong[key] for key in keys) / max(1, sum(played[key] for key in keys))

    found = f"{rates('false accepts', is_right=False)}; {rates('false rejects', is_right=True)}"
    if share(is_right=False) > _MAX_ACCEPTED or share(is_right=True) > _MAX_REJECTED:
        raise AuditFailure(f"{found}; expected at most {_MAX_ACCEPTED:.0%} and {_MAX_REJECTED:.0%}")
    return found


def time_per_step(audited: AuditedEnv) -> str:
    """Report the slowest step of an oracle's episode."""
    slowest_s = sorted(audited.play_oracle(task, seed=5).slowest_s for task in audited.tasks)
    median_ms = 1000 * slowest_s[len(slowest_s) // 2]
    return f"slowest step of an oracle's episode: {median_ms:.0f} ms (median)"
