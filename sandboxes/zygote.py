"""Isolation by bubblewrap, commands forked from a warm interpreter, in a fraction of the time.

One zygote per process of ours lives in bubblewrap's namespaces. To each command it gives namespaces of its
own, as bubblewrap would, without starting bubblewrap, a shell and an interpreter for each. Needs a machine
that lets user namespaces nest.

Its commands are of one user, so that what the kernel counts for a user they can use up for one another; an
episode that meets this breaks, and is played again. A program whose workspace has, at its top, a name of a
module that was imported beforehand gets an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import final

from envkit.errors import SandboxError, SandboxUnavailable
from envkit.sandbox import Limits, Sandbox, SandboxBackend, Space
from envkit.sandboxes import _bwrap, _proc
from envkit.sandboxes._child import pipes
from envkit.sandboxes._image import PYTHON
from envkit.sandboxes._nursery import PROGRAM, Keeper, Nursery, nursery
from envkit.sandboxes._placed import PlaceSandbox
from envkit.sandboxes._sandbox import FolderSandbox, machinery
from envkit.sandboxes._supervise import Ending, Tree, Usage


@final
class ZygoteBackend(SandboxBackend):
    """Runs code in Linux namespaces that are forked from a warm interpreter in ``bwrap``.

    Args:
        packages: see `envkit.sandbox.SandboxBackend.packages`; pure Python ones that are installed here.
            Of those, the zygote imports beforehand what ``warm`` names.
        warm: modules.
        space: what each workspace may hold.
    """

    name = "zygote"
    isolated = True

    def __init__(
        self, packages: Sequence[str] = (), warm: Sequence[str] = (), space: Space = Space()
    ) -> None:
        self.packages, self._warm, self.space = tuple(packages), tuple(warm), space
        self._space = space

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; really runs Python in a sandbox."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *PROGRAM, "pass"])
        except SandboxUnavailable as error:
            return str(error)
        except SandboxError as error:
            return " ".join(f"{error}; {_bwrap.remedy()}".split())
        return None if result.ok else f"a trivial program ended by {result.stop}; {_bwrap.remedy()}"

    def with_packages(self, packages: Sequence[str], warm: Sequence[str] = ()) -> ZygoteBackend:
        """See `envkit.sandbox.SandboxBackend.with_packages`."""
        held, imported = dict.fromkeys((*self.packages, *packages)), dict.fromkeys((*self._warm, *warm))
        return ZygoteBackend([*held], [*imported], self._space)

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        with machinery("make a sandbox"):
            return _ZygoteSandbox(nursery(os.getpid(), self.packages, self._warm), self._space)


@final
class _ZygoteSandbox(PlaceSandbox):
    def __init__(self, nursery: Nursery, space: Space) -> None:
        super().__init__(nursery.user, space)
        self._nursery = nursery

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the host's own version."""
        return PYTHON

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        workspace = self._place.tree()
        try:
            return _ZygoteTree(self._nursery.keeper(), workspace, argv, limits)
        finally:
            os.close(workspace)

    def _another(self) -> FolderSandbox:
        return _ZygoteSandbox(self._nursery, self._space)


@final
class _ZygoteTree(Tree):
    """A command and all that it starts, below their keeper.

    Args:
        keeper: one that waits; this ends it.
        workspace: descriptor of a mount that is attached nowhere yet; stays the caller's.
        argv: the command.
        limits: of the command.
    """

    def __init__(self, keeper: Keeper, workspace: int, argv: Sequence[str], limits: Limits) -> None:
        self._keeper = keeper
        is_counted = keeper.group is not None
        bounds = _proc.rlimits(
            limits, memory=not is_counted, processes=None if is_counted else limits.processes
        )
        start = [PYTHON, *PROGRAM]
        is_program = [*argv[: len(start)]] == start and len(argv) > len(start)
        job = {
            "argv": [*argv],
            "rlimits": [*bounds.values()],
            "program": argv[len(start)] if is_program else None,
        }
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            ours.callback(keeper.end)
            kept, given = pipes(ours, theirs)
            keeper.start(job, limits, [*given, workspace])
            super().__init__(kept, keeper.ending())
            ours.pop_all()

    def usage(self) -> Usage:
        return self._keeper.usage()

    def end(self) -> Ending:
        return self._keeper.end()
