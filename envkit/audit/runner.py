"""Putting an environment to the test: does it pay for the work, and for nothing else."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, PlayedEpisode
from envkit.audit.instrumented import InstrumentedBackend
from envkit.audit.leaks import hidden_stays_hidden
from envkit.display import Display
from envkit.errors import EnvkitError, SandboxError
from envkit.sandbox_check import ESSENTIAL, self_check

#: What noise may earn on average: some answers are right by chance.
_FLOOR: Final = 0.1

#: Says what was found; raises what `run_audit` turns into other findings.
AuditCheck = Callable[[AuditedEnv], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Args:
        check: its name.
        ok: whether the environment passed; ``None`` where the check does not apply.
        detail: numbers, or what is wrong, or why it does not apply.
    """

    check: str
    ok: bool | None
    detail: str


def run_audit(subject: AuditedEnv, display: Display) -> list[Finding]:
    """Every check, in order; what one raises is its finding."""
    findings: list[Finding] = []
    display.phase(f"audit {subject.kind.id}", len(AUDIT_CHECKS))
    for number, (name, check) in enumerate(AUDIT_CHECKS.items(), 1):
        try:
            finding = Finding(name, True, check(subject))
        except AuditFailure as fault:
            finding = Finding(name, False, str(fault))
        except NotApplicable as reason:
            finding = Finding(name, None, str(reason))
        except EnvkitError as error:
            finding = Finding(name, False, f"{type(error).__name__}: {error}")
        except Exception as error:  # whatever an author's code raises is a finding about it
            finding = Finding(name, False, f"a bug: {type(error).__name__}: {error}")
        findings.append(finding)
        display.advance(number, name)
    return findings


def _gymnasium(subject: AuditedEnv) -> str:
    from gymnasium.utils.env_checker import check_env

    with contextlib.closing(subject.make(subject.tasks)) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces that it does not know
        try:
            check_env(env, skip_render_check=True)
        except AssertionError as error:
            raise AuditFailure(f"Gymnasium's check_env says: {error}") from error
    return "Gymnasium's own checks pass"


def _isolated(subject: AuditedEnv) -> str:
    with contextlib.closing(subject.make(subject.tasks)) as env:
        backend = env.backend
    if not backend.isolated:
        raise AuditFailure(
            f"its sandbox, {backend.name}, does not isolate: network, files and processes are open"
        )
    failed = [one for one in self_check(backend, ESSENTIAL) if not one.ok]
    if failed:
        raise AuditFailure(
            f"its sandbox, {backend.name}, lets programs out: {failed[0].name}: {failed[0].detail}"
        )
    if subject.kind.isolation != "sandbox":
        raise NotApplicable(f"isolation {subject.kind.isolation}: what an agent works with runs elsewhere")
    return f"{backend.name}: {len(ESSENTIAL)} essential checks of the sandbox pass"


def _oracle(subject: AuditedEnv) -> str:
    for task in subject.tasks:
        played = subject.oracle(task)
        if played.reward != 1 or not played.info["solved"]:
            raise AuditFailure(f"the oracle earns {played.reward:g} on task {task.id}: {_why(played)}")
    return (
        f"the oracle solves {len(subject.tasks)} of {len(subject.tasks)} tasks in {subject.max_turns} turns"
    )


def _idle(subject: AuditedEnv) -> str:
    for task in subject.tasks:
        played = subject.play(task, [subject.kind.noop_action])
        if played.reward != 0:
            raise AuditFailure(f"doing nothing earns {played.reward:g} on task {task.id}: {_why(played)}")
    return f"doing nothing earns 0 on {len(subject.tasks)} tasks"


def _noise(subject: AuditedEnv) -> str:
    rewards: list[float] = []
    for task in subject.tasks:
        rewards += [
            subject.play(task, subject.noise(task, number), seed=number).reward for number in range(5)
        ]
    if (mean := sum(rewards) / len(rewards)) > _FLOOR:
        raise AuditFailure(
            f"noise earns {mean:.2f} on average over {len(rewards)} episodes, more than {_FLOOR}"
        )
    return f"noise earns {mean:.2f} on average over {len(rewards)} episodes"


