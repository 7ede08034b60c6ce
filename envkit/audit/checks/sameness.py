"""Checks that an episode depends on its task, seed and actions alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from envkit.audit.actions.source_constants import source_constants, variable_names
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, play_on, run_with_timeout
from envkit.audit.instrumented import InstrumentedBackend
from envkit.audit.replay import Condition, Replay, ReplayedEpisode, ReplayRequest, play_elsewhere
from envkit.env import Env
from envkit.env.grade import Grade
from envkit.errors import SandboxError
from envkit.types import Task

#: Episodes after which an instance must play the same, also in a quick audit; fewer if they take longer.
_EPISODES: Final = 600
_QUICK_EPISODES: Final = 100
_EPISODES_TIMEOUT_S: Final = 60.0
_DAY_S: Final = 86_400.0
#: More than a year ago, in another month, on another weekday and at another time of day. The past, because
#: temporary files of other processes would look old in the future.
_LONG_AGO: Final = Condition(ahead_s=-(400 * _DAY_S + 7 * 3600 + 13 * 60))
#: Dates in all months, on all weekdays and around the clock.
_DATES: Final = tuple(Condition(ahead_s=-number * (31 * _DAY_S + 7_260)) for number in range(1, 13))
#: Seeds of hashes. A set of two texts has the same order with half of all seeds.
_HASH_SEEDS: Final = (4_242, 1, 2, 3)
#: An agent that thinks for ten minutes before each action.
_SLOW: Final = Condition(leap_s=600.0)


def same_again(audited: AuditedEnv) -> str:
    """Episodes of the same task, seed and actions are equal in two instances."""
    count = 0
    for task in audited.tasks:
        for actions in (audited.oracle_actions(task), audited.noise(task, 1)):
            first = ReplayedEpisode.of(audited.play(task, actions, seed=7))
            audited.kind.clear_caches()  # the second episode must compute its own results
            second = ReplayedEpisode.of(audited.play(task, actions, seed=7))
            _require_equal(task, "equal episodes differ", first, second)
            count += 1
    return f"{count} episodes, played twice in separate instances, are equal in every word and reward"


def same_elsewhere(audited: AuditedEnv) -> str:
    """Episodes are equal in a fresh process, with other hashes, on another date, with other variables."""
    noop = [audited.kind.noop_action]
    watched = [
        Replay(task, actions, 7, _LONG_AGO)
        for task in audited.tasks
        for actions in (audited.oracle_actions(task), audited.noise(task, 1), noop)
    ]
    tasks = audited.spread(2)
    wrong = [Replay(task, actions, 7) for task in tasks for actions in (noop, audited.wrong_actions(task))]
    timed = [
        dataclasses.replace(each, condition=condition)
        for index, condition in enumerate((*_DATES, *[_SLOW] * len(tasks)))
        for each in wrong
        if each.task is tasks[index % len(tasks)]
    ]
    here = {(each.task.id, *each.actions): audited.attempt(each.task, each.actions, seed=7) for each in wrong}

    def require_no_gain(replay: Replay, there: ReplayedEpisode | str, when: str) -> None:
        before = here[replay.task.id, *replay.actions]
        if not isinstance(there, str) and audited.gains(replay.task, before, there):
            raise AuditFailure(
                f"task {replay.task.id}: {[*replay.actions]!r:.100} earns {there.reward:g} {when}, and "
                f"{0.0 if before is None else before.reward:g} otherwise"
            )

    found = _elsewhere(audited, [*watched, *timed], _HASH_SEEDS[0], {})
    same = [ReplayedEpisode.of(audited.play(each.task, each.actions, seed=7)) for each in watched]
    _require_equal_there(watched, same, found[: len(watched)])
    few = [index for index, each in enumerate(watched) if each.task in tasks]
    for hash_seed in _HASH_SEEDS[1:]:
        replays = [watched[index] for index in few]
        _require_equal_there(
            replays, [same[index] for index in few], _elsewhere(audited, replays, hash_seed, {})
        )
    for replay, there in zip(timed, found[len(watched) :], strict=True):
        require_no_gain(replay, there, "to a slow agent" if replay.condition is _SLOW else "on another date")
    variables = dict.fromkeys(variable_names(source_constants(audited.kind)), "1")
    if variables:
        for replay, there in zip(wrong, _elsewhere(audited, wrong, 0, variables), strict=True):
            require_no_gain(replay, there, "with its environment variables set")
    return (
        f"{len(watched)} episodes are equal in a fresh process, with other hashes, a year ago; wrong ones "
        f"earn no more on {len(_DATES)} other dates, to a slow agent, or with {len(variables)} environment "
        "variables that the source names"
    )


def same_after_many(audited: AuditedEnv) -> str:
    """An instance that has played many episodes, and a fresh one beside it, play as they did before.

    The episodes are of all tasks, each with another seed, and nothing is done in them.
    """
    task = audited.tasks[0]
    noop = [audited.kind.noop_action]
    watched = {  # other checks have played these early
        "doing nothing": (noop, ReplayedEpisode.of(audited.idle(task))),
        "wrong actions": (audited.wrong_actions(task), ReplayedEpisode.of(audited.wrong(task))),
        "the oracle": (audited.oracle_actions(task), ReplayedEpisode.of(audited.oracle(task))),
    }
    instrumented = InstrumentedBackend(audited.backend)
    wanted, count = _QUICK_EPISODES if audited.quick else _EPISODES, 0

    def play() -> None:
        nonlocal count
        with contextlib.closing(audited.make(audited.all_tasks, instrumented)) as env:
            ends_s = time.monotonic() + _EPISODES_TIMEOUT_S
            end = audited.ending_calls()[:1]
            while count < wanted and time.monotonic() < ends_s:
                each = audited.all_tasks[count % len(audited.all_tasks)]
                if _earns(_play_twice_if_it_breaks(env, each, end, count)):
                    # The smallest answer may be right by chance, so nothing at all is tried.
                    idle = _play_twice_if_it_breaks(env, each, noop, count)
                    if gain := audited.unearned(each, idle):
                        raise AuditFailure(
                            f"doing nothing {gain}, in episode {count} of one instance, with seed {count}"
                        )
                count += 1
            for name, (actions, before) in watched.items():
                after = _play_twice_if_it_breaks(env, task, actions, 0)
                what = f"after {count} episodes of the same instance, {name} differs"
                _require_equal(task, what, before, after)

    run_with_timeout(play, "many episodes of one instance", instrumented.close)
    for name, (actions, before) in watched.items():
        after = ReplayedEpisode.of(audited.play(task, actions))
        what = f"after {count} episodes of another instance, {name} differs"
        _require_equal(task, what, before, after)
    return f"after {count} episodes, the same instance and a fresh one play as before"


def same_when_asked_twice(audited: AuditedEnv) -> str:
    """A check that is asked twice gives the same score, and the episode goes on as without it."""
    count = 0
    for task in audited.spread(2):
        noop = [audited.kind.noop_action]
        for actions in (noop, audited.wrong_actions(task), audited.oracle_actions(task)):
            once = ReplayedEpisode.of(audited.play(task, actions, seed=17))
            changes: list[str] = []
            twice = ReplayedEpisode.of(
                audited.play(task, actions, seed=17, before_turn=functools.partial(_ask_twice, changes))
            )
            if changes:
                raise AuditFailure(f"task {task.id}: {changes[0]}")
            _require_equal(task, "an episode differs if its checks are asked twice", once, twice)
            count += 1
    return f"in {count} episodes, checks that are asked twice give the same scores"


def _elsewhere(
    audited: AuditedEnv, replays: Sequence[Replay], hash_seed: int, variables: dict[str, str]
) -> list[ReplayedEpisode | str]:
    request = ReplayRequest(
        audited.kind, audited.tasks, audited.backend, audited.max_turns, replays, variables
    )
    found = play_elsewhere(request, hash_seed)
    if isinstance(found, str):
        raise NotApplicable(found)
    return found


def _require_equal_there(
    replays: Sequence[Replay], here: Sequence[ReplayedEpisode], there: Sequence[ReplayedEpisode | str]
) -> None:
    for replay, same, other in zip(replays, here, there, strict=True):
        if isinstance(other, str):
            raise AuditFailure(f"task {replay.task.id}: an episode raises in a fresh process: {other}")
        _require_equal(replay.task, "an episode differs in a fresh process, a year ago", same, other)


def _require_equal(task: Task, what: str, one: ReplayedEpisode, other: ReplayedEpisode) -> None:
    if difference := one.difference(other):
        raise AuditFailure(f"task {task.id}: {what} in {difference}")


def _earns(episode: ReplayedEpisode) -> bool:
    return episode.solved or episode.reward > 0


def _play_twice_if_it_breaks(env: Env, task: Task, actions: Sequence[str], seed: int) -> ReplayedEpisode:
    """Play an episode; once more if its sandbox breaks, as rollouts do."""
    try:
        return ReplayedEpisode.of(play_on(env, task, actions, seed))
    except SandboxError:
        return ReplayedEpisode.of(play_on(env, task, actions, seed))


def _ask_twice(changes: list[str], env: Env, turn: int) -> None:
    """Before the first turn: make each check of an instance ask itself once more, and note other answers."""
    if turn == 0:
        for item in env.checks:
            if not item.held_out:
                setattr(env, item.name, _twice(env, item.name, getattr(env, item.name), changes))


def _twice(env: Env, name: str, check: Callable[[], Any], changes: list[str]) -> Callable[[], Any]:
    def ask() -> Any:
        first = check()
        type(env).clear_caches()  # the second answer must not be a copy of the first
        with contextlib.suppress(Exception):  # it may have closed what it has looked at
            second = check()
            one, other = (each.verdict.value if isinstance(each, Grade) else each for each in (first, second))
            if one != other:
                changes.append(f"check {name} gives {one}, and {other} when it is asked again")
        return first

    return ask
