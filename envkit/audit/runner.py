"""The checks of an audit: an environment must reward solving its tasks, and nothing else."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, PlayedEpisode
from envkit.audit.cases import replay_cases
from envkit.audit.checks import faults, interface, sameness, shown, tasksets, unearned, verdicts
from envkit.audit.judges import judges_agree
from envkit.audit.leaks.search import find_leaks
from envkit.env import Env
from envkit.errors import EnvkitError, UsageError
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.sandbox.check import ESSENTIAL, self_check
from envkit.types import Task

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


def prepare_audit(
    kind: type[Env],
    backend: SandboxBackend,
    display: Display,
    *,
    tasks: Sequence[Task] | None = None,
    max_turns: int | None = None,
) -> AuditedEnv:
    """Prepare an environment for `run_audit`.

    Args:
        kind: the environment.
        backend: isolates its episodes.
        display: shows the progress.
        tasks: tasks to audit it with; by default its own starters.
        max_turns: actions per episode, enough for the oracle; by default the environment's own number.

    Raises:
        UsageError: the environment cannot pose one of the given tasks.
    """
    backend = kind.equip(backend)
    posed = kind.tasks_of("starter", backend, display=display) if tasks is None else tasks
    turns = kind.max_turns if max_turns is None else max_turns
    audited = AuditedEnv(kind, posed, backend, turns, own_tasks=tasks is None)
    if tasks is not None:
        audited.require_playable()
    return audited


def run_audit(audited: AuditedEnv, display: Display, only: str = "") -> list[Finding]:
    """Run the checks in order. An exception is a finding and never ends the audit.

    Args:
        audited: the environment.
        display: shows the progress, and at once what fails.
        only: runs the checks whose name contains this.

    Raises:
        UsageError: there are none of that name.
    """
    chosen = {name: check for name, check in AUDIT_CHECKS.items() if only in name}
    if not chosen:
        raise UsageError(f"no check is named like {only!r}; there are: {', '.join(AUDIT_CHECKS)}")
    findings: list[Finding] = []
    display.phase(f"audit {audited.kind.id}", len(chosen))
    for number, (name, check) in enumerate(chosen.items(), 1):
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
        if finding.ok is False:  # the others may take minutes
            display.say(f"FAIL {name}: {finding.detail}")
        display.advance(number, name)
    return findings


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


def _evidence(episode: PlayedEpisode) -> str:
    """The evidence of the environment's checks, or their scores."""
    evidence = cast("Mapping[str, str]", episode.info.get("evidence") or {})
    words = "; ".join(f"{name}: {text}" for name, text in evidence.items())
    return words or f"scores {episode.info['scores']}"


#: In the order in which they run. Later checks prove little if an earlier one fails.
AUDIT_CHECKS: Final[Mapping[str, AuditCheck]] = {
    "Gymnasium accepts it": interface.gymnasium_accepts_it,
    "its sandbox isolates": _isolated,
    "the oracle earns full reward": _oracle,
    "doing nothing earns nothing": _noop,
    "noise earns nothing": unearned.noise_earns_nothing,
    "rewards stay in their range": _range,
    "episodes are reproducible": sameness.same_again,
    "a fresh process plays the same": sameness.same_elsewhere,
    "asking a check changes nothing": sameness.same_when_asked_twice,
    "the task that is asked for is posed": interface.poses_the_task_that_is_asked_for,
    "hostile actions are answered": interface.answers_hostile_actions,
    "bent actions raise nothing": interface.survives_bent_actions,
    "closing is final": interface.closes_for_good,
    "vectors play as single instances": interface.plays_in_vectors,
    "splits share no task": tasksets.splits_are_apart,
    "hidden values do not leak": find_leaks,
    "what is shown depends on nothing hidden": shown.shown_depends_on_nothing_hidden,
    "answers are not shown": shown.answers_are_not_shown,
    "a broken sandbox gives no verdict": faults.broken_sandbox_gives_no_verdict,
    "breaking earns nothing": faults.breaking_earns_nothing,
    "a check that fails earns nothing": faults.failing_checks_earn_nothing,
    "exploits earn nothing": unearned.exploits_earn_nothing,
    "claims and padding earn nothing": unearned.claims_earn_nothing,
    "words of the source earn nothing": unearned.words_of_the_source_earn_nothing,
    "forged files earn nothing": unearned.forged_files_earn_nothing,
    "every answer at once earns nothing": unearned.every_answer_earns_nothing,
    "known attacks earn nothing": replay_cases,
    "near misses fail": verdicts.near_misses_fail,
    "verdicts are right": verdicts.verdicts_are_right,
    "judges agree": judges_agree,
    "many episodes change nothing": sameness.same_after_many,
    "time per step": verdicts.time_per_step,
}
