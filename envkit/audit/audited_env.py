"""An environment under audit, whose episodes are played to see how they look from outside."""

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
from envkit.sandbox import SandboxBackend
from envkit.tools import Tool, format_call
from envkit.types import JSON, Task

#: Tasks that are looked at, spread over all; exploits are tried on the first.
SAMPLE: Final = 6
#: Longest that one episode may take before it counts as one that never ends.
PATIENCE_S: Final = 120.0
_NOISE: Final = (
    *("", "yes", "I do not know.", "submit", "0", "{}", "```\nx\n```", "<|im_end|>", "\N{SNOWMAN} " * 50),
    *("reward = 1", "PASS", "print('3 passed')", "a" * 2000),
)

Result = TypeVar("Result")


class AuditFailure(Exception):
    """The environment does not pass a check; the message says how."""


class NotApplicable(Exception):
    """The check has nothing to look at; the message says why."""


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """An episode as it looked from outside.

    Args:
        seen: observations, the first one included.
        rewards: of each step.
        info: of the last step.
        slowest_s: wall seconds of its slowest step.
    """

    seen: tuple[str, ...]
    rewards: tuple[float, ...]
    info: Mapping[str, Any]
    slowest_s: float

    @property
    def reward(self) -> float:
        return sum(self.rewards)


@final
class AuditedEnv:
    """An environment under audit.

    Args:
        kind: its class.
        tasks: all of its tasks that there are; a few are looked at.
        backend: where it keeps its episodes.
        max_turns: budget that the oracle must do with.
    """

    def __init__(
        self, kind: type[Env], tasks: Sequence[Task], backend: SandboxBackend, max_turns: int
    ) -> None:
        self.kind, self.backend, self.max_turns = kind, backend, max_turns
        stride = max(len(tasks) // SAMPLE, 1)
        self.tasks = tasks[::stride][:SAMPLE]

    def make(self, tasks: Sequence[Task], backend: SandboxBackend | None = None) -> Env:
        """A fresh instance; the caller closes it."""
        return self.kind(tasks=tasks, sandbox=backend or self.backend, max_turns=self.max_turns)

    def play(
        self, task: Task, actions: Sequence[str], *, seed: int = 0, backend: InstrumentedBackend | None = None
    ) -> PlayedEpisode:
        """Play one episode; the last action is said again until it ends.

        Raises:
            AuditFailure: it does not end in time.
        """
        watched = backend or InstrumentedBackend(self.backend)

        def episode() -> PlayedEpisode:
            with contextlib.closing(self.make([task], watched)) as env:
                seen = [env.reset(seed=seed, options={"task": task.id})[0]]
                rewards: list[float] = []
                slowest_s = 0.0
                for action in itertools.chain(actions, itertools.repeat(actions[-1])):
                    began = time.monotonic()
                    observation, reward, terminated, truncated, info = env.step(action)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    seen.append(observation)
                    rewards.append(reward)
                    if terminated or truncated:
                        return PlayedEpisode(tuple(seen), tuple(rewards), info, slowest_s)
                raise AssertionError("repeat ended")

        return run_with_timeout(episode, f"task {task.id}", watched.close)

    def oracle(self, task: Task, **options: Any) -> PlayedEpisode:
        return self.play(task, self.kind.oracle(task), **options)

    def noise(self, task: Task, number: int) -> list[str]:
        """What somebody says who knows nothing: loose words, and calls of tools with nothing in them."""
        draw = random.Random(f"{task.id} {number}")
        calls = [minimal_call(tool) for tool in self.kind.tools]
        return [draw.choice([*_NOISE, *calls]) for _ in range(self.max_turns)]


def run_with_timeout(work: Callable[[], Result], what: str, end: Callable[[], None]) -> Result:
    """What ``work`` returns or raises; ``end`` ends what it waits for, if that takes too long."""
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        result, error = done.get(timeout=PATIENCE_S)
    except queue.Empty:
        end()
        worker.join(PATIENCE_S)  # what does not wait for a sandbox is left behind
        raise AuditFailure(
            f"{what}: an episode has not ended within {PATIENCE_S:g} s; is a time limit ignored?"
        ) from None
    if error is not None:
        raise error
    return cast("Result", result)


def minimal_call(tool: Tool) -> str:
    """A call with the least that its schema allows."""
    least: Mapping[str, JSON] = {"string": "", "integer": 0, "number": 0.0, "boolean": False, "array": []}
    parameters = tool.schema()["function"]["parameters"]
    needed = {name: parameters["properties"][name] for name in parameters.get("required", ())}
    return format_call(
        tool.name,
        {
            name: each["enum"][0] if "enum" in each else least.get(each.get("type", ""))
            for name, each in needed.items()
        },
    )
