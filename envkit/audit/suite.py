"""The audit as tests that an environment's author inherits.

::

    class TestMyEnv(EnvSuite):
        kind = MyEnv
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final

import gymnasium
import pytest

from envkit.audit.fuzz import MAX_STEP_CPU_S, fuzz
from envkit.audit.runner import AUDIT_CHECKS, AuditedEnv, AuditFailure, NotApplicable
from envkit.display import Silent
from envkit.env import Env
from envkit.errors import ContractError, UsageError
from envkit.registry import sandbox_backend
from envkit.sandbox import SandboxBackend
from envkit.tools import Tool, format_call
from envkit.types import Task

#: Seeds of the two episodes that a vector environment plays in parallel.
_SEEDS: Final = (3, 4)
#: Bent actions that are tried, and turns of an episode of them.
_BENT_ACTIONS: Final = 120
_BENT_TURNS: Final = 30
#: Actions that no action grammar expects. The last two hold lone surrogates, so they are not valid Unicode.
_HOSTILE: Final = (
    *("", " \n\t", "\0", "\\", "'", '"""', "```", "```\n", "%s{}", "\r\n\r\n", "\x1b[2J\x07"),
    *("(" * 3000, "[" * 3000 + "]" * 3000, "9" * 5000, "<|im_end|><|im_start|>system"),
    *("\u202e\u200b\ufeff", "\N{PILE OF POO}" * 200, "\ud800", "a\udc80b"),
)
#: JSON type -> hostile arguments of that type.
_WORST: Final[Mapping[str, Sequence[object]]] = {
    "string": ("\0", "\ud800", "../../../etc/passwd", "--help", "'; exit #", "\n", "x" * 9000, "\N{SNOWMAN}"),
    "integer": (-1, 10**30, 0, 10**4000),
    "number": (-1e308, 0.0, "nan", "-inf"),
    "boolean": (True,),
}


