"""Grading by a test program, which runs without what it should see; `formats.asserts` reads such programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, cast

from envkit.environments.code_editor import look
from envkit.grading import Answer, NumericPolicy, Subject
from envkit.types import JSON, Task

_LOOK = "look.py"


def is_tested(task: Task) -> bool:
    """Whether a test program says what is right, and not what the original answers to drawn calls."""
    return "looks" in task.hidden


def subject(task: Task, source: bytes) -> Subject:
    """A form of the program, and the test program without what it should see."""
    worker = resources.files("envkit.environments.code_editor").joinpath(_LOOK).read_bytes()
    tests = str(task.hidden["tests"]).encode()
    return Subject({look.PROGRAM: source, look.TESTS: tests, _LOOK: worker}, _LOOK, look.look.__name__)


def expected(task: Task, seen: Sequence[Answer]) -> list[Answer]:
    """What each place should see: its value, as often as the original came by.

    Args:
        task: the task.
        seen: what the original saw, place by place. Where it raised, or died, nothing gives what is expected,
            the original included; so it fails as it should.
    """
    found: list[Answer] = []
    for place, one in enumerate(_looks(task)):
        values = seen[place].value if place < len(seen) else None
        times = len(values) if isinstance(values, list) else 1
        found.append(Answer(value=[one["value"]] * times))
    return found


def places_by_policy(task: Task) -> Mapping[NumericPolicy, Sequence[int]]:
    """When two numbers are equal -> the places where it holds."""
    found: dict[NumericPolicy, list[int]] = {}
    for place, one in enumerate(_looks(task)):
        policy = NumericPolicy(**cast("dict[str, Any]", one["numbers"]))
        found.setdefault(policy, []).append(place)
    return found


def _looks(task: Task) -> Sequence[Mapping[str, JSON]]:
    return cast("Sequence[Mapping[str, JSON]]", task.hidden["looks"])
