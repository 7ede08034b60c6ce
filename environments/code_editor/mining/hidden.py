"""Typed hidden fields of repair tasks, which only the grader on the host may know.

`envkit.types.Task.hidden` is plain JSON, because each environment has its own fields. A miner builds one of
the classes here and stores `envkit.env.hidden.to_json` of it; a grader gets the class back with
`envkit.env.hidden.read_hidden`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from envkit.env.compare import NumericPolicy
from envkit.environments.code_editor.inputs.call import Call


@final
@dataclass(frozen=True, slots=True)
class Edit:
    """The edit that repairs a task's file.

    Args:
        search: whole lines that occur once in the broken file.
        replace: the lines to put there.
    """

    search: str
    replace: str


@final
@dataclass(frozen=True, slots=True)
class RepairSite:
    """Location of a mined bug.

    Args:
        bytes: start and end of the mutated text in the reference, in UTF-8 bytes; the end is exclusive.
        line: 1-based line of the reference.
        killers: indices of the mining calls that `RepairHidden.killers` were taken from.
        trials: indices of the calls that became the examples of a function without any; see
            `envkit.environments.code_editor.inputs.trial_calls`.
    """

    bytes: tuple[int, ...]
    line: int
    killers: tuple[int, ...]
    trials: tuple[int, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class RepairHidden:
    """Hidden fields of a task whose function is graded by calls; see the miner of packages.

    Args:
        reference: text of the original module.
        function: name of the function that is called.
        modules: standard-library modules that the calls' arguments name.
        examples: all calls known for the function: the public examples, then those of shipped tests.
        killers: calls that the broken function answers differently (they "kill the mutant"); made at each
            visit.
        policy: decides if two numbers are equal.
        edit: the repair.
        site: location of the bug; ``None`` for tasks that were written by hand.
    """

    reference: str
    function: str
    modules: tuple[str, ...]
    examples: tuple[Call, ...]
    killers: tuple[Call, ...]
    policy: NumericPolicy
    edit: Edit
    site: RepairSite | None = None


@final
@dataclass(frozen=True, slots=True)
class Suite:
    """The tests that grade a checkout's task.

    Args:
        files: workspace path -> text of all files that the agent does not see.
        wanted: ids of the tests that must pass.
        killers: ids of the tests that the bug fails.
        packages: distributions that the tests need in addition to pytest.
    """

    files: Mapping[str, str]
    wanted: tuple[str, ...]
    killers: tuple[str, ...]
    packages: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class SuiteSite:
    """Location of a bug in a checkout's file; see `RepairSite` for the fields."""

    bytes: tuple[int, ...]
    line: int


@final
@dataclass(frozen=True, slots=True)
class SuiteHidden:
    """Hidden fields of a task that a pytest suite grades; see `envkit.environments.code_editor.mining.suite`.

    Args:
        function: ``name`` or ``Class.name`` of the broken function.
        edit: the repair.
        suite: the tests.
        site: location of the bug.
    """

    function: str
    edit: Edit
    suite: Suite
    site: SuiteSite
