"""Checks that nothing that breaks is rewarded: sandboxes, programs, and checks themselves."""

from __future__ import annotations

import ast
import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, final

from envkit.audit.actions.source_constants import modules_of
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, PlayedEpisode
from envkit.audit.canonical_source import parse
from envkit.audit.instrumented import FaultKind, InstrumentedBackend, SandboxFault
from envkit.env import Env
from envkit.errors import SandboxError
from envkit.types import Task

#: Most calls of an episode at which its sandbox is broken. The last ones, which checks make, come first.
_MAX_POINTS: Final = 16
#: Most lines of checks at which an exception is raised.
_MAX_LINES: Final = 60

#: A file and a line in it.
Line = tuple[str, int]


def broken_sandbox_gives_no_verdict(audited: AuditedEnv) -> str:
    """An episode whose sandbox runs nothing ends in `SandboxError`, so that it is void and not failed."""
    fault = SandboxFault(FaultKind.FAILS, only_programs=True)
    broken = InstrumentedBackend(audited.backend, fault=fault)
    try:
        episode = audited.play_oracle(audited.tasks[0], seed=99, backend=broken)
    except SandboxError:
        return "an episode whose sandbox breaks ends in SandboxError, not in a verdict"
    if broken.broken_calls:
        raise AuditFailure(
            f"a broken sandbox became verdict {episode.info['verdict']}, reward {episode.reward:g}"
        )
    raise NotApplicable("the oracle's episode runs nothing in a sandbox")


def breaking_earns_nothing(audited: AuditedEnv) -> str:
    """Without the work, no episode earns more because sandboxes break, programs die or files are gone."""
    count = 0
    for task in audited.spread(2):
        for actions in _wrong(audited, task):
            counted = InstrumentedBackend(audited.backend)
            audited.kind.clear_caches()
            sound = audited.attempt(task, actions, seed=23, backend=counted)
            for fault in _faults(counted.calls):
                audited.kind.clear_caches()
                backend = InstrumentedBackend(audited.backend, fault=fault)
                broken = audited.attempt(task, actions, seed=23, backend=backend)
                what = f"if {fault.kind} from call {fault.first} on"
                _require_no_gain(audited, task, actions, sound, broken, what)
                count += 1
    emptied = _emptied(audited)
    return f"{count} episodes with broken sandboxes and {emptied} with emptied ones earn nothing by it"


def failing_checks_earn_nothing(audited: AuditedEnv) -> str:
    """Without the work, an exception at any line of a check earns nothing.

    Only lines in a ``try`` or ``with`` block count, because nothing else can catch the exception.
    """
    with warnings.catch_warnings():
        # The exception may keep an environment from closing what it has opened.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return _failing_checks_earn_nothing(audited)
        finally:
            gc.collect()


def _failing_checks_earn_nothing(audited: AuditedEnv) -> str:
    guarded = _guarded_lines(audited.kind)
    tried: set[Line] = set()
    for task in audited.spread(2):
        for actions in _wrong(audited, task):
            watch = _CheckTracer(guarded)
            audited.kind.clear_caches()
            sound = audited.attempt(task, actions, seed=29, before_turn=watch.wrap)
            for line in sorted(watch.reached)[:_MAX_LINES]:
                for error in (SandboxError("broken on purpose"), RuntimeError("broken on purpose")):
                    audited.kind.clear_caches()
                    tracer = _CheckTracer(guarded, line, error)
                    failed = audited.attempt(task, actions, seed=29, before_turn=tracer.wrap)
                    name = f"{Path(line[0]).name}, line {line[1]}"
                    what = f"if a {type(error).__name__} is raised in a check at {name}"
                    _require_no_gain(audited, task, actions, sound, failed, what)
                tried.add(line)
    if not tried:
        raise NotApplicable("no check has a try or with block that a wrong episode reaches")
    return f"an exception at {len(tried)} lines of checks, one at a time, earns nothing"


def _wrong(audited: AuditedEnv, task: Task) -> list[list[str]]:
    """Episodes without the work: nothing is done, or what another task asks for."""
    found = [[audited.kind.noop_action], audited.wrong_actions(task)]
    return [each for index, each in enumerate(found) if each not in found[:index]]


