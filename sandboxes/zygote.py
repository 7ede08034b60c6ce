"""Isolation by bubblewrap, with commands forked from a warm interpreter, which is several times faster.

Each process of envkit has one zygote, which lives in bubblewrap's namespaces. The zygote gives each command
namespaces of its own, as bubblewrap would, without starting bubblewrap, a shell and an interpreter each time.
The machine must allow nested user namespaces.

All commands run as one user, so one command can use up a resource that the kernel limits per user. An episode
that this breaks is repeated once; see `envkit.rollout.Rollouts.play`.

If the workspace's top folder holds a file named like a module that the zygote has imported, the program gets
a new interpreter, because it must import that file instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import final

from envkit.errors import SandboxError
from envkit.sandbox import Contents, Limits, Lock, Quota, Sandbox, SandboxBackend
from envkit.sandboxes._linux import procfs
from envkit.sandboxes._linux.child import pipes
from envkit.sandboxes._rootfs import layers
from envkit.sandboxes._rootfs.rootfs import NOBODY, PYTHON
from envkit.sandboxes._sandbox import FolderSandbox, require_system_calls, system_errors
from envkit.sandboxes._supervisor import Ending, Tree, Usage
from envkit.sandboxes._workspace.mounted_sandbox import MountedSandbox
from envkit.sandboxes._zygote.host import PROGRAM, InitProcess, Zygote, shared_zygote


@final
class ZygoteBackend(SandboxBackend):
    """Runs code in Linux namespaces that are forked from a warm interpreter in ``bwrap``.

    Args:
        contents: what its sandboxes hold beside Python.
        warm: modules of trusted packages among these, or of the standard library, that the zygote imports
            ahead.
        quota: limit of each workspace.
    """

    name = "zygote"
    isolated = True

    def __init__(
        self, contents: Contents = Contents(), warm: Sequence[str] = (), quota: Quota = Quota()
    ) -> None:
        layers.require_no_image(self.name, contents)
        self.contents, self.warm = contents, tuple(warm)
        self.quota: Quota = quota  # pyright: ignore[reportIncompatibleVariableOverride]

    def available(self) -> str | None:
        """See `envkit.sandbox.SandboxBackend.available`; runs Python in a sandbox to find out."""
        try:
            with self.create() as sandbox:
                result = sandbox.run([sandbox.python, *PROGRAM, "pass"])
        except SandboxError as error:
            return " ".join(str(error).split())
        return None if result.ok else f"a trivial program ended: {result.stop} {result.stderr[-300:]!r}"

    @property
    def lock(self) -> Lock:
        """See `envkit.sandbox.SandboxBackend.lock`."""
        return layers.lock(os.geteuid() or NOBODY, self.contents)

    def with_contents(self, contents: Contents, warm: Sequence[str] = ()) -> ZygoteBackend:
        """See `envkit.sandbox.SandboxBackend.with_contents`."""
        made = ZygoteBackend(contents, warm, self.quota)
        layers.folders(os.geteuid() or NOBODY, contents)
        return made

    def create(self) -> Sandbox:
        """See `envkit.sandbox.SandboxBackend.create`."""
        require_system_calls()
        with system_errors("make a sandbox"):
            return _ZygoteSandbox(shared_zygote(os.getpid(), self.contents, self.warm), self.quota)


@final
class _ZygoteSandbox(MountedSandbox):
    def __init__(self, zygote: Zygote, quota: Quota) -> None:
        super().__init__(zygote.user, quota)
        self._zygote = zygote

    @property
    def python(self) -> str:
        """See `envkit.sandbox.Sandbox.python`; the same version as the host's."""
        return PYTHON

    def _start(self, argv: Sequence[str], limits: Limits) -> Tree:
        workspace = self._mount.clone()
        try:
            return _ZygoteTree(self._zygote.init_process(), workspace, argv, limits)
        finally:
            os.close(workspace)

    def _new(self) -> FolderSandbox:
        return _ZygoteSandbox(self._zygote, self._quota)


@final
class _ZygoteTree(Tree):
    """A command and its descendants, below their init process.

    Args:
        init: a waiting init process; the tree ends it.
        workspace: descriptor of a detached mount; the caller closes it.
        argv: the command.
        limits: of the command.
    """

    def __init__(self, init: InitProcess, workspace: int, argv: Sequence[str], limits: Limits) -> None:
        self._init = init
        is_counted = init.group is not None
        bounds = procfs.rlimits(
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
            ours.callback(init.end)
            kept, given = pipes(ours, theirs)
            init.start(job, limits, [*given, workspace])
            super().__init__(kept, init.ending())
            ours.pop_all()

    def usage(self) -> Usage:
        return self._init.usage()

    def end(self) -> Ending:
        return self._init.end()
