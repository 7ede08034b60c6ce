"""The environment base: tasks, turns, limits and scoring around an author's few hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import gymnasium

from envkit.checks import Check, find_checks, run_checks
from envkit.display import Display
from envkit.errors import ContractError, UsageError
from envkit.sandbox import Sandbox, SandboxBackend
from envkit.spaces import Utf8
from envkit.tools import Tool, describe_tools, find_tools, parse_call
from envkit.types import Task

Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What an action led to.

    Args:
        observation: what the agent sees next.
        done: the agent has ended the episode (submitted or given up).
    """

    observation: str
    done: bool = False


@dataclass(frozen=True, slots=True)
class Exploit:
    """A way to a reward without the work, which must earn none.

    Args:
        name: what it does, unique.
        actions: an episode of it; the last is said again until the episode ends.
        inapplicable: why there is no such way here; the actions are then not played.
    """

    name: str
    actions: tuple[str, ...]
    inapplicable: str = ""


@dataclass(frozen=True, slots=True)
class ImportedTasks:
    """What a published benchmark's files hold.

    Args:
        tasks: its items, as tasks of the environment that read them.
        recorded: name of a model -> task id -> what it said, turn by turn; such as outputs published with it.
        left_out: why items became no tasks -> how many.
    """

    tasks: tuple[Task, ...]
    recorded: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=dict[str, Mapping[str, tuple[str, ...]]]
    )
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