def _range(subject: AuditedEnv) -> str:
    seen: list[float] = []
    for task in subject.tasks:
        for actions in (subject.kind.oracle(task), [subject.kind.noop_action], subject.noise(task, 0)):
            seen += subject.play(task, actions).rewards
    if wrong := [reward for reward in seen if not (math.isfinite(reward) and 0 <= reward <= 1)]:
        raise AuditFailure(f"a reward of {wrong[0]}; expected numbers from 0 to 1")
    return f"{len(seen)} rewards, all from 0 to 1"


def _repeats(subject: AuditedEnv) -> str:
    count = 0
    for task in subject.tasks:
        for actions in (subject.kind.oracle(task), subject.noise(task, 1)):
            first = subject.play(task, actions, seed=7)
            subject.kind.clear_caches()  # or the second would be told what the first has found
            again = subject.play(task, actions, seed=7)
            for turn, (one, other) in enumerate(itertools.zip_longest(first.seen, again.seen)):
                if one != other:
                    raise AuditFailure(
                        f"task {task.id}: equal episodes differ in observation {turn}: {one!r}, {other!r}"
                    )
            for name in ("solved", "scores", "verdict"):
                if first.info[name] != again.info[name]:
                    pair = f"{first.info[name]}, {again.info[name]}"
                    raise AuditFailure(f"task {task.id}: equal episodes differ in {name}: {pair}")
            count += 1
    return f"{count} episodes, played twice in instances of their own, are equal in every word and reward"


def _void(subject: AuditedEnv) -> str:
    task = subject.tasks[0]
    broken = InstrumentedBackend(subject.backend, breaks=True)
    try:
        played = subject.oracle(task, seed=99, backend=broken)
    except SandboxError:
        return "an episode whose sandbox breaks ends in SandboxError, not in a verdict"
    if broken.broke:
        raise AuditFailure(
            f"a broken sandbox became verdict {played.info['verdict']}, reward {played.reward:g}"
        )
    raise NotApplicable("the oracle's episode runs nothing in a sandbox")


def _exploits(subject: AuditedEnv) -> str:
    task = subject.tasks[0]
    exploits = subject.kind.exploits(task)
    if not exploits:
        raise NotApplicable("it names no exploits; see Env.exploits")
    tried = [exploit for exploit in exploits if not exploit.inapplicable]
    won: list[str] = []
    for exploit in tried:
        for _ in range(2):  # a second breakdown counts as a failure, as it does in rollouts
            try:
                played = subject.play(task, exploit.actions, seed=3)
            except SandboxError:
                continue
            if played.reward:
                won.append(f"{exploit.name} earns {played.reward:g}")
            break
    if won:
        raise AuditFailure(f"{len(won)} of {len(tried)} exploits win: {'; '.join(won[:5])}")
    left = [f"{exploit.name}: {exploit.inapplicable}" for exploit in exploits if exploit.inapplicable]
    return f"{len(tried)} exploits earn nothing" + (f"; not applicable: {'; '.join(left)}" if left else "")


def _pace(subject: AuditedEnv) -> str:
    slowest = [subject.oracle(task, seed=5).slowest_s for task in subject.tasks]
    return f"slowest step of an oracle's episode: {1000 * sorted(slowest)[len(slowest) // 2]:.0f} ms (median)"


def _why(played: PlayedEpisode) -> str:
    """The checks' own words, or their scores."""
    evidence = cast("Mapping[str, str]", played.info.get("evidence") or {})
    return (
        "; ".join(f"{name}: {text}" for name, text in evidence.items()) or f"scores {played.info['scores']}"
    )


#: In this order: what comes first makes what follows worth looking at.
AUDIT_CHECKS: Final[Mapping[str, AuditCheck]] = {
    "gymnasium accepts it": _gymnasium,
    "its sandbox isolates": _isolated,
    "the oracle earns all": _oracle,
    "doing nothing earns nothing": _idle,
    "noise earns nothing": _noise,
    "rewards are numbers from 0 to 1": _range,
    "equal episodes are equal": _repeats,
    "what is hidden stays hidden": hidden_stays_hidden,
    "broken machinery is no verdict": _void,
    "exploits earn nothing": _exploits,
    "steps end in time": _pace,
}
