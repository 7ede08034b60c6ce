"""Desks for references: SQLite in sandboxes of their own, kept from one answer to the next."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Final, final

from envkit.environments.sql_desk.desk import LIMITS, Desk, SqliteDesk
from envkit.errors import SandboxError
from envkit.sandbox import Sandbox, SandboxBackend

#: Idle ones that are kept at most, in a process: as many as rollouts have threads.
MOST: Final = 2
#: The CPU time of one serves many references; one that hangs is noticed by its silence.
_LIMITS: Final = replace(LIMITS, cpu_s=LIMITS.wall_s)


@final
class References:
    """Makes desks that no agent ever works on, and keeps a few. Thread-safe.

    To make one takes many times as long as all that a reference asks of it. None is kept after anything went
    wrong on it. Those that are kept end with `close`, or at exit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Kept] = []
        self._registered = False

    @contextlib.contextmanager
    def desk(self, backend: SandboxBackend, script: str) -> Generator[Desk]:
        """One in a sandbox of a backend, begun anew with a database, for the length of the block.

        Raises:
            SandboxError: none can be made; or the script does not run, which the desk's first use may find.
        """
        kept = self._again(backend, script) or _Kept.make(backend, script)
        try:
            yield kept.desk
        except BaseException:
            kept.close()
            raise
        self._keep(kept)

    def close(self) -> None:
        """End those that are idle. Idempotent; more may be made afterwards."""
        with self._lock:
            idle, self._idle = self._ours(), []
        for kept in idle:
            kept.close()

    def _again(self, backend: SandboxBackend, script: str) -> _Kept | None:
        """One that was kept, if it still lives: time limits, among others, may have ended it since."""
        while True:
            with self._lock:
                self._idle = self._ours()
                found = next((kept for kept in self._idle if kept.backend is backend), None)
                if found is None:
                    return None
                self._idle.remove(found)
            try:
                found.desk.load(script)
            except SandboxError:
                found.close()
            except BaseException:
                found.close()
                raise
            else:
                return found

    def _keep(self, kept: _Kept) -> None:
        with self._lock:
            if not self._registered:  # after the backend's own, so before it at exit
                self._registered = True
                atexit.register(self.close)
            self._idle = [*self._ours(), kept]
            surplus, self._idle = self._idle[:-MOST], self._idle[-MOST:]
        for each in surplus:
            each.close()

    def _ours(self) -> list[_Kept]:
        """A fork of this process knows its parent's, and owns none of them."""
        return [kept for kept in self._idle if kept.pid == os.getpid()]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A desk, the sandbox that it alone is in, and whose they are."""

    backend: SandboxBackend
    sandbox: Sandbox
    desk: SqliteDesk
    pid: int

    @classmethod
    def make(cls, backend: SandboxBackend, script: str) -> _Kept:
        sandbox = backend.create()
        return cls(backend, sandbox, SqliteDesk(sandbox, script, limits=_LIMITS), os.getpid())

    def close(self) -> None:
        self.sandbox.close()  # and with it whatever runs there
