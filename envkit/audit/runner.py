"""The checks of an audit: an environment must reward solving its tasks, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, PlayedEpisode
from envkit.audit.cases import replay_cases
from envkit.audit.instrumented import InstrumentedBackend
from envkit.audit.judges import judges_agree
from envkit.audit.leaks import find_leaks
from envkit.display import Display
from envkit.errors import EnvkitError, SandboxError
from envkit.sandbox_check import ESSENTIAL, self_check

#: Highest mean reward of random actions. Some answers are right by chance.
_MAX_NOISE_REWARD: Final = 0.1
#: Highest shares of nearly right variants that are accepted, and of right ones that are rejected.
_MAX_ACCEPTED: Final = 0.1
_MAX_REJECTED: Final = 0.02

#: Returns what it found. Raises `AuditFailure` or `NotApplicable`; `run_audit` records any exception.
AuditCheck = Callable[[AuditedEnv], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one audit check.

    Args:
        check: its name.
        ok: True if the environment passed; ``None`` if the check does not apply.
        detail: numbers, or what is wrong, or why the check does not apply.
    """

    check: str
    ok: bool | None
    detail: str


def run_audit(audited: AuditedEnv, display: Display) -> list[Finding]:
    """Run every check in order. An exception is a finding and never ends the audit."""
    findings: list[Finding] = []
    display.phase(f"audit {audited.kind.id}", len(AUDIT_CHECKS))
    for number, (name, check) in enumerate(AUDIT_CHECKS.items(), 1):
        try:
            finding = Finding(name, True, check(audited))
        except AuditFailure as failure:
            finding = Finding(name, False, str(failure))
        except NotApplicable as reason:
            finding = Finding(name, None, str(reason))
        except EnvkitError as error:
            finding = Finding(name, False, f"{type(error).__name__}: {error}")
        except Exception as error:  # the author's code may raise anything
            finding = Finding(name, False, f"a bug: {type(error).__name__}: {error}")
        findings.append(finding)
        display.advance(number, name)
    return findings


def _gymnasium(audited: AuditedEnv) -> str:
    from gymnasium.utils.env_checker import check_env

    with contextlib.closing(audited.make(audited.tasks)) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about spaces that it does not know
        try:
            check_env(env, skip_render_check=True)
        except AssertionError as error:
            raise AuditFailure(f"Gymnasium's check_env says: {error}") from error
    return "Gymnasium's own checks pass"


def _isolated(audited: AuditedEnv) -> str:
    with contextlib.closing(audited.make(audited.tasks)) as env:
        backend = env.backend
    if not backend.isolated:
        raise AuditFailure(
            f"its sandbox, {backend.name}, does not isolate: network, files and processes are open"
        )
    failed = [finding for finding in self_check(backend, ESSENTIAL) if not finding.ok]
    if failed:
        raise AuditFailure(
            f"its sandbox, {backend.name}, lets programs out: {failed[0].name}: {failed[0].detail}"
        )
    if audited.kind.isolation != "sandbox":
        raise NotApplicable(f"isolation {audited.kind.isolation}: the application runs outside the sandbox")
    return f"{backend.name}: {len(ESSENTIAL)} essential checks of the sandbox pass"


def _oracle(audited: AuditedEnv) -> str:
    lowest = math.inf
    for task in audited.tasks:
        episode = audited.play_oracle(task)
        # Without costs, and rewards of actions, every check that is paid must be satisfied.
        short = episode.reward < 1 and set(episode.sources) <= {item.name for item in audited.kind.checks}
        if short or not episode.info["solved"]:
            needed, had = len(audited.kind.oracle(task)), len(episode.rewards)
            cut = f" (it needs {needed} turns and had {had}; see max_turns)" if needed > had else ""
            raise AuditFailure(
                f"the oracle earns {episode.reward:g} on task {task.id}{cut}: {_evidence(episode)}"
            )
        lowest = min(lowest, episode.reward)
    count, turns = len(audited.tasks), audited.max_turns
    earned = "" if lowest == 1 else f", and earns {lowest:g} or more"
    return f"the oracle solves {count} of {count} tasks in {turns} turns{earned}"


def _noop(audited: AuditedEnv) -> str:
    for task in audited.tasks:
        episode = audited.play(task, [audited.kind.noop_action])
        if episode.reward > 0 or episode.info["solved"]:
            raise AuditFailure(
                f"doing nothing earns {episode.reward:g} on task {task.id}: {_evidence(episode)}"
            )
    return f"doing nothing earns nothing on {len(audited.tasks)} tasks"


def _noise(audited: AuditedEnv) -> str:
    rewards = [
        audited.play(task, audited.noise(task, number), seed=number).reward
        for task in audited.tasks
        for number in range(5)
    ]
    found = f"noise earns {(mean := sum(rewards) / len(rewards)):.2f} on average over {len(rewards)} episodes"
    if mean > _MAX_NOISE_REWARD:
        raise AuditFailure(f"{found}, more than {_MAX_NOISE_REWARD}")
    return found


