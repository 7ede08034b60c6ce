"""The parts an attack is made of: what it aims at, what it leaves behind, what must become of it."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from envkit.grading import STRICT, NumericPolicy
from envkit.types import Verdict


class AttackKind(enum.StrEnum):
    """Where an attack takes hold."""

    #: Inside the interpreter that runs the candidate.
    PYTHON = "python"
    #: In the files that it leaves.
    WORKSPACE = "workspace"
    #: On other processes and the kernel.
    SYSTEM = "system"
    #: On memory, processes, disk and output.
    RESOURCE = "resource"
    #: On how the task was made.
    DESIGN = "design"


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call that the candidate was shown, and its answer, as Python source.

    Args:
        args: positional arguments; a tuple, as source.
        value: what the call gives.
    """

    args: str
    value: str


@dataclass(frozen=True, slots=True)
class AttackTarget:
    """A task to attack: make ``function`` in ``module`` answer as the reference does.

    Args:
        source: the module's text as the candidate gets it, wrong.
        reference: a right one.
        function: name of the function that is called.
        module: workspace path of the module, the one file that may be changed.
        examples: calls that the candidate was shown.
        protected: workspace path of a file that must stay as it is, such as the shown tests.
        origin: import path of the module that the task was made from, ``more_itertools.recipes``; ``None``
            where it was made from none.
        integers: whether right answers hold integers.
    """

    source: str
    reference: str
    function: str
    module: str = "solution.py"
    examples: Sequence[ShownCall] = ()
    protected: str | None = None
    origin: str | None = None
    integers: bool = True


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a candidate leaves in its workspace.

    Args:
        files: workspace path -> text to write there; a path may lead out of the workspace.
        run: a Python program that it runs in its own sandbox afterwards, before it submits.
    """

    files: Mapping[str, str]
    run: str | None = None


Build: TypeAlias = Callable[[AttackTarget], Attempt]


def _always(target: AttackTarget) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Attack:
    """A program that wins only where something is broken.

    Args:
        number: its row in the catalogue; a number may have several variants.
        name: what it does, unique.
        kind: where it takes hold.
        build: makes it for a target.
        expected: FAIL, or TAMPERED where it reaches for what only the grader may write.
        fools: graders that it has won against: ``A`` believes pytest's exit code, ``B`` restores the tests
            and reads the report, ``C`` admits only the solution and demands a nonce. The split oracle is
            fooled by none, unless all its inputs have been seen (``D``).
        inapplicable: why a target cannot be attacked so; ``None`` where it can.
    """

    number: int
    name: str
    kind: AttackKind
    build: Build
    expected: Verdict = Verdict.FAIL
    fools: str = ""
    inapplicable: Callable[[AttackTarget], str | None] = _always


@dataclass(frozen=True, slots=True)
class CorrectVariant:
    """A right solution in an unusual shape, which must pass.

    Args:
        name: what is unusual about it, unique.
        build: makes it for a target.
        policy: what the task would have to allow.
    """

    name: str
    build: Build
    policy: NumericPolicy = STRICT


# Builders. In their code, FUNCTION stands for the function's name.


def instead(code: str) -> Build:
    """The whole module."""
    return lambda target: Attempt({target.module: _named(code, target)})


def at_import(code: str) -> Build:
    """Code that runs when the module is loaded, before the wrong function is defined."""
    return lambda target: Attempt({target.module: _named(code, target) + target.source})


def in_call(code: str, *, right: bool = False) -> Build:
    """The body of a function in the place of the candidate's, which it may call as ``_was``.

    Args:
        code: statements that see ``args`` and ``kwargs``.
        right: whether ``_was`` is right.
    """

    def build(target: AttackTarget) -> Attempt:
        before = target.reference if right else target.source
        wrapper = "\n_was = FUNCTION\n\n\ndef FUNCTION(*args, **kwargs):\n" + _indented(code)
        return Attempt({target.module: before + _named(wrapper, target)})

    return build


def escaping(code: str, *, run: str | None = None) -> Build:
    """A wrong module that turns right only if ``code`` gets hold of what must be out of reach.

    So a PASS says that it did. In the code, REFERENCE stands for the text of a right answer.

    Args:
        code: the body of a function that returns something true if it did; what it raises is a no.
        run: see `Attempt`.
    """

    def build(target: AttackTarget) -> Attempt:
        program = (
            f"\n\ndef _out():\n{_indented(code).replace('REFERENCE', repr(target.reference.strip()))}\n\n"
            f"try:\n    _out = _out()\nexcept BaseException:\n    _out = False\n"
            f"if _out:\n    exec({target.reference!r})\n"
        )
        return Attempt({target.module: target.source + _named(program, target)}, run)

    return build


def beside(files: Mapping[str, str]) -> Build:
    """The wrong module as it was, and other files beside it."""
    return lambda target: Attempt(
        {target.module: target.source, **{path: _named(text, target) for path, text in files.items()}}
    )


def ran(program: str) -> Build:
    """The wrong module as it was, and a program run in its sandbox. MODULE stands for the module's path."""
    return lambda target: Attempt(
        {target.module: target.source}, _named(program, target).replace("MODULE", target.module)
    )


def overwriting(path: Callable[[AttackTarget], str | None]) -> Build:
    """The wrong module, and a file that is not the candidate's to write."""
    return lambda target: Attempt(
        {target.module: target.source, path(target) or "": "def test_nothing():\n    pass\n"}
    )


def needs_protected(target: AttackTarget) -> str | None:
    """Of attacks on files that must stay as they are."""
    return None if target.protected else "the workspace holds no file that must stay as it is"


def _named(code: str, target: AttackTarget) -> str:
    return textwrap.dedent(code).replace("FUNCTION", target.function)


def _indented(code: str) -> str:
    return textwrap.indent(textwrap.dedent(code).strip("\n"), "    ") + "\n"
