"""Checks of the interface: what Gymnasium and trainers ask of every environment."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import gymnasium

from envkit.audit.audited_env import AuditedEnv, AuditFailure
from envkit.audit.fuzz import MAX_STEP_CPU_S, fuzz
from envkit.env.tools import Tool, format_call
from envkit.errors import ContractError, UsageError

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


def gymnasium_accepts_it(audited: AuditedEnv) -> str:
    """Gymnasium's own checker passes."""
    from gymnasium.utils.env_checker import check_env

    # Its first step must not be the last one.
    turns = max(audited.max_turns, 2)
    with contextlib.closing(audited.make(audited.tasks, max_turns=turns)) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about spaces that it does not know
        try:
            check_env(env, skip_render_check=True)
        except AssertionError as error:
            raise AuditFailure(f"Gymnasium's check_env says: {error}") from error
    return "Gymnasium's own checks pass"


def poses_the_task_that_is_asked_for(audited: AuditedEnv) -> str:
    """``reset(options={"task": id})`` poses that task; an unknown id raises `UsageError`."""
    with contextlib.closing(audited.make(audited.tasks)) as env:
        for task in audited.tasks:
            _, info = env.reset(options={"task": task.id})
            _require_same(info["task"], task.id, "asked for a task, reset() poses")
            _require_same(env.task, task, f"asked for task {task.id}, the environment has")
        try:
            env.reset(options={"task": "\0 no such task"})
        except UsageError:
            return f"each of {len(audited.tasks)} tasks is posed when it is asked for"
    raise AuditFailure("reset() poses a task for an id that no task has; expected UsageError")


def answers_hostile_actions(audited: AuditedEnv) -> str:
    """`step` answers every action with an observation and never raises."""
    with contextlib.closing(audited.make(audited.tasks)) as env:
        limit = env.action_space.max_bytes
        ended = True
        actions = [*_HOSTILE, "a" * limit, "a" * (limit + 1), *_hostile_calls(env.tools)]
        for action in actions:
            if ended:
                env.reset(seed=1)
            try:
                seen, _, terminated, truncated, _ = env.step(action)
            except Exception as error:
                raise AuditFailure(
                    f"the action {action[:100]!r} raises {type(error).__name__}: {error}"
                ) from error
            if not env.observation_space.contains(seen):
                raise AuditFailure(
                    f"the action {action[:100]!r} is answered with {seen!r}, which is no observation"
                )
            ended = terminated or truncated
    return f"{len(actions)} hostile actions are answered"


def survives_bent_actions(audited: AuditedEnv) -> str:
    """Valid actions that are bent, stuffed or nested neither raise nor take much of the host's time."""
    make = partial(audited.make, audited.tasks, max_turns=_BENT_TURNS)
    found = fuzz(make, audited.tasks, _BENT_ACTIONS)
    if found.faults:
        raise AuditFailure(f"{len(found.faults)} actions raise, the first: {found.faults[0]}")
    if found.slowest_cpu_s > MAX_STEP_CPU_S:
        raise AuditFailure(
            f"the action {found.slowest[:100]!r} takes {found.slowest_cpu_s:.1f} CPU seconds of the host; "
            f"expected at most {MAX_STEP_CPU_S:g}: bound what is parsed by its size"
        )
    return (
        f"{found.actions} bent actions raise nothing; the slowest takes {found.slowest_cpu_s:.1f} CPU seconds"
    )


def closes_for_good(audited: AuditedEnv) -> str:
    """`close` ends the episode. It may be called first or twice, and `reset` works after it."""
    with contextlib.closing(audited.make(audited.tasks)) as env:
        env.close()
        first, _ = env.reset(seed=1)
        env.close()
        env.close()
        try:
            env.step(env.noop_action)
        except ContractError:
            _require_same(
                env.reset(seed=1)[0], first, "after close(), an episode of the same seed begins with"
            )
            return "close() ends an episode, may be called twice, and allows another reset()"
    raise AuditFailure("step() works after close(); expected ContractError")


def plays_in_vectors(audited: AuditedEnv) -> str:
    """Vector environments return each instance's own observations, rewards and end flags, row by row."""
    make = partial(audited.kind, tasks=audited.tasks, sandbox=audited.backend, max_turns=audited.max_turns)
    for in_processes in (False, True):
        singles = [make() for _ in _SEEDS]
        vector: Any = None
        try:
            # Shared memory corrupts text. Spawn, because a fork of a process with threads may hang.
            vector = (
                gymnasium.vector.AsyncVectorEnv([make] * len(_SEEDS), shared_memory=False, context="spawn")
                if in_processes
                else gymnasium.vector.SyncVectorEnv([make] * len(_SEEDS))
            )
            alone = [env.reset(seed=seed) for env, seed in zip(singles, _SEEDS, strict=True)]
            seen, infos = vector.reset(seed=[*_SEEDS])
            _require_same([*seen], [text for text, _ in alone], "observations of a vector's reset")
            _require_same([*infos["task"]], [info["task"] for _, info in alone], "tasks of a vector's reset")
            # The first environment solves its task and the second idles, so mixed-up rows show.
            for right in audited.kind.oracle(singles[0].task):
                actions = (right, audited.kind.noop_action)
                steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
                together: Any = vector.step(actions)
                for column, name in enumerate(("observations", "rewards", "terminated", "truncated")):
                    of_steps = [step[column] for step in steps]
                    _require_same([*together[column]], of_steps, f"{name} of a vector's step")
                if any(terminated or truncated for _, _, terminated, truncated, _ in steps):
                    break
        finally:
            if vector is not None:
                vector.close()
            for env in singles:
                env.close()
    return "Gymnasium's vectors, in one process and in several, play as single instances do"


def _require_same(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise AuditFailure(f"{what}: found {found!r:.300}, expected {expected!r:.300}")


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
