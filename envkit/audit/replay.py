"""Plays episodes in a fresh process: with another seed of hashes, another clock and other variables.

    python -m envkit.audit.replay < REQUEST > RESULTS

A request is a pickled list of import paths, followed by a pickled `ReplayRequest`. The results are JSON, one
for each episode: its observations, rewards and scores, or the message of what it raised.

The clock is that of Python: ``time`` and ``datetime.datetime``. Programs in a sandbox, and libraries that ask
the system themselves, see the real one.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, final

from envkit.audit.audited_env import AuditedEnv, PlayedEpisode
from envkit.env import Env
from envkit.errors import SandboxError
from envkit.sandbox import SandboxBackend
from envkit.types import Task, total_reward

#: Longest time for one request, in seconds.
_TIMEOUT_S: Final = 600.0
#: What a difference shows of each text.
_EXCERPT_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Condition:
    """The circumstances of an episode.

    Args:
        ahead_s: seconds that the date is ahead of the real one; negative if it is behind.
        leap_s: seconds that every clock, also those that measure time, leaps ahead before each action.
    """

    ahead_s: float = 0.0
    leap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """An episode to play: its task, its actions, its seed and the circumstances."""

    task: Task
    actions: Sequence[str]
    seed: int = 0
    condition: Condition = Condition()


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Episodes of one environment, played one after another in one process.

    Args:
        variables: environment variables of the process, in addition to those of this one.
    """

    kind: type[Env]
    tasks: Sequence[Task]
    backend: SandboxBackend
    max_turns: int
    replays: Sequence[Replay]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ReplayedEpisode:
    """What can be compared of an episode; see `envkit.types.StepInfo` for its last three fields."""

    observations: list[str]
    rewards: list[float]
    solved: bool
    scores: dict[str, float]
    verdict: str

    @classmethod
    def of(cls, episode: PlayedEpisode) -> ReplayedEpisode:
        """The same of an episode that was played here, as JSON would return it."""
        info = episode.info
        return cls(
            [*episode.observations],
            [*map(float, episode.rewards)],
            info["solved"],
            dict(info["scores"]),
            str(info["verdict"]),
        )

    @property
    def reward(self) -> float:
        return total_reward(self.rewards)

    def difference(self, other: ReplayedEpisode) -> str:
        """The first difference to another episode; empty if there is none."""
        for turn, (one, two) in enumerate(itertools.zip_longest(self.observations, other.observations)):
            if one != two:
                return f"observation {turn}: {_excerpts(one, two)}"
        for name in ("solved", "scores", "verdict", "rewards"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                return f"{name}: {one}, {two}"
        return ""


def _excerpts(one: str | None, two: str | None) -> str:
    """Two texts as far as it takes to see where they differ; ``None`` is no text."""
    if one is None or two is None:
        return f"{(one or '')[:_EXCERPT_CHARS]!r}, {(two or '')[:_EXCERPT_CHARS]!r}"
    same = next((i for i, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - _EXCERPT_CHARS // 2)
    return f"{one[start : start + _EXCERPT_CHARS]!r}, {two[start : start + _EXCERPT_CHARS]!r}"


def play_elsewhere(request: ReplayRequest, hash_seed: int) -> list[ReplayedEpisode | str] | str:
    """Play episodes in a fresh process; a message for each that raised. A text says why it is impossible.

    Raises:
        SandboxError: the process ended, or took too long.
    """
    try:
        data = pickle.dumps([path or os.getcwd() for path in sys.path]) + pickle.dumps(request)
    except Exception as error:
        return f"another process cannot be given it: {error}"
    environment = {**os.environ, **request.variables, "PYTHONHASHSEED": str(hash_seed)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "envkit.audit.replay"],
            input=data,
            env=environment,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"episodes in a fresh process took more than {_TIMEOUT_S:g} s") from error
    if done.returncode == _CANNOT_IMPORT:
        return f"another process cannot import it: {done.stderr.decode(errors='replace').strip()}"
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip()[-500:]
        raise SandboxError(f"a fresh process for episodes ended with status {done.returncode}: {last}")
    results = json.loads(done.stdout)
    return [each if isinstance(each, str) else ReplayedEpisode(**each) for each in results]


# In the fresh process.

#: Exit status if the environment cannot be imported.
_CANNOT_IMPORT: Final = 3


#: Functions of ``time``: name, parts of a second, and True for those that tell the date.
_CLOCKS: Final = tuple(
    (f"{name}{suffix}", unit, name == "time")
    for name in ("time", "monotonic", "perf_counter")
    for suffix, unit in (("", 1), ("_ns", 10**9))
)


@final
class _Clock:
    """Python's clocks, set ahead."""

    def __init__(self) -> None:
        self.ahead_s = self.leapt_s = 0.0

    def install(self) -> None:
        """Replace the clocks for all modules that are imported from now on."""
        for name, unit, is_date in _CLOCKS:
            setattr(time, name, self._set_ahead(getattr(time, name), unit, is_date))
        for name in ("localtime", "gmtime", "ctime"):
            setattr(time, name, _by_default(getattr(time, name), lambda: time.time()))
        time.asctime = _by_default(time.asctime, lambda: time.localtime())
        real = time.strftime
        time.strftime = lambda format, parts=None: real(format, parts or time.localtime())  # pyright: ignore
        # ``datetime.date.today`` asks ``time.time``, so it follows.
        datetime.datetime = _datetime_of_time()  # pyright: ignore[reportAttributeAccessIssue]

    def _set_ahead(self, clock: Callable[[], Any], unit: int, is_date: bool) -> Callable[[], Any]:
        def now() -> Any:
            offset = unit * (self.leapt_s + (self.ahead_s if is_date else 0.0))
            return clock() + (offset if unit == 1 else int(offset))

        return now


def _by_default(convert: Callable[[Any], Any], now: Callable[[], Any]) -> Any:
    """A function that converts a time, by default the present one."""

    def converted(moment: Any = None) -> Any:
        return convert(now() if moment is None else moment)

    return converted


def _datetime_of_time() -> Any:
    """A class in place of ``datetime.datetime`` that asks ``time.time``. Its instances are real ones."""
    real = datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

    class Replaced(real, metaclass=Kind):
        def __new__(cls, *args: Any, **options: Any) -> Any:
            return real(*args, **options)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return real.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema  # only if a tool takes a time

            return core_schema.datetime_schema()

    Replaced.__name__ = Replaced.__qualname__ = "datetime"
    return Replaced


def _play(audited: AuditedEnv, replay: Replay, clock: _Clock) -> ReplayedEpisode | str:
    clock.ahead_s, clock.leapt_s = replay.condition.ahead_s, 0.0

    def leap(env: Env, turn: int) -> None:
        clock.leapt_s += replay.condition.leap_s

    try:
        played = audited.play(replay.task, replay.actions, seed=replay.seed, before_turn=leap)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ReplayedEpisode.of(played)


def main() -> int:
    """Answer the request on standard input."""
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)  # what the environment prints is no result
        sys.path[:] = pickle.load(sys.stdin.buffer)
        clock = _Clock()
        clock.install()
        try:
            request: ReplayRequest = pickle.load(sys.stdin.buffer)
        except Exception as error:
            print(error, file=sys.stderr)
            return _CANNOT_IMPORT
        audited = AuditedEnv(request.kind, request.tasks, request.backend, request.max_turns)
        played = [_play(audited, replay, clock) for replay in request.replays]
        json.dump([each if isinstance(each, str) else asdict(each) for each in played], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
