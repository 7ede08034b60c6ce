"""The parts of an attack: its target, the files that it leaves, and the verdict that it must get."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from envkit.env.compare import STRICT, NumericPolicy
from envkit.types import Verdict


class AttackKind(enum.StrEnum):
    """The layer that an attack targets."""

    #: The interpreter that runs the candidate.
    PYTHON = "python"
    #: The files that the candidate leaves in its workspace.
    WORKSPACE = "workspace"
    #: Other processes and the kernel.
    SYSTEM = "system"
    #: Memory, processes, disk and output.
    RESOURCE = "resource"
    #: The way that the task was made.
    DESIGN = "design"


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call that the candidate was shown, and its answer, as Python source.

    Args:
        args: positional arguments; a tuple, as source.
        value: the value that the call returns.
    """

    args: str
    value: str


@dataclass(frozen=True, slots=True)
class AttackTarget:
    """A task to attack: make ``function`` in ``module`` answer as the reference does.

    Args:
        source: the module's text as the candidate gets it, with a wrong function.
        reference: text of a correct module.
        function: name of the function that is called.
        module: workspace path of the module, the one file that may be changed.
        examples: calls that the candidate was shown.
        protected: workspace path of a file that must stay as it is, such as the shown tests.
        origin: import path of the module that the task was made from, ``more_itertools.recipes``; ``None``
            if it was made from none.
        integers: True if correct answers hold integers.
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
    """The actions of an attack: files that the candidate writes, and a program that it runs.

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
    """A program that earns a reward only if something is broken.

    Args:
        number: its row in the catalogue; several variants may share a number.
        name: short description, unique.
        kind: the layer that it targets.
        build: makes its `Attempt` for a target.
        expected: the correct verdict: FAIL, or TAMPERED if it writes what only the grader may write.
        fools: graders that it has defeated: ``A`` believes pytest's exit code, ``B`` restores the tests and
            reads the report, ``C`` admits only the solution and demands a nonce. No attack defeats the split
            oracle unless the candidate has seen all its inputs (``D``).
        inapplicable: returns the reason why a target cannot be attacked this way; ``None`` if it can.
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
    """A correct solution of unusual form, which must pass.

    Args:
        name: short description of the unusual part, unique.
        build: makes it for a target.
        policy: the numeric policy under which it must pass.
    """

    name: str
    build: Build
    policy: NumericPolicy = STRICT


# Builders. In their code, FUNCTION stands for the function's name.


def instead(code: str) -> Build:
    """Replace the whole module by ``code``."""
    return lambda target: Attempt({target.module: named(code, target)})


def at_import(code: str) -> Build:
    """Run ``code`` when the module is loaded, before the wrong function is defined."""
    return lambda target: Attempt({target.module: named(code, target) + target.source})


def in_call(code: str, *, right: bool = False) -> Build:
    """Replace the function by one with the body ``code``, which may call the replaced one as ``_was``.

    Args:
        code: statements that may use ``args`` and ``kwargs``.
        right: True if ``_was`` is the reference's function, False if it is the wrong one.
    """

    def build(target: AttackTarget) -> Attempt:
        before = target.reference if right else target.source
        wrapper = "\n_was = FUNCTION\n\n\ndef FUNCTION(*args, **kwargs):\n" + _indented(code)
        return Attempt({target.module: before + named(wrapper, target)})

    return build


def escaping(code: str, *, run: str | None = None) -> Build:
    """A wrong module that becomes correct only if ``code`` reaches something that must be out of reach.

    A PASS therefore means that the attack succeeded. In the code, REFERENCE stands for the text of the
    correct module, as a string literal.

    Args:
        code: body of a function that returns a true value on success; an exception means failure.
        run: see `Attempt`.
    """

    def build(target: AttackTarget) -> Attempt:
        program = (
            f"\n\ndef _out():\n{_indented(code).replace('REFERENCE', repr(target.reference.strip()))}\n\n"
            f"try:\n    _out = _out()\nexcept BaseException:\n    _out = False\n"
            f"if _out:\n    exec({target.reference!r})\n"
        )
        return Attempt({target.module: target.source + named(program, target)}, run)

    return build


def beside(files: Mapping[str, str]) -> Build:
    """Keep the wrong module unchanged and write other files."""
    return lambda target: Attempt(
        {target.module: target.source, **{path: named(text, target) for path, text in files.items()}}
    )


def ran(program: str) -> Build:
    """Keep the wrong module unchanged and run a program in its sandbox; MODULE is the module's path."""
    return lambda target: Attempt(
        {target.module: target.source}, named(program, target).replace("MODULE", target.module)
    )


def overwriting(path: Callable[[AttackTarget], str | None]) -> Build:
    """Keep the wrong module unchanged and overwrite a file that the candidate must not write."""
    return lambda target: Attempt(
        {target.module: target.source, path(target) or "": "def test_nothing():\n    pass\n"}
    )


def needs_protected(target: AttackTarget) -> str | None:
    """Return why a target has no protected file to attack; ``None`` if it has one."""
    return None if target.protected else "the workspace holds no file that must stay as it is"


def named(code: str, target: AttackTarget) -> str:
    """Return ``code`` with the function's name for FUNCTION."""
    return textwrap.dedent(code).replace("FUNCTION", target.function)


def _indented(code: str) -> str:
    return textwrap.indent(textwrap.dedent(code).strip("\n"), "    ") + "\n"
