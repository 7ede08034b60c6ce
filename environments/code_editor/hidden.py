"""Typed hidden fields of the code editor's tasks: one dataclass per way of grading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from envkit.env.compare import Leniency, NumericPolicy
from envkit.env.hidden import read_hidden, text_file
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.environments.code_editor.mining.hidden import RepairHidden, SuiteHidden
from envkit.types import Task


@final
@dataclass(frozen=True, slots=True)
class ProblemHidden:
    """Hidden fields of a benchmark problem that is graded by calls; see `formats.problems`.

    Args:
        reference: a correct version of the file.
        function: the called function; ``Class.method`` for a method.
        parameters: names of its positional parameters.
        modules: standard-library modules that the calls' arguments name.
        examples: the known calls.
        killers: calls that are always made.
        fresh: number of calls to draw.
        policy: decides if two numbers are equal.
        leniency: differences that are accepted, apart from numbers.
    """

    reference: str
    function: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    examples: tuple[Call, ...]
    killers: tuple[Call, ...]
    fresh: int
    policy: NumericPolicy
    leniency: Leniency


@final
@dataclass(frozen=True, slots=True)
class ExpectedValue:
    """The expected value of one probe of a test program.

    Args:
        value: encoded as by `envkit.sandbox.programs.worker.encode`.
        numbers: decides if two numbers are equal.
    """

    value: object
    numbers: NumericPolicy


@final
@dataclass(frozen=True, slots=True)
class ProgramHidden:
    """Hidden fields of a program that is graded by a test program; see `formats.asserts`.

    Args:
        reference: a correct version of the program.
        killers: one call per probe, with its number and its expression.
        leniency: differences that are accepted, apart from numbers.
        tests: the test program, with probes in place of its asserts.
        looks: the expected values, by probe.
        weakness: reason why the grade proves less than hidden calls; may be empty.
        function, parameters, modules, examples, fresh, policy: constant; part of the stored form only.
    """

    reference: str
    killers: tuple[Call, ...]
    leniency: Leniency
    tests: str
    looks: tuple[ExpectedValue, ...]
    weakness: str
    function: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    examples: tuple[Call, ...]
    fresh: int
    policy: NumericPolicy


CodeHidden: TypeAlias = RepairHidden | ProblemHidden | ProgramHidden | SuiteHidden

#: A field that only one kind of task has -> the kind. Mined tasks of packages have none of these.
_KIND_OF: Mapping[str, type[Any]] = {
    "suite": SuiteHidden,
    "looks": ProgramHidden,
    "parameters": ProblemHidden,
}


def hidden_of(task: Task) -> CodeHidden:
    """Read a task's hidden fields.

    Raises:
        TaskFileError: the task is not one of the code editor.
    """
    kind = next((kind for field, kind in _KIND_OF.items() if field in task.hidden), RepairHidden)
    found: CodeHidden = read_hidden(kind, task)
    edited = str(task.metadata.get("path")) if isinstance(found, SuiteHidden) else SOLUTION
    for path in (edited, *task.files):
        text_file(task, path, "the file to edit" if path == edited else "a file to read")
    return found


def solution_of(task: Task) -> str:
    """The text of the file to edit, of a task that is graded by calls."""
    return text_file(task, SOLUTION, "the file to edit")


def as_run(task: Task, source: bytes) -> bytes:
    """Return the file to edit as it is run: behind ``metadata["prelude"]``, code that agents do not see."""
    return str(task.metadata.get("prelude", "")).encode() + source
