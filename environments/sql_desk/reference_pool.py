"""A pool of SQLite databases for reference statements, each in its own sandbox."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Final, final

from envkit.environments.sql_desk.database import Database
from envkit.environments.sql_desk.sqlite import LIMITS, SqliteDatabase
from envkit.errors import SandboxError
from envkit.sandbox import Sandbox, SandboxBackend

#: Most idle databases per process: as many as rollouts have threads.
MAX_IDLE: Final = 2
#: One process serves many references, so its CPU time is not limited. A timeout ends a process that hangs.
_LIMITS: Final = replace(LIMITS, cpu_s=LIMITS.wall_s)


@final
class ReferencePool:
    """Makes databases that no agent ever works on, and reuses a few. Thread-safe.

    Starting a sandbox takes many times as long as running a reference. A database is not reused after an
    error. Idle databases end with `close` or with the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Pooled] = []
        self._registered = False

    @contextlib.contextmanager
    def open(self, backend: SandboxBackend, script: str) -> Generator[Database]:
        """Yield a database that holds what ``script`` creates, in a sandbox of ``backend``.

        Raises:
            SandboxError: no sandbox could be made, or the script fails (raised by the first statement at the
                latest).
        """
        pooled = self._reuse(backend, script) or _Pooled.make(backend, script)
        try:
            yield pooled.database
        except BaseException:
            pooled.close()
            raise
        self._put_back(pooled)

    def close(self) -> None:
        """End the idle databases. Idempotent; the pool can be used again."""
        with self._lock:
            idle, self._idle = self._own_idle(), []
        for pooled in idle:
            pooled.close()

    def _reuse(self, backend: SandboxBackend, script: str) -> _Pooled | None:
        """Load ``script`` into an idle database, skipping those that have ended in the meantime."""
        while True:
            with self._lock:
                self._idle = self._own_idle()
                found = next((pooled for pooled in self._idle if pooled.backend is backend), None)
                if found is None:
                    return None
                self._idle.remove(found)
            try:
                found.database.load(script)
            except SandboxError:
                found.close()
            except BaseException:
                found.close()
                raise
            else:
                return found

    def _put_back(self, pooled: _Pooled) -> None:
        with self._lock:
            if not self._registered:
                # Registered after the backend's own exit handler, so run before it.
                self._registered = True
                atexit.register(self.close)
            self._idle = [*self._own_idle(), pooled]
            surplus, self._idle = self._idle[:-MAX_IDLE], self._idle[-MAX_IDLE:]
        for old in surplus:
            old.close()

    def _own_idle(self) -> list[_Pooled]:
        """The idle databases that this process made; a fork inherits the list but owns none of them."""
        return [pooled for pooled in self._idle if pooled.pid == os.getpid()]


@dataclass(frozen=True, slots=True, eq=False)
class _Pooled:
    """A database, the sandbox that only it uses, and the process that made it."""

    backend: SandboxBackend
    sandbox: Sandbox
    database: SqliteDatabase
    pid: int

    @classmethod
    def make(cls, backend: SandboxBackend, script: str) -> _Pooled:
        sandbox = backend.create()
        return cls(backend, sandbox, SqliteDatabase(sandbox, script, limits=_LIMITS), os.getpid())

    def close(self) -> None:
        self.sandbox.close()  # ends the database's process too