def _faults(calls: int) -> Iterator[SandboxFault]:
    """Faults at the calls of an episode, evenly spaced, the last ones all."""
    last = range(max(0, calls - _MAX_POINTS // 2), calls)
    step = max(1, last.start // (_MAX_POINTS // 2))
    for first in (*last, *range(0, last.start, step)):
        yield SandboxFault(FaultKind.FAILS, first)
        yield SandboxFault(FaultKind.DIES, first)


def _emptied(audited: AuditedEnv) -> int:
    """Empty the sandbox at each point of the oracle's episode, and do nothing more.

    A few tasks may ask for just that, so most must earn nothing by it. Returns the number of episodes.
    """
    won: list[str] = []
    played: dict[str, int] = {}
    for task in audited.tasks:
        actions = audited.oracle_actions(task)
        for done in range(len(actions)):
            rest = [*actions[:done], audited.ending_calls()[0]]
            sound = audited.attempt(task, rest, seed=31)

            def empty(env: Env, turn: int, done: int = done) -> None:
                if turn == done:
                    env.sandbox.reset()

            emptied = audited.attempt(task, rest, seed=31, before_turn=empty)
            played[task.id] = played.get(task.id, 0) + 1
            if audited.gains(task, sound, emptied):
                won.append(task.id)
                break
    if 2 * len(won) > len(played):
        raise AuditFailure(
            f"task {won[0]}, and {len(won) - 1} others of {len(played)}: an agent that empties its workspace "
            "and ends all programs is rewarded; check what the work leaves, not what is gone"
        )
    return sum(played.values())


def _require_no_gain(
    audited: AuditedEnv,
    task: Task,
    actions: Sequence[str],
    sound: PlayedEpisode | None,
    broken: PlayedEpisode | None,
    what: str,
) -> None:
    if broken is not None and audited.gains(task, sound, broken):
        before = 0.0 if sound is None else sound.reward
        raise AuditFailure(
            f"task {task.id}: {list(actions)!r:.100} earns {broken.reward:g} {what}, and {before:g} otherwise"
        )


# Exceptions in checks.


def _guarded_lines(kind: type[Env]) -> frozenset[Line]:
    """The lines of the environment's own package in ``try`` blocks with handlers, and in ``with`` blocks."""
    found: set[Line] = set()
    for path in modules_of(kind):
        tree = parse(path.read_bytes())
        for node in ast.walk(tree) if tree is not None else ():
            if (isinstance(node, ast.Try | ast.TryStar) and node.handlers) or isinstance(node, ast.With):
                inner = (each for part in node.body for each in ast.walk(part))
                found.update(
                    (str(path), each.lineno) for each in inner if isinstance(each, ast.stmt | ast.expr)
                )
    return frozenset(found)


@final
class _CheckTracer:
    """Follows the checks of an instance line by line, and raises an exception at one line.

    Args:
        guarded: the lines to follow.
        target: the line at which to raise; ``None`` for none.
        error: what to raise there.
    """

    def __init__(
        self, guarded: frozenset[Line], target: Line | None = None, error: Exception | None = None
    ) -> None:
        self._guarded, self._target, self._error = guarded, target, error
        self._files = {path for path, _ in guarded}
        #: The guarded lines that ran.
        self.reached: set[Line] = set()

    def wrap(self, env: Env, turn: int) -> None:
        """Before the first turn, put the tracer around each check of an instance."""
        if turn == 0:
            for item in env.checks:
                setattr(env, item.name, functools.partial(self._traced, getattr(env, item.name)))

    def _traced(self, check: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            return check()
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if _resolved(frame.f_code.co_filename) in self._files else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        line = _resolved(frame.f_code.co_filename), frame.f_lineno
        if event == "line" and line in self._guarded:
            self.reached.add(line)
            if line == self._target and self._error is not None:
                raise self._error
        return self._line


@functools.cache
def _resolved(path: str) -> str:
    return str(Path(path).resolve())