class Env(gymnasium.Env[str, str], ABC):
    """A text environment with programmatic reward; a true ``gymnasium.Env[str, str]``.

    Authors write `setup`, one or more methods marked with `envkit.checks.check`, and either methods marked
    with `envkit.tools.tool` or `apply`. The
    base owns everything else: the sandbox's life, the turn budget, scoring. An episode ends
    *terminated* when an action says so, *truncated* when ``max_turns`` are used up; either way the
    final state is scored once, and that score is the last step's reward. Earlier rewards are 0.

    ``reset(options={"task": id})`` picks a task; without it one is drawn. Everything random in an
    episode follows from ``reset(seed=...)``: `visit_seed` is what hidden inputs are drawn from.
    ``reset(options={"held_out": True})`` has the held-out checks asked at the end, if it is solved.

    Args:
        tasks: the tasks it can pose; ids are unique.
        sandbox: backend that makes one fresh sandbox per episode.
        max_turns: actions until truncation, at least 1.
        max_observation_bytes: longer observations lose their middle.
        max_action_bytes: longer actions are refused, and use up a turn.
        render_mode: ``"ansi"`` makes `render` return the last observation.

    Raises:
        UsageError: no tasks, two tasks of one id, ``max_turns`` < 1, or an unknown render mode.
        ContractError: the class has no ``id``, no check with weight, or neither tools nor an `apply`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  (Gymnasium's own attribute)
    #: Name in reports, e.g. ``code-editor``.
    id: ClassVar[str]
    #: System message of every conversation with a model.
    system: ClassVar[str] = "You act in an environment. Answer each message with one action."
    #: ``"sandbox"``: what an agent works with runs in its sandbox; ``"external"``: it cannot, and every
    #: certificate and report says so.
    isolation: ClassVar[str] = "sandbox"
    #: What an agent says that does nothing.
    noop_action: ClassVar[str] = "pass"
    checks: ClassVar[tuple[Check, ...]] = ()
    tools: ClassVar[tuple[Tool, ...]] = ()
    tasks: Mapping[str, Task]
    max_turns: int
    _validated_tasks: ClassVar[Sequence[Task] | None] = None

    def __init_subclass__(cls) -> None:
        """Find the class's checks and tools.

        Raises:
            ContractError: one of them, or another method, takes the place of what is the base's.
        """
        super().__init_subclass__()
        cls.checks, cls.tools = find_checks(cls), find_tools(cls)
        ours = {*dir(Env), *Env.__annotations__}
        for each in (*cls.checks, *cls.tools):
            if each.name in ours:
                kind = type(each).__name__.lower()
                said = f"{kind} {each.name} of {cls.__name__} would replace Env.{each.name}"
                raise ContractError(f"{said}; give it another name")
        for name in ("reset", "step", "close"):
            if getattr(cls, name) is not getattr(Env, name):
                raise ContractError(
                    f"{cls.__name__} replaces Env.{name}, which owns sandbox, turns and score; write setup, "
                    "apply, teardown or dispose"
                )

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        sandbox: SandboxBackend,
        max_turns: int = 3,
        max_observation_bytes: int = 16_384,
        max_action_bytes: int = 16_384,
        render_mode: str | None = None,
    ) -> None:
        self.tasks = {task.id: task for task in tasks}
        if not tasks:
            raise UsageError(f"{type(self).__name__} was given no tasks; expected at least one")
        if len(self.tasks) != len(tasks):
            raise UsageError(f"{len(tasks)} tasks have only {len(self.tasks)} ids; expected each id once")
        # Rollouts make one environment per running episode from the same tasks; one check is enough.
        if type(self).__dict__.get("_validated_tasks") is not tasks:  # not a parent's, which checks less
            for task in tasks:
                self.validate_task(task)
            type(self)._validated_tasks = tasks
        if max_turns < 1:
            raise UsageError(f"max_turns is {max_turns}; it must be at least 1")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UsageError(f"render_mode is {render_mode!r}; expected None or 'ansi'")
        if not hasattr(self, "id"):
            raise ContractError(f"{type(self).__name__} has no id; give the class one, such as id = 'my-env'")
        if not any(item.weight > 0 for item in self.checks):
            raise ContractError(f"{type(self).__name__} has no check with weight > 0; mark one with @check()")
        if not self.tools and type(self).apply is Env.apply:
            raise ContractError(
                f"{type(self).__name__} has no actions; mark methods with @tool, or write apply()"
            )
        self.observation_space: Utf8 = Utf8(max_observation_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.action_space: Utf8 = Utf8(max_action_bytes)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.max_turns = max_turns
        self.render_mode = render_mode
        self._backend = sandbox
        self._sandbox: Sandbox | None = None
        self._task: Task | None = None
        self._visit_seed = 0
        self._held_out = False
        self._turns = 0
        self._last = ""

    # What an author writes.

    @abstractmethod
    def setup(self, task: Task) -> str:
        """Prepare ``task`` in the fresh `sandbox`, which holds its files; returns the first observation."""

    def teardown(self) -> None:
        """Undo what `setup` did outside the sandbox; asked once an episode, however it ends."""

    @classmethod
    def clear_caches(cls) -> None:
        """Let go of results that episodes share, which may change nothing but time; an audit asks for it."""

    def dispose(self) -> None:
        """End what was kept from one episode to the next; asked by each `close`, and more may come."""

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """The environment's own tasks, the same at every call.

        Args:
            split: ``"train"``, ``"heldout"``, or ``"starter"`` for a few to play with.
            sandbox: for what has to be run to make them.
            display: shows how far it is.

        Raises:
            UsageError: it has none of that split.
        """
        raise UsageError(f"environment {cls.id} has no {split!r} tasks of its own; name a task file")

    @classmethod
    def validate_task(cls, task: Task) -> None:
        """Check that this environment can pose a task; called for every task before any work.

        An override usually reads ``task.hidden`` with `envkit.hidden.read_hidden`.

        Raises:
            TaskFileError: it cannot, for instance because the task was made for another environment. The
                message names the task, the field, what was found and what was expected.
        """

    @classmethod
    def import_tasks(cls, format: str, path: Path) -> ImportedTasks:
        """The items of a benchmark that others have published, read from its own files.

        Args:
            format: name of the benchmark, as ``envkit bench --tasks FORMAT:PATH`` has it.
            path: its file or folder.

        Raises:
            UsageError: no such format; or a file is not of it, which names file and line.
        """
        raise UsageError(f"environment {cls.id} reads no tasks of format {format!r}")

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """Actions that solve a task. The first alone should, where one turn is all there is.

        The warm start imitates the first, and every task is tried with them before it is trained on.
        """
        raise ContractError(
            f"{cls.__name__} has no oracle; write oracle(task), the actions that solve a task"
        )

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Ways to win a task without solving it; `envkit audit` tries them all."""
        return ()

    def apply(self, action: str) -> ActionResult:
        """Carry out one action. What the agent got wrong is an observation, never an exception.

        Unless an author writes another, it carries out a call of a tool; see `envkit.tools`.
        """
        call = parse_call(action, self.tools)
        if isinstance(call, str):
            return ActionResult(call)
        try:
            found = getattr(self, call.tool.name)(**call.arguments)
        except UsageError as error:
            return ActionResult(str(error))
        if isinstance(found, str):
            found = ActionResult(found)
        effect = _returned(found, ActionResult, f"tool {call.tool.name}", "a str or an ActionResult")
        return ActionResult(effect.observation, effect.done or call.tool.ends)

    # What an author reads.

    @property
    def backend(self) -> SandboxBackend:
        """The sandbox backend, for graders that need a second sandbox."""
        return self._backend

    @property
    def sandbox(self) -> Sandbox:
        """This episode's sandbox."""
        if self._sandbox is None:
            raise ContractError("no episode is running; call reset() first")
        return self._sandbox

    @property
    def task(self) -> Task:
        """This episode's task."""
        if self._task is None:
            raise ContractError("no episode is running; call reset() first")
        return self._task

    @property
    def visit_seed(self) -> int:
        """Seed of this visit's hidden inputs, in [0, 2**63)."""
        return self._visit_seed

    @property
    def turns_left(self) -> int:
        return self.max_turns - self._turns

    @property
    def help(self) -> str:
        """What a prompt says of the tools."""
        return describe_tools(self.tools)

    # What the base does with it.

    @final
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode in a fresh sandbox.

        Raises:
            UsageError: an unknown option or task id.
            SandboxError: the sandbox could not be made; the episode is void.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        wanted, self._held_out = options.pop("task", None), bool(options.pop("held_out", False))
        if options:
            raise UsageError(f"unknown reset option {sorted(options)[0]!r}; expected 'task' or 'held_out'")
        ids = list(self.tasks)
        task_id = wanted if wanted is not None else ids[int(self.np_random.integers(len(ids)))]
        if task_id not in self.tasks:
            raise UsageError(f"no task {task_id!r} among the {len(ids)} loaded, e.g. {ids[0]!r}")
        self._visit_seed = int(self.np_random.integers(2**63 - 1))
        self._end()
        self._task = self.tasks[task_id]
        self._turns = 0
        self._sandbox = self._backend.create()
        with self._ending_on_error():
            for path, text in self._task.files.items():
                self._sandbox.write(path, text.encode())
            seen = _returned(self.setup(self._task), str, "setup", "a str, the first observation")
            self._last = self.observation_space.clip(seen)
        return self._last, {"task": task_id, "split": self._task.split}

    @final
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn. The last one carries the reward and ``info`` with scores and verdict.

        Raises:
            ContractError: no episode is running.
            SandboxError: broken machinery; the episode is void and earns nothing.
        """
        if self._sandbox is None:
            raise ContractError("step() without a running episode; call reset() first")
        with self._ending_on_error():
            self._turns += 1
            if self.action_space.contains(action):
                effect = _returned(self.apply(action), ActionResult, "apply", "an ActionResult")
            else:
                limit = self.action_space.max_bytes
                effect = ActionResult(
                    f"That action is not valid text of at most {limit} bytes; nothing was done."
                )
            self._last = self.observation_space.clip(effect.observation)
            truncated = not effect.done and self._turns >= self.max_turns
            info: dict[str, Any] = {"task": self.task.id, "turn": self._turns}
            reward = 0.0
            if effect.done or truncated:
                score = run_checks(self, self.checks, held_out=self._held_out)
                reward = score.reward
                info |= {
                    "scores": dict(score.scores),
                    "solved": score.solved,
                    "verdict": score.verdict.value,
                    "evidence": dict(score.evidence),
                }
                if score.weaknesses:
                    info["weaknesses"] = dict(score.weaknesses)
                if score.held_out:
                    info["held_out"] = dict(score.held_out)
                self._end()
        return self._last, reward, effect.done, truncated, info

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last observation in mode ``"ansi"``, else ``None``."""
        return self._last if self.render_mode == "ansi" else None

    @final
    def close(self) -> None:
        """End the episode, and what is kept between episodes. Idempotent."""
        try:
            self._end()
        finally:
            self.dispose()

    @contextmanager
    def _ending_on_error(self) -> Generator[None]:
        """An episode that broke is over: nobody may act in what is left of it."""
        try:
            yield
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            try:
                self.teardown()
            finally:
                sandbox.close()


def _returned(found: object, kind: type[Returned], method: str, expected: str) -> Returned:
    """What an author's method returned.

    Raises:
        ContractError: it is something else, such as None for want of a ``return``.
    """
    if not isinstance(found, kind):
        raise ContractError(f"{method} returned {found!r}; expected {expected}")
    return found