def _range(audited: AuditedEnv) -> str:
    played = [
        audited.play(task, actions)
        for task in audited.tasks
        for actions in (audited.kind.oracle(task), [audited.kind.noop_action], audited.noise(task, 0))
    ]
    low, high = audited.kind.reward_range
    if wrong := [episode.reward for episode in played if not low <= episode.reward <= high]:  # NaN fails both
        raise AuditFailure(
            f"an episode's rewards add up to {wrong[0]}; expected a number from {low:g} to {high:g}"
        )
    rewards = [reward for episode in played for reward in episode.rewards]
    return f"{len(rewards)} turns' rewards; those of an episode add up to a number from {low:g} to {high:g}"


def _deterministic(audited: AuditedEnv) -> str:
    count = 0
    for task in audited.tasks:
        for actions in (audited.kind.oracle(task), audited.noise(task, 1)):
            first = audited.play(task, actions, seed=7)
            audited.kind.clear_caches()  # the second episode must compute its own results
            second = audited.play(task, actions, seed=7)
            pairs = itertools.zip_longest(first.observations, second.observations)
            for turn, (one, other) in enumerate(pairs):
                if one != other:
                    raise AuditFailure(
                        f"task {task.id}: equal episodes differ in observation {turn}: {one!r}, {other!r}"
                    )
            for name in ("solved", "scores", "verdict"):
                if first.info[name] != second.info[name]:
                    pair = f"{first.info[name]}, {second.info[name]}"
                    raise AuditFailure(f"task {task.id}: equal episodes differ in {name}: {pair}")
            if first.rewards != second.rewards:
                pair = f"{first.rewards}, {second.rewards}"
                raise AuditFailure(f"task {task.id}: equal episodes differ in rewards: {pair}")
            count += 1
    return f"{count} episodes, played twice in separate instances, are equal in every word and reward"


def _void(audited: AuditedEnv) -> str:
    broken = InstrumentedBackend(audited.backend, breaks=True)
    try:
        episode = audited.play_oracle(audited.tasks[0], seed=99, backend=broken)
    except SandboxError:
        return "an episode whose sandbox breaks ends in SandboxError, not in a verdict"
    if broken.broken_calls:
        raise AuditFailure(
            f"a broken sandbox became verdict {episode.info['verdict']}, reward {episode.reward:g}"
        )
    raise NotApplicable("the oracle's episode runs nothing in a sandbox")


def _exploits(audited: AuditedEnv) -> str:
    task = audited.tasks[0]
    exploits = audited.kind.exploits(task)
    if not exploits:
        raise NotApplicable("it names no exploits; see Env.exploits")
    tried = [exploit for exploit in exploits if not exploit.inapplicable]
    won: list[str] = []
    for exploit in tried:
        for _ in range(2):  # a second breakdown counts as a failed episode, as in rollouts
            try:
                episode = audited.play(task, exploit.actions, seed=3)
            except SandboxError:
                continue
            if episode.reward:
                won.append(f"{exploit.name} earns {episode.reward:g}")
            break
    if won:
        raise AuditFailure(f"{len(won)} of {len(tried)} exploits win: {'; '.join(won[:5])}")
    skipped = [f"{exploit.name}: {exploit.inapplicable}" for exploit in exploits if exploit.inapplicable]
    note = f"; not applicable: {'; '.join(skipped)}" if skipped else ""
    return f"{len(tried)} exploits earn nothing{note}"


def _fidelity(audited: AuditedEnv) -> str:
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


def _pace(audited: AuditedEnv) -> str:
    slowest_s = sorted(audited.play_oracle(task, seed=5).slowest_s for task in audited.tasks)
    median_ms = 1000 * slowest_s[len(slowest_s) // 2]
    return f"slowest step of an oracle's episode: {median_ms:.0f} ms (median)"


def _evidence(episode: PlayedEpisode) -> str:
    """The evidence of the environment's checks, or their scores."""
    evidence = cast("Mapping[str, str]", episode.info.get("evidence") or {})
    words = "; ".join(f"{name}: {text}" for name, text in evidence.items())
    return words or f"scores {episode.info['scores']}"


#: In the order in which they run. Later checks prove little if an earlier one fails.
AUDIT_CHECKS: Final[Mapping[str, AuditCheck]] = {
    "Gymnasium accepts it": _gymnasium,
    "its sandbox isolates": _isolated,
    "the oracle earns full reward": _oracle,
    "doing nothing earns nothing": _noop,
    "noise earns nothing": _noise,
    "rewards stay in their range": _range,
    "episodes are reproducible": _deterministic,
    "hidden values do not leak": find_leaks,
    "a broken sandbox gives no verdict": _void,
    "exploits earn nothing": _exploits,
    "known attacks earn nothing": replay_cases,
    "verdicts are right": _fidelity,
    "judges agree": judges_agree,
    "time per step": _pace,
}
