"""An environment under audit: its sampled tasks, and episodes played on them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast, final

from envkit.audit.actions.answers import ActionValue, answers_of, junk, near_misses, replaced
from envkit.audit.actions.words import minimal_call
from envkit.audit.instrumented import InstrumentedBackend
from envkit.env import Env, oracle_actions
from envkit.env.tools import Tool
from envkit.errors import BrokenTask, EnvkitError, UsageError
from envkit.sandbox import SandboxBackend
from envkit.types import Task, total_reward

#: Number of tasks that an audit plays, and the largest number if the environment has more levels than that.
SAMPLE: Final = 6
_MAX_SAMPLE: Final = 12
#: Longest time that one episode may take, in seconds.
EPISODE_TIMEOUT_S: Final = 120.0
#: Largest share of the oracle's reward that an action without the work may earn, if unfinished work earns
#: more. Some partly right answers are found by chance.
_MAX_CHANCE: Final = 0.1
#: Rewards that differ by less are equal.
_EPSILON: Final = 1e-9
_NOISE: Final = (
    *("", "yes", "I do not know.", "submit", "0", "{}", "```\nx\n```", "<|im_end|>", "\N{SNOWMAN} " * 50),
    *("reward = 1", "PASS", "print('3 passed')", "a" * 2000),
)

Result = TypeVar("Result")


class AuditFailure(Exception):
    """The environment fails an audit check; the message says how."""


class NotApplicable(Exception):
    """An audit check has nothing to check; the message says why."""


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """The outside view of one episode.

    Args:
        observations: the first one included.
        rewards: of each step.
        sources: names of all that paid or took reward.
        info: of the last step.
        slowest_s: wall seconds of its slowest step.
    """

    observations: tuple[str, ...]
    rewards: tuple[float, ...]
    sources: frozenset[str]
    info: Mapping[str, Any]
    slowest_s: float

    @property
    def reward(self) -> float:
        return total_reward(self.rewards)

    @property
    def solved(self) -> bool:
        return bool(self.info["solved"])


class EpisodeOutcome(Protocol):
    """What an episode was worth."""

    @property
    def reward(self) -> float: ...

    @property
    def solved(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Coverage:
    """The tasks that an audit played, of those that it chose from.

    Args:
        played: number of tasks that were played.
        tasks: number of all tasks.
        sources: number of their sources that were played, and of all.
        levels: level, see `level_of` -> number of its tasks that were played, and of all. Empty if no task
            names a level.
    """

    played: int
    tasks: int
    sources: tuple[int, int]
    levels: Mapping[str, tuple[int, int]]


@final
class AuditedEnv:
    """An environment under audit.

    Args:
        kind: its class.
        tasks: the tasks to sample from. The sample is spread over their levels and sources, and does not
            depend on their order.
        backend: makes the sandboxes of its episodes.
        max_turns: actions per episode, enough for the oracle.
        own_tasks: True if these are the environment's own tasks. Then its splits are checked too.
        quick: True to play fewer episodes where a check could play any number.
    """

    def __init__(
        self,
        kind: type[Env],
        tasks: Sequence[Task],
        backend: SandboxBackend,
        max_turns: int,
        *,
        own_tasks: bool = False,
        quick: bool = False,
    ) -> None:
        # Now, so that what wraps the backend is not wrapped itself when an instance is made.
        self.kind, self.backend, self.max_turns = kind, kind.equip(backend), max_turns
        self.own_tasks, self.quick = own_tasks, quick
        self.all_tasks = sorted(tasks, key=lambda task: task.id)
        #: Number of levels of difficulty.
        self.levels = len({level_of(task) for task in tasks})
        #: The sample, sorted by id.
        self.tasks = self.spread(min(max(SAMPLE, self.levels), _MAX_SAMPLE))
        self._played: set[str] = set()
        self._kept: dict[tuple[str, str], Any] = {}

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that agents have in the sampled tasks; see `Env.tools_of`."""
        every = (tool for task in self.tasks for tool in self.kind.tools_of(task, self.backend))
        return (*{tool.name: tool for tool in every}.values(),)

    @property
    def coverage(self) -> Coverage:
        """The tasks that were played so far."""
        played = [task for task in self.all_tasks if task.id in self._played]
        levels = {level for task in self.all_tasks if (level := level_of(task))}

        def count(tasks: Sequence[Task], level: str) -> int:
            return sum(level_of(task) == level for task in tasks)

        return Coverage(
            len(played),
            len(self.all_tasks),
            (len({task.source for task in played}), len({task.source for task in self.all_tasks})),
            {level: (count(played, level), count(self.all_tasks, level)) for level in sorted(levels)},
        )

    def spread(self, count: int) -> list[Task]:
        """Choose tasks, spread over levels, sources and ids; all of them if there are not more."""
        by_level: dict[str, list[Task]] = {}
        for task in self.all_tasks:
            by_level.setdefault(level_of(task), []).append(task)
        levels = [by_level[level] for level in _evenly(sorted(by_level), count)]
        shares = [0] * len(levels)
        for index in itertools.cycle(range(len(levels))):
            if sum(shares) >= min(count, sum(map(len, levels))):
                break
            shares[index] += shares[index] < len(levels[index])
        chosen = [
            task
            for tasks, share in zip(levels, shares, strict=True)
            for task in _evenly(_one_of_each_source(tasks, share), share)
        ]
        return sorted(chosen, key=lambda task: task.id)

    def require_playable(self) -> None:
        """Refuse tasks of another environment.

        Raises:
            UsageError: two tasks have the same id, or the environment cannot begin an episode of one of the
                sample.
        """
        self.make(self.all_tasks).close()
        for task in self.tasks:
            try:
                oracle_actions(self.kind, task)
                with contextlib.closing(self.make([task])) as env:
                    env.reset(seed=0, options={"task": task.id})
            except Exception as error:
                if isinstance(error, EnvkitError) and not isinstance(error, BrokenTask):
                    raise
                found = f"{type(error).__name__}: {error}"
                raise UsageError(
                    f"environment {self.kind.id} cannot pose task {task.id!r} ({found}); "
                    "expected a task of this environment"
                ) from error

    def make(
        self, tasks: Sequence[Task], backend: SandboxBackend | None = None, max_turns: int | None = None
    ) -> Env:
        """A fresh instance, which the caller closes."""
        turns = self.max_turns if max_turns is None else max_turns
        return self.kind(tasks=tasks, sandbox=backend or self.backend, max_turns=turns)

    # Episodes.

    def play(
        self,
        task: Task,
        actions: Sequence[str],
        *,
        seed: int = 0,
        backend: InstrumentedBackend | None = None,
        max_turns: int | None = None,
        before_turn: Callable[[Env, int], None] | None = None,
        held_out: bool = False,
    ) -> PlayedEpisode:
        """Play one episode in a fresh instance. The last action is repeated until the episode ends.

        Args:
            before_turn: called with the instance and the number of the turn, from 0, before each action.
            held_out: True to run the held-out checks, too, if the episode is solved.

        Raises:
            AuditFailure: the episode takes longer than `EPISODE_TIMEOUT_S`.
        """
        instrumented = backend or InstrumentedBackend(self.backend)

        def episode() -> PlayedEpisode:
            with contextlib.closing(self.make([task], instrumented, max_turns)) as env:
                return play_on(env, task, actions, seed, before_turn, held_out=held_out)

        self._played.add(task.id)
        try:
            return run_with_timeout(episode, f"task {task.id}", instrumented.close)
        finally:
            instrumented.close()  # an episode that was broken on purpose may have left some open

    def play_oracle(self, task: Task, **options: Any) -> PlayedEpisode:
        """Play the oracle's actions; options as for `play`."""
        return self.play(task, self.oracle_actions(task), **options)

    def attempt(self, task: Task, actions: Sequence[str], **options: Any) -> PlayedEpisode | None:
        """Play an episode that may break; options as for `play`. ``None`` if it raises, and earns nothing.

        Raises:
            AuditFailure: see `play`.
        """
        try:
            return self.play(task, actions, **options)
        except AuditFailure:
            raise
        except Exception:
            return None

    def noise(self, task: Task, number: int) -> list[str]:
        """Random actions: words without meaning, and tool calls with minimal arguments."""
        draw = random.Random(f"{task.id} {number}")
        calls = [minimal_call(tool) for tool in self.tools]
        return [draw.choice([*_NOISE, *calls]) for _ in range(self.max_turns)]

    def oracle_actions(self, task: Task) -> list[str]:
        """The oracle's actions for a task. They are asked for once."""
        return self._once("oracle's actions", task, lambda: [*oracle_actions(self.kind, task)])

    def wrong_actions(self, task: Task) -> list[str]:
        """Another task's oracle's actions: well-formed, and usually wrong.

        None that hold all of this task's: they would solve it on the way. The no-op if there are no others.
        """
        others = (self.oracle_actions(other) for other in self.tasks)
        own, noop = self.oracle_actions(task), [self.kind.noop_action]
        for actions in others:
            played = [*actions, *actions[-1:] * self.max_turns]  # the last is repeated until the episode ends
            if not _contains(played, own):
                return actions
        return noop

    def ending_calls(self) -> list[str]:
        """Minimal calls of the tools that end an episode; the no-op if there are none."""
        return [minimal_call(tool) for tool in self.tools if tool.ends] or [self.kind.noop_action]

    def needed_answers(self, task: Task) -> list[ActionValue]:
        """The values in the oracle's actions that matter: with junk in its place, nothing is solved."""

        def needed() -> list[ActionValue]:
            given = answers_of(self.oracle_actions(task), self.tools)
            return [answer for answer in given if not self.solves(task, answer, junk(answer.value))]

        return self._once("needed answers", task, needed)

    def solves(self, task: Task, answer: ActionValue, value: object) -> bool:
        """True if the oracle's actions solve a task with another value in an answer's place."""
        changed = replaced(self.oracle_actions(task), answer, value, self.tools)
        episode = self.attempt(task, changed, seed=37)
        return episode is not None and episode.solved

    # What the work is worth.

    def idle(self, task: Task) -> PlayedEpisode:
        """The episode in which nothing is done. It is played once."""
        return self._once("idle", task, lambda: self.play(task, [self.kind.noop_action]))

    def oracle(self, task: Task) -> PlayedEpisode:
        """The episode of the oracle. It is played once."""
        return self._once("oracle", task, lambda: self.play_oracle(task))

    def wrong(self, task: Task) -> PlayedEpisode:
        """The episode of `wrong_actions`. It is played once."""
        return self._once("wrong", task, lambda: self.play(task, self.wrong_actions(task)))

    def unearned(self, task: Task, episode: EpisodeOutcome | None) -> str:
        """The reason why an episode without the work earns too much; empty if it does not.

        It may earn what doing nothing earns. If unfinished work earns more than that, the environment gives
        partial credit. Then an episode may hit some of it by chance, up to a tenth of the oracle's reward.
        """
        if episode is None:
            return ""
        if episode.solved:
            return f"earns {episode.reward:g} on task {task.id}, which counts as solved"
        idle = self.idle(task).reward
        nothing = max(idle, 0.0)  # doing nothing may cost something in each turn
        if episode.reward <= nothing + _EPSILON:
            return ""
        chance = nothing + _MAX_CHANCE * (self.oracle(task).reward - nothing)
        if episode.reward < min(self.partial_credit(task), chance + _EPSILON):
            return ""
        return f"earns {episode.reward:g} on task {task.id}, where doing nothing earns {idle:g}"

    def gains(self, task: Task, before: EpisodeOutcome | None, after: EpisodeOutcome | None) -> bool:
        """True if an episode earns more than another one, than doing nothing, and than unfinished work.

        ``None`` earns nothing.
        """
        if after is None:
            return False
        solved, reward = (False, 0.0) if before is None else (before.solved, before.reward)
        if after.solved and not solved:
            return True
        floor = max(reward, self.idle(task).reward, 0.0)
        return after.reward > floor + _EPSILON and after.reward > self.partial_credit(task) + _EPSILON

    def partial_credit(self, task: Task) -> float:
        """The best reward of unfinished or nearly right work; what doing nothing earns if there is none."""

        def best() -> float:
            played = [self.attempt(task, actions) for actions in self._unfinished(task)]
            return max(
                (episode.reward for episode in played if episode is not None and not episode.solved),
                default=self.idle(task).reward,
            )

        return self._once("partial credit", task, best)

    def gives_partial_credit(self, task: Task) -> bool:
        """True if unfinished work earns more than doing nothing."""
        return self.partial_credit(task) > max(self.idle(task).reward, 0.0) + _EPSILON

    def _unfinished(self, task: Task) -> Iterable[list[str]]:
        """The oracle's actions, cut off at a few places, or with one value cut short."""
        actions = self.oracle_actions(task)
        end = self.ending_calls()[0]
        for length in _evenly(range(1, len(actions)), 4):
            yield [*actions[:length], end]
        for answer in answers_of(actions, self.tools)[:4]:
            for value in near_misses(answer.value)["shortened"][:2]:
                yield replaced(actions, answer, value, self.tools)

    def _once(self, what: str, task: Task, make: Callable[[], Result]) -> Result:
        key = what, task.id
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def play_on(
    env: Env,
    task: Task,
    actions: Sequence[str],
    seed: int = 0,
    before_turn: Callable[[Env, int], None] | None = None,
    *,
    held_out: bool = False,
) -> PlayedEpisode:
    """Play one episode in an instance; see `AuditedEnv.play`."""
    observations = [env.reset(seed=seed, options={"task": task.id, "held_out": held_out})[0]]
    rewards, sources = list[float](), set[str]()
    slowest_s = 0.0
    for turn, action in enumerate(itertools.chain(actions, itertools.repeat(actions[-1]))):
        if before_turn is not None:
            before_turn(env, turn)
        began = time.monotonic()
        observation, reward, terminated, truncated, info = env.step(action)
        slowest_s = max(slowest_s, time.monotonic() - began)
        observations.append(observation)
        rewards.append(reward)
        sources.update(info.get("rewards", ()))
        if terminated or truncated:
            return PlayedEpisode(tuple(observations), tuple(rewards), frozenset(sources), info, slowest_s)
    raise AssertionError("repeat ended")


