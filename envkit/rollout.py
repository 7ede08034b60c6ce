"""The rollout loop: plays episodes of any environment with any agent, many at once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar, final

from envkit.agent import Agent, ChatAgent, Session
from envkit.env import LIMIT, Env
from envkit.errors import (
    SETUP_ERRORS,
    AgentError,
    BrokenTask,
    CheckError,
    ContractError,
    ModelUnavailable,
    SandboxError,
    Stopped,
    StoreError,
    UsageError,
)
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped
from envkit.types import JSON, EpisodeKey, Outcome, StepRecord, Trajectory, Turn, Verdict, total_reward

EnvFactory = Callable[[], Env]

Result = TypeVar("Result")

#: Seconds between two looks at the stop request while environments work.
_POLL_S: Final = 0.1
#: Threads for environment work, unless the caller names a number.
_MIN_WORKERS: Final = 2
_MAX_WORKERS: Final = 16
#: Errors that no episode can cause, so they end the run.
_FATAL: Final = (*SETUP_ERRORS, Stopped, StoreError)
#: Most frames of a recorded traceback, and most characters of it and of an error's message.
_TRACE_FRAMES: Final = 8
_TRACE_CHARS: Final = 4_000
_ERROR_CHARS: Final = 500


@dataclass(slots=True)
class _Episode:
    """A running episode: its environment, the agent's session and the turns so far.

    Args:
        index: place of its key among those that were asked for.
        observation: the latest one, not yet answered.
        held_out: whether its held-out checks are scored as well.
        steps: finished turns.
        rewards: what they have earned, by source; see `StepInfo`.
        first_fault: error that ended its first attempt, if one did.
        faults: all errors so far, in order: `first_fault`, and those of a reset that was tried again.
    """

    index: int
    key: EpisodeKey
    env: Env
    observation: str
    session: Session
    held_out: bool
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    first_fault: Exception | None = None
    faults: list[Exception] = field(default_factory=list[Exception])


def reset_seed(key: EpisodeKey) -> int:
    """Reset seed of a group. It depends on the visit only, so all members of a group get the same inputs.

    Distinct for distinct (seed, step, group) within 20, 24 and 18 bits.
    """
    seed, step, group = key.visit
    return ((seed % 2**20) << 42) | ((step % 2**24) << 18) | (group % 2**18)


@final
class Rollouts:
    """Plays episodes with a pool of environments. A context manager.

    The agent runs in the calling thread. Environment work (sandboxes, grading) runs in ``workers`` threads
    meanwhile. Results do not depend on the number of workers.

    Args:
        make_env: makes one environment; called at most once per concurrent episode. A mapping from task id
            to factory plays episodes of several environments together.
        workers: threads for environment work, at least 1. ``None`` for one per core that this process may
            use, at least 2 and at most 16.
        should_stop: polled between turns and while environments work; see `play`.
    """

    def __init__(
        self,
        make_env: EnvFactory | Mapping[str, EnvFactory],
        workers: int | None = None,
        should_stop: ShouldStop = never,
    ) -> None:
        self._make_env, self.should_stop = make_env, should_stop
        if workers is None:
            workers = min(max(len(os.sched_getaffinity(0)), _MIN_WORKERS), _MAX_WORKERS)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="env")
        self._idle: dict[EnvFactory, list[Env]] = {}

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and close every environment. Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with ExitStack() as closing:  # closes all, even if one raises
            for idle in self._idle.values():
                while idle:
                    closing.callback(idle.pop().close)

    @contextmanager
    def _borrowed(self, keys: Sequence[EpisodeKey]) -> Generator[list[Env]]:
        factories = [self._factory(key.task) for key in keys]
        borrowed: list[Env] = []
        try:
            for factory in factories:
                idle = self._idle.setdefault(factory, [])
                borrowed.append(idle.pop() if idle else factory())
            yield borrowed
        finally:
            with ExitStack() as closing:
                for factory, env in zip(factories, borrowed, strict=False):  # fewer if a factory raised
                    self._idle[factory].append(env)
                    closing.callback(env.close)

    def _factory(self, task: str) -> EnvFactory:
        return self._make_env if callable(self._make_env) else self._make_env[task]

    def play(
        self,
        agent: Agent,
        keys: Sequence[EpisodeKey],
        *,
        held_out: bool = False,
        on_done: Callable[[Trajectory], None] = lambda trajectory: None,
    ) -> list[Trajectory]:
        """Play one episode per key; returns the trajectories in that order.

        No action ends the run. If a sandbox breaks, or an action, a tool or a check raises, the episode's
        actions are repeated once in a fresh sandbox. If that fails too, the agent may have caused it and the
        episode has failed. An episode is void if `Env.reset` fails twice in a row (at its beginning or for
        the repeat), if the agent answers with an `AgentError`, if the task itself is broken (`BrokenTask`),
        or if a model that the environment asks is down (`ModelUnavailable`).

        If the environment's code raised, the episode's ``info["trace"]`` holds the end of the latest
        traceback, whatever became of the episode, also if it went on after a repeat; see `raised`.

        Args:
            agent: answers the observations.
            keys: the episodes.
            held_out: also score solved episodes with the held-out checks, under ``info["held_out"]``.
            on_done: called with each episode as it ends, in the calling thread.

        Raises:
            ContractError: the agent does not answer, or answers a session that is not waiting.
            UsageError: an environment cannot be made, or cannot begin an episode, because of its input.
            Stopped: `should_stop` has become True. Episodes that did not end are dropped.
        """
        with self._borrowed(keys) as envs:
            done: dict[int, Trajectory] = {}
            waiting: dict[int, _Episode] = {}
            starts = self._run(
                partial(_start, env, key, held_out) for env, key in zip(envs, keys, strict=True)
            )
            for index, (env, key, (first, faults)) in enumerate(zip(envs, keys, starts, strict=True)):
                if first is None:
                    done[index] = _void(env, agent, key, (), faults)
                    on_done(done[index])
                    continue
                session = _session(agent, env, key)
                episode = _Episode(index, key, env, first, session, held_out, faults=faults)
                waiting[id(episode.session)] = episode
                agent.submit(episode.session, first)
            while waiting:
                answered: list[_Episode] = []
                ends = self._run(_moves(agent, waiting, answered))
                if not ends:
                    raise ContractError(f"agent {agent.name} answers none of {len(waiting)} waiting episodes")
                for episode, end in zip(answered, ends, strict=True):
                    if end is None:
                        waiting[id(episode.session)] = episode
                        agent.submit(episode.session, episode.observation)
                    else:
                        done[episode.index] = end
                        on_done(end)
            return [done[index] for index in range(len(keys))]

    def _run(self, calls: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run calls in the workers, each as soon as it is yielded; results in order."""
        futures: list[Future[Result]] = []
        try:
            for call in calls:
                raise_if_stopped(self.should_stop)
                futures.append(self._pool.submit(call))
            while wait(futures, timeout=_POLL_S, return_when=FIRST_EXCEPTION).not_done:
                raise_if_stopped(self.should_stop)
                if any(future.done() and future.exception() for future in futures):
                    break
            return [future.result() for future in futures]
        finally:
            # After an error, an environment must not be closed while a worker is still in it.
            for future in futures:
                future.cancel()
            wait(futures)


