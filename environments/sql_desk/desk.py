"""The desk: statements to a database, tables back; and the one whose database is a sandboxed SQLite."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Protocol, final

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
        tables: where they were asked for, the rows of each afterwards.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[JSON]] = ()
    more: bool = False
    changed: int = 0
    error: str = ""
    tables: JSON = None

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

    def load(self, script: str) -> None:
        """Begin anew with another database.

        Raises:
            SandboxError: the script does not run, or the machinery broke.
        """
        ...

    def attempt(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        """Begin anew with one database after the other, and run the same statements on each.

        Args:
            scripts: each makes tables and rows.
            sql: of a stranger; divided by semicolons.
            tables: with their columns; their rows are in the result. Without, statements may not change any.

        Returns:
            Results for the databases, up to one that is an error. If the process ends, nobody knows on which;
            there is only that error then.

        Raises:
            SandboxError: a script does not run, or the machinery broke.
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
        limits: of all statements together.
    """

    def __init__(self, sandbox: Sandbox, script: str, *, limits: Limits = LIMITS) -> None:
        self._sandbox, self._script, self._limits = sandbox, script, limits
        self._peer: Peer | None = None
        #: Nothing was run since the script.
        self._untouched = False

    def run(self, sql: str, *, write: bool, rows: int = SHOWN) -> Result:
        return self._results({"sql": sql, "write": write, "rows": rows})[0]

    def attempt(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        tried: dict[str, Any] = {"sql": sql, "write": tables is not None, "rows": COMPARED}
        if tables is not None:
            tried["state"] = tables
        first, *others = scripts
        is_there = self._peer is None or (self._untouched and first == self._script)
        self._script = first  # which a new process begins with
        requests = [tried if is_there else {"load": first, **tried}]
        requests += [{"load": script, **tried} for script in others]
        return self._results(*requests)

    def load(self, script: str) -> None:
        self._script = script
        if self._peer is not None:  # else it comes with the process
            try:
                self._ask({"load": script})
            except PeerGone as gone:
                raise SandboxError(f"the database could not be loaded: {gone.reason}") from gone

    def close(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    def _results(self, *requests: Mapping[str, Any]) -> list[Result]:
        try:
            return [Result(**answer) for answer in self._ask(*requests)]
        except PeerGone as gone:
            self.close()  # the next statement meets a fresh database
            return [Result(error=f"the database has ended: {gone.reason}")]

    def _ask(self, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answers, one each, up to one that is an error.

        Raises:
            PeerGone: the process has ended.
            SandboxError: there is none, or the script does not run.
        """
        if self._peer is None:
            argv = [self._sandbox.python, *PYTHON_OPTIONS, "-c", _worker()]
            self._peer = self._sandbox.open(argv, limits=self._limits)
            self.load(self._script)
        answers = json.loads(self._peer.ask(json.dumps(requests).encode(), _PATIENCE_S * len(requests)))
        self._untouched = requests == ({"load": self._script},)
        if fault := answers[-1].get("fault"):
            self.close()
            raise SandboxError(f"the database could not be loaded: {fault}")
        return answers


@functools.cache
def _worker() -> str:
    return resources.files("envkit.environments.sql_desk").joinpath("worker.py").read_text()


def _shown(value: JSON) -> str:
    if isinstance(value, Mapping):
        return f"{float(str(value['v'])):g}" if value.get("t") == "float" else f"x'{value.get('v')}'"
    return "NULL" if value is None else str(value)