class EnvSuite:
    """Tests of an environment: one per check of `envkit audit`, and some of its Gymnasium interface.

    The environment must come from a module that other processes can import, because one test plays it in an
    `AsyncVectorEnv`. A subclass may replace the fixtures ``backend`` and ``tasks``, which have class scope.

    Args:
        kind: the environment.
        max_turns: actions per episode, enough for the oracle; ``None`` for the environment's own number.
    """

    kind: ClassVar[type[Env]]
    max_turns: ClassVar[int | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> SandboxBackend:
        """The best isolated backend on this machine, with what the environment's class declares."""
        return cls.kind.equip(sandbox_backend("docker" if cls.kind.image else "auto"))

    @pytest.fixture(scope="class")
    @classmethod
    def tasks(cls, backend: SandboxBackend) -> Sequence[Task]:
        """The environment's starter tasks."""
        return cls.kind.make_tasks("starter", sandbox=backend, display=Silent())

    @pytest.fixture
    def env(self, backend: SandboxBackend, tasks: Sequence[Task]) -> Iterator[Env]:
        """A fresh instance, closed after the test."""
        made = self.kind(tasks=tasks, sandbox=backend, max_turns=self.max_turns)
        yield made
        made.close()

    @pytest.mark.parametrize("check", AUDIT_CHECKS)
    def test_audit(self, backend: SandboxBackend, tasks: Sequence[Task], check: str) -> None:
        """The environment passes this check of `envkit audit`."""
        try:
            AUDIT_CHECKS[check](AuditedEnv(self.kind, tasks, backend, self.max_turns or self.kind.max_turns))
        except NotApplicable as reason:
            pytest.skip(str(reason))
        except AuditFailure as fault:
            pytest.fail(str(fault), pytrace=False)

    def test_the_task_that_is_asked_for_is_posed(self, env: Env, tasks: Sequence[Task]) -> None:
        """``reset(options={"task": id})`` poses that task; an unknown id raises `UsageError`."""
        for task in tasks:
            _, info = env.reset(options={"task": task.id})
            _same(info["task"], task.id, "asked for a task, reset() poses")
            _same(env.task, task, f"asked for task {task.id}, the environment has")
        with pytest.raises(UsageError):
            env.reset(options={"task": "\0 no such task"})

    def test_hostile_actions_are_answered(self, env: Env) -> None:
        """`step` answers every action with an observation and never raises."""
        limit = env.action_space.max_bytes
        ended = True
        for action in (*_HOSTILE, "a" * limit, "a" * (limit + 1), *_hostile_calls(env.tools)):
            if ended:
                env.reset(seed=1)
            try:
                seen, reward, terminated, truncated, _ = env.step(action)
            except Exception as error:
                pytest.fail(f"the action {action[:100]!r} raises {type(error).__name__}: {error}")
            if not env.observation_space.contains(seen):
                pytest.fail(f"the action {action[:100]!r} is answered with {seen!r}, which is no observation")
            low, high = env.reward_range
            if not low - high <= reward <= high - low:
                pytest.fail(
                    f"the action {action[:100]!r} earns {reward}, but an episode earns "
                    f"from {low:g} to {high:g}"
                )
            ended = terminated or truncated

    def test_bent_actions_neither_raise_nor_hold_the_host(
        self, backend: SandboxBackend, tasks: Sequence[Task]
    ) -> None:
        """Valid actions that are bent, stuffed or nested neither raise nor take much of the host's time."""
        make = partial(self.kind, tasks=tasks, sandbox=backend, max_turns=_BENT_TURNS)
        found = fuzz(make, tasks, _BENT_ACTIONS)
        if found.faults:
            pytest.fail(f"{len(found.faults)} actions raise, the first: {found.faults[0]}")
        if found.slowest_cpu_s > MAX_STEP_CPU_S:
            pytest.fail(
                f"the action {found.slowest[:100]!r} takes {found.slowest_cpu_s:.1f} CPU seconds of the "
                f"host; expected at most {MAX_STEP_CPU_S:g}: bound what is parsed by its size"
            )

    def test_closing_is_final_and_harmless(self, env: Env) -> None:
        """`close` ends the episode. It may be called first or twice, and `reset` works after it."""
        env.close()
        first, _ = env.reset(seed=1)
        env.close()
        env.close()
        with pytest.raises(ContractError):
            env.step(env.noop_action)
        _same(env.reset(seed=1)[0], first, "after close(), an episode of the same seed begins with")

    @pytest.mark.parametrize("processes", [False, True], ids=["sync", "async"])
    def test_vectors_play_as_single_instances_do(
        self, backend: SandboxBackend, tasks: Sequence[Task], processes: bool
    ) -> None:
        """Vector environments return each instance's own observations, rewards and end flags, row by row."""
        make = partial(self.kind, tasks=tasks, sandbox=backend, max_turns=self.max_turns)
        singles = [make() for _ in _SEEDS]
        # Shared memory corrupts text. Spawn, because a fork of a process with threads may hang.
        vector = (
            gymnasium.vector.AsyncVectorEnv([make] * len(_SEEDS), shared_memory=False, context="spawn")
            if processes
            else gymnasium.vector.SyncVectorEnv([make] * len(_SEEDS))
        )
        try:
            alone = [env.reset(seed=seed) for env, seed in zip(singles, _SEEDS, strict=True)]
            seen, infos = vector.reset(seed=[*_SEEDS])
            _same([*seen], [text for text, _ in alone], "observations of a vector's reset")
            _same([*infos["task"]], [info["task"] for _, info in alone], "tasks of a vector's reset")
            # The first environment solves its task and the second idles, so mixed-up rows show.
            for right in self.kind.oracle(singles[0].task):
                actions = (right, self.kind.noop_action)
                steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
                together: Any = vector.step(actions)
                for column, name in enumerate(("observations", "rewards", "terminated", "truncated")):
                    _same([*together[column]], [step[column] for step in steps], f"{name} of a vector's step")
                if any(terminated or truncated for _, _, terminated, truncated, _ in steps):
                    break
        finally:
            vector.close()
            for env in singles:
                env.close()

    def test_tasks_are_the_same_at_every_call_and_shared_by_no_split(self, backend: SandboxBackend) -> None:
        """`make_tasks` is deterministic; ids are unique, tasks name their split, splits share no source."""
        made: dict[str, Sequence[Task]] = {}
        for split in ("train", "heldout"):
            try:
                first, again = (
                    self.kind.make_tasks(split, sandbox=backend, display=Silent()) for _ in range(2)
                )
            except UsageError as error:
                pytest.skip(str(error))
            if [*first] != [*again]:
                pytest.fail(f"two calls of make_tasks give other {split} tasks; draw them from a seed")
            _same(len({task.id for task in first}), len(first), f"different ids of {split} tasks")
            _same({task.split for task in first}, {split}, f"splits that {split} tasks name")
            made[split] = first
        trained, held = ({task.source for task in made[split]} for split in made)
        _same(sorted(trained & held), [], "sources that are both trained on and held out")


def _same(found: object, expected: object, what: str) -> None:
    """Fail unless equal. An ``assert`` would not do: pytest shows its values only in test modules."""
    if found != expected:
        pytest.fail(f"{what}: found {found!r}, expected {expected!r}")


def _hostile_calls(tools: Sequence[Tool]) -> Iterator[str]:
    """Calls of each tool: two malformed ones, then well-formed ones with hostile arguments."""
    for tool in tools:
        yield f"{tool.name}("
        yield f"{tool.name}(**{{}}, *[])"
        properties: Mapping[str, Any] = tool.schema()["function"]["parameters"]["properties"]
        worst = {name: _worst(schema) for name, schema in properties.items()}
        for number in range(max(map(len, worst.values()), default=0)):
            yield format_call(tool.name, {name: each[number % len(each)] for name, each in worst.items()})


def _worst(schema: Mapping[str, Any]) -> Sequence[object]:
    if schema.get("type") == "array":
        inner = _worst(schema.get("items", {}))
        return [[], *([each] * 50 for each in inner)]
    return _WORST.get(str(schema.get("type")), (None,))
