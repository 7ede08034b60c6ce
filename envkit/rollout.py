"""The one loop that plays episodes: any environment, any agent, many at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, final

from envkit.agent import Agent, Session
from envkit.env import Env
from envkit.errors import AgentError, BrokenTask, CheckError, ContractError, SandboxError
from envkit.types import JSON, EpisodeKey, Outcome, StepRecord, Trajectory, Turn, Verdict

EnvFactory = Callable[[], Env]

Result = TypeVar("Result")


@dataclass(slots=True)
class _Episode:
    """A running episode: its environment, its agent's session and what happened so far."""

    index: int
    key: EpisodeKey
    env: Env
    observation: str
    session: Session
    held_out: bool
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    #: What broke its first sandbox.
    broke: SandboxError | CheckError | None = None


def visit_seed(key: EpisodeKey) -> int:
    """The reset seed of a group: a function of its visit, so its members meet the same inputs.

    Distinct for distinct (seed, step, group) within 20, 24 and 18 bits.
    """
    seed, step, group = key.visit
    return ((seed % 2**20) << 42) | ((step % 2**24) << 18) | (group % 2**18)


@final
class Rollouts:
    """Plays episodes with a pool of environments.

    Environment work (sandboxes, grading) runs in ``workers`` threads, also while the agent, which is driven
    from the calling thread, still answers others. Results do not depend on the number of workers. Use as a
    context manager.

    Args:
        make_env: makes one environment; called at most once per concurrent episode. Or, by task id, what
            makes one that poses the task: then episodes of several environments are played together.
        workers: threads for environment work, at least 1.
    """

    def __init__(self, make_env: EnvFactory | Mapping[str, EnvFactory], workers: int = 2) -> None:
        self._make_env = make_env
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="env")
        self._idle: dict[EnvFactory, list[Env]] = {}

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and close every environment. Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    @contextmanager
    def _borrowed(self, keys: Sequence[EpisodeKey]) -> Generator[list[Env]]:
        makers = [self._maker(key.task) for key in keys]
        taken: list[Env] = []
        try:
            for make in makers:
                idle = self._idle.setdefault(make, [])
                taken.append(idle.pop() if idle else make())
            yield taken
        finally:
            for make, env in zip(makers, taken, strict=False):  # fewer if one could not be made
                self._idle[make].append(env)
            for env in taken:
                env.close()

    def _maker(self, task: str) -> EnvFactory:
        return self._make_env if callable(self._make_env) else self._make_env[task]

    def play(
        self,
        agent: Agent,
        keys: Sequence[EpisodeKey],
        *,
        held_out: bool = False,
        on_done: Callable[[Trajectory], None] = lambda trajectory: None,
    ) -> list[Trajectory]:
        """Play one episode per key and return the trajectories in that order.

        ``on_done`` is called with each episode as it ends, in the calling thread.

        With ``held_out``, solved episodes are asked the held-out checks, and keep what those say under
        ``info["held_out"]``.

        An episode whose machinery breaks, or whose check raises, is replayed once, action by action, in a
        fresh sandbox. If it breaks again it counts as failed, because the agent may have caused it. An
        episode is void if `Env.reset` fails twice in a row, before the agent acted; if its agent gives up
        (`AgentError`); or if its task is broken in itself (`BrokenTask`).

        Raises:
            ContractError: the agent does not answer, or answers a session that it was not asked.
        """
        with self._borrowed(keys) as envs:
            done: dict[int, Trajectory] = {}
            waiting: dict[int, _Episode] = {}
            starts = self._all(
                [partial(_start, env, key, held_out) for env, key in zip(envs, keys, strict=True)]
            )
            for index, (env, key, first) in enumerate(zip(envs, keys, starts, strict=True)):
                if isinstance(first, SandboxError):
                    done[index] = _void(env, agent, key, (), first)
                    on_done(done[index])
                    continue
                episode = _Episode(index, key, env, first, agent.start(key, env.system), held_out)
                waiting[id(episode.session)] = episode
                agent.submit(episode.session, first)
            while waiting:
                moving: list[_Episode] = []
                ends = self._all(_moves(agent, waiting, moving))
                if not ends:
                    raise ContractError(f"agent {agent.name} answers none of {len(waiting)} waiting episodes")
                for episode, end in zip(moving, ends, strict=True):
                    if end is None:
                        waiting[id(episode.session)] = episode
                        agent.submit(episode.session, episode.observation)
                    else:
                        done[episode.index] = end
                        on_done(end)
            return [done[index] for index in range(len(keys))]

    def _all(self, calls: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run the calls in the workers, each as soon as it is known; results in order."""
        futures: list[Future[Result]] = []
        try:
            futures.extend(self._pool.submit(call) for call in calls)
            return [future.result() for future in futures]
        finally:
            # An error must not let an environment be closed while a worker is still in it.
            for future in futures:
                future.cancel()
            wait(futures)


def _reset(env: Env, key: EpisodeKey, held_out: bool) -> str:
    """The first observation; a reset whose machinery breaks is tried once more."""
    seed, options = visit_seed(key), {"task": key.task, "held_out": held_out}
    try:
        return env.reset(seed=seed, options=options)[0]
    except SandboxError:
        return env.reset(seed=seed, options=options)[0]


def _start(env: Env, key: EpisodeKey, held_out: bool) -> str | SandboxError:
    try:
        return _reset(env, key, held_out)
    except SandboxError as error:
        return error


def _moves(
    agent: Agent, waiting: dict[int, _Episode], moving: list[_Episode]
) -> Generator[Callable[[], Trajectory | None]]:
    """What is to be done with each answer, as it comes; its episode goes from ``waiting`` to ``moving``."""
    for session, answer in agent.collect():
        if id(session) not in waiting:
            raise ContractError(f"agent {agent.name} answered a session that waits for no answer")
        moving.append(waiting.pop(id(session)))
        yield partial(_move, agent, moving[-1], answer)


def _move(agent: Agent, episode: _Episode, turn: Turn | AgentError) -> Trajectory | None:
    """Take one turn; returns the trajectory when it was the last."""
    env, key = episode.env, episode.key
    if isinstance(turn, AgentError):
        env.close()
        return _void(env, agent, key, episode.steps, turn)
    try:
        seen, reward, terminated, truncated, info = env.step(turn.text)
    except BrokenTask as error:
        return _void(env, agent, key, [*episode.steps, StepRecord(episode.observation, turn, 0.0)], error)
    except (SandboxError, CheckError) as error:
        return _broken(agent, episode, turn, error)
    episode.steps.append(StepRecord(episode.observation, turn, float(reward)))
    episode.observation = seen
    return _finished(env, agent, key, episode.steps, info) if terminated or truncated else None


def _broken(
    agent: Agent, episode: _Episode, turn: Turn, error: SandboxError | CheckError
) -> Trajectory | None:
    """Say the same actions again in a fresh sandbox; a second breakdown is a failure."""
    env, key, steps = episode.env, episode.key, episode.steps
    if episode.broke is not None:
        info = {"verdict": Verdict.FAIL.value, "error": f"broke twice: {episode.broke}; {error}"}
        steps = [*steps, StepRecord(episode.observation, turn, 0.0)]
        return _finished(env, agent, key, steps, {"solved": False, "scores": {}, **info})
    episode.broke = error
    try:
        episode.observation = _reset(env, key, episode.held_out)
    except SandboxError as again:
        return _void(env, agent, key, steps, again)
    episode.steps = []
    for said in [*(step.turn for step in steps), turn]:
        if (end := _move(agent, episode, said)) is not None:
            return end
    return None


def _finished(
    env: Env, agent: Agent, key: EpisodeKey, steps: Sequence[StepRecord], info: Mapping[str, Any]
) -> Trajectory:
    kept = ("verdict", "evidence", "weaknesses", "held_out", "error")
    notes: dict[str, JSON] = {name: info[name] for name in kept if name in info}
    outcome = Outcome.SOLVED if info["solved"] else Outcome.FAILED
    return Trajectory(key, env.id, agent.name, tuple(steps), outcome, dict(info["scores"]), notes)


def _void(
    env: Env, agent: Agent, key: EpisodeKey, steps: Sequence[StepRecord], error: Exception
) -> Trajectory:
    # Only a last step earns a reward, and a void has none.
    return Trajectory(key, env.id, agent.name, tuple(steps), Outcome.VOID, {}, {"error": str(error)})
