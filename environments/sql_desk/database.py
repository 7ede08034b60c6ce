"""The database protocol of the SQL desk, and the result of running statements on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from envkit.types import JSON

#: Most rows that an agent is shown.
SHOWN_ROWS: Final = 20
#: Most rows that are compared with the reference's rows.
COMPARED_ROWS: Final = 5_000
#: Begins the error of statements whose database has ended while they ran.
ENDED: Final = "the database has ended"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one request.

    Args:
        columns, rows: of the last statement; values are encoded as in `sqlite_worker`.
        more: there are further rows.
        changed: rows inserted, updated and deleted by all statements together.
        error: reason why nothing was done; empty on success.
        transient: the error may not happen again, because the database ended, or the machine was too slow.
        tables: the rows of each table afterwards, if requested.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[JSON]] = ()
    more: bool = False
    changed: int = 0
    error: str = ""
    transient: bool = False
    tables: JSON = None

    def text(self) -> str:
        """The observation for the agent."""
        if self.error:
            return f"Error: {self.error}"
        if not self.columns:
            return f"{self.changed} rows changed."
        lines = [" | ".join(self.columns), *(" | ".join(map(_cell, row)) for row in self.rows)]
        return "\n".join([*lines, "..." if self.more else f"({len(self.rows)} rows)"])


class Database(Protocol):
    """A database that runs untrusted statements. Its creator closes it."""

    def run(self, sql: str, *, write: bool, rows: int = SHOWN_ROWS) -> Result:
        """Run untrusted statements, all or none. A mistake in them becomes `Result.error`.

        Args:
            sql: statements, separated by semicolons.
            write: True if they may change rows.
            rows: most rows to return.

        Raises:
            SandboxError: the machinery broke.
        """
        ...

    def load(self, script: str) -> None:
        """Replace the database by one that a trusted script creates.

        Raises:
            SandboxError: the script fails, or the machinery broke.
        """
        ...

    def run_on_each(
        self, scripts: Sequence[str], sql: str, tables: Mapping[str, Sequence[str]] | None
    ) -> list[Result]:
        """Run the same untrusted statements on several fresh databases, one after the other.

        Args:
            scripts: each creates one database.
            sql: statements, separated by semicolons.
            tables: table -> columns to return in `Result.tables`; ``None`` forbids changes of rows.

        Returns:
            One result per database, up to the first error. If the process ends, it is unknown
            which database ended it, and that error is the only result.

        Raises:
            SandboxError: a script fails, or the machinery broke.
        """
        ...

    def close(self) -> None:
        """End the database. Idempotent."""
        ...


def _cell(value: JSON) -> str:
    if isinstance(value, Mapping):
        return f"{float(str(value['v'])):g}" if value.get("t") == "float" else f"x'{value.get('v')}'"
    return "NULL" if value is None else str(value)