def _start(env: Env, key: EpisodeKey, held_out: bool) -> tuple[str | None, list[Exception]]:
    """Reset the environment, twice if the first time fails.

    Returns the first observation, ``None`` if both times failed; and the errors.
    """
    seed, options = reset_seed(key), {"task": key.task, "held_out": held_out}
    faults: list[Exception] = []
    for _ in range(2):
        try:
            return env.reset(seed=seed, options=options)[0], faults
        except (UsageError, *_FATAL):
            raise
        except Exception as error:
            faults.append(error)
    return None, faults


def _session(agent: Agent, env: Env, key: EpisodeKey) -> Session:
    """Begin an agent's episode.

    Raises:
        UsageError: a harness plays, and the agent answers no chats.
    """
    if env.harness is None:
        return agent.start(key, env.system)
    if not isinstance(agent, ChatAgent):
        raise UsageError(f"agent {agent.name} cannot answer the chats of a harness; use a model")
    return agent.start_chats(key)


def _moves(
    agent: Agent, waiting: dict[int, _Episode], answered: list[_Episode]
) -> Generator[Callable[[], Trajectory | None]]:
    """Yield one environment step per answer, as answers come.

    Each episode moves from ``waiting`` to ``answered``.
    """
    for session, turn in agent.collect():
        if id(session) not in waiting:
            raise ContractError(f"agent {agent.name} answered a session that waits for no answer")
        answered.append(waiting.pop(id(session)))
        yield partial(_step, agent, answered[-1], turn)


