"""The desk: statements to a database, tables back; and the one whose database is a sandboxed SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Protocol, cast, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, Peer, PeerGone, Sandbox
from envkit.types import JSON

#: Of one desk. CPU time counts all its statements; wall time passes while an agent thinks.
LIMITS: Final = Limits(cpu_s=20.0, wall_s=3600.0, memory_bytes=256 * 2**20, processes=4, output_bytes=2**23)
#: Rows that an agent is shown, and rows that are compared.
SHOWN: Final = 20
COMPARED: Final = 5_000
_PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """What statements gave.

    Args:
        columns, rows: of the last one; values as `envkit.environments.sql_desk.worker` encodes them.
        more: there are further rows.
        changed: rows inserted, updated and deleted by all.
        error: why nothing was done; empty if it was.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[JSON]] = ()
    more: bool = False
    changed: int = 0
    error: str = ""

    def text(self) -> str:
        """As an agent reads it."""
        if self.error:
            return f"Error: {self.error}"
        if not self.columns:
            return f"{self.changed} rows changed."
        lines = [" | ".join(self.columns), *(" | ".join(map(_shown, row)) for row in self.rows)]
        return "\n".join([*lines, "..." if self.more else f"({len(self.rows)} rows)"])


class Desk(Protocol):
    """A database, and somebody who may work on it. Owned by whoever made it."""

    def run(self, sql: str, *, write: bool, rows: int = SHOWN) -> Result:
        """Run statements; all of them hold, or none does. What is wrong with them is in the result.

        Args:
            sql: of a stranger; divided by semicolons.
            write: whether they may change rows.
            rows: most that are given back.

        Raises:
            SandboxError: the machinery broke.
        """
        ...

    def state(self, tables: Mapping[str, Sequence[str]]) -> JSON:
        """The rows of each of these tables, which are given with their columns; or, as text, what is wrong.

        Raises:
            SandboxError: the machinery broke.
        """
        ...

    def load(self, script: str) -> None:
        """Begin anew with another database.

        Raises:
            SandboxError: the script does not run, or the machinery broke.
        """
        ...

    def close(self) -> None:
        """End the database. Idempotent."""
        ...


@final
class SqliteDesk:
    """An SQLite in a sandbox; see `Desk`.

    Args:
        sandbox: stays its owner's.
        script: makes tables and rows.
    """

    def __init__(self, sandbox: Sandbox, script: str) -> None:
        self._sandbox, self._script = sandbox, script
        self._peer: Peer | None = None

    def run(self, sql: str, *, write: bool, rows: int = SHOWN) -> Result:
        try:
            answer = self._ask({"sql": sql, "write": write, "rows": rows})
        except PeerGone as gone:
            self.close()  # the next statement meets a fresh database
            return Result(error=f"the database has ended: {gone.reason}")
        return Result(**answer)

    def state(self, tables: Mapping[str, Sequence[str]]) -> JSON:
        try:
            return cast("JSON", self._ask({"state": tables})["state"])
        except PeerGone as gone:
            self.close()
            return f"the database has ended: {gone.reason}"

    def load(self, script: str) -> None:
        self._script = script
        if self._peer is not None:
            self._load(self._peer)

    def close(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._peer is None:
            source = resources.files("envkit.environments.sql_desk").joinpath("worker.py").read_text()
            argv = [self._sandbox.python, *PYTHON_OPTIONS, "-c", source]
            self._peer = self._sandbox.open(argv, limits=LIMITS)
            self._load(self._peer)
        return json.loads(self._peer.ask(json.dumps(request).encode(), _PATIENCE_S))

    def _load(self, peer: Peer) -> None:
        try:
            peer.ask(json.dumps({"load": self._script}).encode(), _PATIENCE_S)
        except PeerGone as gone:
            raise SandboxError(f"the database could not be loaded: {gone.reason}") from gone


def _shown(value: JSON) -> str:
    if isinstance(value, Mapping):
        return f"{float(str(value['v'])):g}" if value.get("t") == "float" else f"x'{value.get('v')}'"
    return "NULL" if value is None else str(value)