def level_of(task: Task) -> str:
    """The level of difficulty that a task's metadata names; empty if it names none."""
    return str(task.metadata.get("level", ""))


def _contains(actions: Sequence[str], others: Sequence[str]) -> bool:
    """True if the others are among the actions, in their order."""
    rest = iter(actions)
    return all(other in rest for other in others)


def _evenly(items: Sequence[Result], count: int) -> list[Result]:
    """At most ``count`` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _one_of_each_source(tasks: Sequence[Task], count: int) -> Sequence[Task]:
    """The first task of each source; all tasks if that makes fewer than ``count``."""
    first = {task.source: task for task in reversed(tasks)}
    chosen = [task for task in tasks if first[task.source] is task]
    return chosen if len(chosen) >= count else tasks


def run_with_timeout(work: Callable[[], Result], label: str, cancel: Callable[[], None]) -> Result:
    """Call ``work`` and pass on its result or exception. After `EPISODE_TIMEOUT_S` call ``cancel`` and fail.

    Raises:
        AuditFailure: ``work`` took too long.
    """
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        result, error = done.get(timeout=EPISODE_TIMEOUT_S)
    except queue.Empty:
        cancel()
        worker.join(EPISODE_TIMEOUT_S)  # a thread that waits for no sandbox is left behind
        raise AuditFailure(
            f"{label}: an episode has not ended within {EPISODE_TIMEOUT_S:g} s; is a time limit ignored?"
        ) from None
    if error is not None:
        raise error
    return cast("Result", result)