def _step(agent: Agent, episode: _Episode, turn: Turn | AgentError) -> Trajectory | None:
    """Step the environment with one turn; returns the trajectory if the episode is over."""
    env, key = episode.env, episode.key
    if isinstance(turn, AgentError):
        with suppress(Exception):  # the episode is void, whether or not it ends well
            env.close()
        return _void(env, agent, key, episode.steps, [*episode.faults, turn])
    try:
        observation, reward, terminated, truncated, info = env.step(turn.text)
    except (BrokenTask, ModelUnavailable) as error:
        steps = [*episode.steps, StepRecord(episode.observation, turn, 0.0)]
        return _void(env, agent, key, steps, [*episode.faults, error])
    except _FATAL:
        raise
    except Exception as error:
        return _repeat(agent, episode, turn, error)
    episode.steps.append(StepRecord(episode.observation, turn, float(reward)))
    episode.observation = observation
    for source, part in info.get("rewards", {}).items():
        episode.rewards[source] = total_reward([episode.rewards.get(source, 0.0), part])
    if not (terminated or truncated):
        return None
    return _finished(agent, episode, episode.steps, {**info, **_trace(episode.faults)})


def _repeat(agent: Agent, episode: _Episode, turn: Turn, error: Exception) -> Trajectory | None:
    """Repeat an episode's actions in a fresh sandbox. If that fails again, the episode has failed."""
    env, key, steps = episode.env, episode.key, episode.steps
    first = episode.first_fault
    episode.faults.append(error)
    if first is not None:
        info: dict[str, Any] = {
            "verdict": Verdict.FAIL.value,
            "error": f"broke twice: {_described(first)}; {_described(error)}",
            **_trace(episode.faults),
        }
        # The least that an episode may earn: breaking the environment must not pay, not even to save costs.
        rest = total_reward([env.reward_range[0], *(-step.reward for step in steps)])
        steps = [*steps, StepRecord(episode.observation, turn, rest or 0.0)]
        if rest:
            episode.rewards[LIMIT] = total_reward([episode.rewards.get(LIMIT, 0.0), rest])
        return _finished(agent, episode, steps, {"solved": False, "scores": {}, **info})
    episode.first_fault = error
    observation, faults = _start(env, key, episode.held_out)
    episode.faults += faults
    if observation is None:
        return _void(env, agent, key, steps, episode.faults)
    episode.observation = observation
    episode.steps, episode.rewards = [], {}
    for earlier in [*(step.turn for step in steps), turn]:
        if (end := _step(agent, episode, earlier)) is not None:
            return end
    return None


def _finished(
    agent: Agent, episode: _Episode, steps: Sequence[StepRecord], info: Mapping[str, Any]
) -> Trajectory:
    kept = ("verdict", "evidence", "weaknesses", "held_out")
    notes: dict[str, JSON] = {name: info[name] for name in kept if name in info}
    notes |= _without_secrets(episode.env, info)
    if episode.rewards:
        notes["rewards"] = episode.rewards
    outcome = Outcome.SOLVED if info["solved"] else Outcome.FAILED
    scores = dict(info["scores"])
    return Trajectory(episode.key, episode.env.id, agent.name, tuple(steps), outcome, scores, notes)


def _void(
    env: Env, agent: Agent, key: EpisodeKey, steps: Sequence[StepRecord], faults: Sequence[Exception]
) -> Trajectory:
    """Return a void episode. The last of its errors ended it."""
    info = _without_secrets(env, {"error": _described(faults[-1]), **_trace(faults)})
    return Trajectory(key, env.id, agent.name, tuple(steps), Outcome.VOID, {}, info)


def _without_secrets(env: Env, info: Mapping[str, Any]) -> dict[str, JSON]:
    """Return error and traceback of an episode, with the names of secrets in place of their values."""
    return {name: env.without_secrets(info[name]) for name in ("error", "trace") if name in info}


def raised(trajectory: Trajectory) -> bool:
    """True if the environment's own code raised in the episode, which is a bug; see `Rollouts.play`."""
    return "trace" in trajectory.info


def _is_bug(error: Exception) -> bool:
    """True if the environment's code raised, and not its sandbox or the agent."""
    return not isinstance(error, SandboxError | AgentError)


def _described(error: Exception) -> str:
    """The error's message, with its type if it was not raised on purpose."""
    try:
        text = str(error)
    except Exception:  # the message of an author's exception is the author's code
        text = "its message cannot be shown"
    if _is_bug(error) and not isinstance(error, CheckError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _ERROR_CHARS else f"{text[:_ERROR_CHARS]} ..."


def _trace(faults: Sequence[Exception]) -> dict[str, JSON]:
    """The end of the latest bug's traceback for the episode's record; empty if no error is a bug."""
    bugs = [error for error in faults if _is_bug(error)]
    if not bugs:
        return {}
    error = bugs[-1]
    cause: BaseException = error
    while isinstance(cause, CheckError) and cause.__cause__ is not None:
        cause = cause.__cause__  # what the check raised
    try:
        lines = traceback.format_exception(cause, limit=-_TRACE_FRAMES, chain=False)
    except Exception:
        lines = [_described(error)]
    return {"trace": "".join(lines)[-_TRACE_CHARS:].strip()}
