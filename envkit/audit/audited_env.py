"""An environment under audit: its sampled tasks, and episodes played on them."""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final

from envkit.audit.instrumented import InstrumentedBackend
from envkit.env import Env
from envkit.errors import BrokenTask, EnvkitError, UsageError
from envkit.sandbox import SandboxBackend
from envkit.tools import Tool, format_call
from envkit.types import JSON, Task, total_reward

#: Number of tasks that an audit plays. Exploits are tried on the first.
SAMPLE: Final = 6
#: Longest time that one episode may take, in seconds.
EPISODE_TIMEOUT_S: Final = 120.0
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


@final
class AuditedEnv:
    """An environment under audit.

    Args:
        kind: its class.
        tasks: the tasks to sample from. The sample is spread over all tasks and does not depend on their
            order.
        backend: makes the sandboxes of its episodes.
        max_turns: actions per episode, enough for the oracle.
    """

    def __init__(
        self, kind: type[Env], tasks: Sequence[Task], backend: SandboxBackend, max_turns: int
    ) -> None:
        # Now, so that what wraps the backend is not wrapped itself when an instance is made.
        self.kind, self.backend, self.max_turns = kind, kind.equip(backend), max_turns
        self._all_tasks = sorted(tasks, key=lambda task: task.id)
        count = min(len(tasks), SAMPLE)
        #: The sample.
        self.tasks = [self._all_tasks[index * len(tasks) // count] for index in range(count)]

    def require_playable(self) -> None:
        """Refuse tasks of another environment.

        Raises:
            UsageError: two tasks have the same id, or the environment cannot begin an episode of one of the
                sample.
        """
        self.make(self._all_tasks).close()
        for task in self.tasks:
            try:
                self.kind.oracle(task)
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

    def make(self, tasks: Sequence[Task], backend: SandboxBackend | None = None) -> Env:
        """A fresh instance, which the caller closes."""
        return self.kind(tasks=tasks, sandbox=backend or self.backend, max_turns=self.max_turns)

    def play(
        self,
        task: Task,
        actions: Sequence[str],
        *,
        seed: int = 0,
        backend: InstrumentedBackend | None = None,
        held_out: bool = False,
    ) -> PlayedEpisode:
        """Play one episode. The last action is repeated until the episode ends.

        With ``held_out``, a solved episode runs the held-out checks, too.

        Raises:
            AuditFailure: the episode takes longer than `EPISODE_TIMEOUT_S`.
        """
        instrumented = backend or InstrumentedBackend(self.backend)

        def episode() -> PlayedEpisode:
            with contextlib.closing(self.make([task], instrumented)) as env:
                options = {"task": task.id, "held_out": held_out}
                observations = [env.reset(seed=seed, options=options)[0]]
                rewards, sources = list[float](), set[str]()
                slowest_s = 0.0
                for action in itertools.chain(actions, itertools.repeat(actions[-1])):
                    began = time.monotonic()
                    observation, reward, terminated, truncated, info = env.step(action)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    observations.append(observation)
                    rewards.append(reward)
                    sources.update(info.get("rewards", ()))
                    if terminated or truncated:
                        return PlayedEpisode(
                            tuple(observations), tuple(rewards), frozenset(sources), info, slowest_s
                        )
                raise AssertionError("repeat ended")

        return run_with_timeout(episode, f"task {task.id}", instrumented.close)

    def play_oracle(self, task: Task, **options: Any) -> PlayedEpisode:
        """Play the oracle's actions; options as for `play`."""
        return self.play(task, self.kind.oracle(task), **options)

    def noise(self, task: Task, number: int) -> list[str]:
        """Random actions: words without meaning, and tool calls with minimal arguments."""
        draw = random.Random(f"{task.id} {number}")
        calls = [minimal_call(tool) for tool in self.kind.tools]
        return [draw.choice([*_NOISE, *calls]) for _ in range(self.max_turns)]


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


def minimal_call(tool: Tool) -> str:
    """A call of a tool with the smallest arguments that its schema allows."""
    smallest: Mapping[str, JSON] = {"string": "", "integer": 0, "number": 0.0, "boolean": False, "array": []}
    parameters = tool.schema()["function"]["parameters"]
    required = {name: parameters["properties"][name] for name in parameters.get("required", ())}
    return format_call(
        tool.name,
        {
            name: schema["enum"][0] if "enum" in schema else smallest.get(schema.get("type", ""))
            for name, schema in required.items()
        },
    )
