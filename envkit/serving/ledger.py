"""The token ledger: what each key used of each model, and what that costs."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import final

from envkit.errors import StoreError, UnpricedError
from envkit.runtime.prices import PriceTable

_TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    at TEXT NOT NULL, client TEXT NOT NULL, model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL, outcome TEXT NOT NULL
)
"""
_COLUMNS = ["at", "client", "model", "prompt_tokens", "completion_tokens", "seconds", "outcome"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The use of one request.

    Args:
        client: name of the key, never the key.
        model: id of the model that answered; for a request to ``auto``, the one that the router chose.
        prompt_tokens: of all prompts; a prompt with several answers counts once.
        completion_tokens: of all answers, as far as they were drawn.
        seconds: from request to last token.
        outcome: ``"done"``, ``"cancelled"`` or ``"failed"``.
    """

    client: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    outcome: str


@dataclass(frozen=True, slots=True)
class BillLine:
    """A client's use of a model.

    Args:
        usd: dollars; ``None`` if the table has no price for the model.
    """

    client: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


@final
class Ledger:
    """Requests in an SQLite file, one row each. Holds no prompts and no keys. Thread-safe.

    Args:
        path: the file; made if it does not exist.
        read_only: write nothing to the file, which must exist.

    Raises:
        StoreError: it cannot be opened, or is no ledger.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path, self._lock = path, threading.Lock()
        mode = "ro" if read_only else "rwc"
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, check_same_thread=False
            )
            if not read_only:
                with self._connection:
                    self._connection.execute(_TABLE)
            self._require_columns()
            if not read_only:
                self._connection.execute("PRAGMA journal_mode=WAL")
                # Rows survive a crash of the server. Waiting for the disk would hold up all other requests.
                self._connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            raise StoreError(f"{path}: cannot be used as a ledger ({error})") from error

    def _require_columns(self) -> None:
        """Refuse an SQLite file of another program.

        Raises:
            StoreError: the table of requests is missing, or has other columns.
        """
        found = [row[1] for row in self._connection.execute("PRAGMA table_info(requests)")]
        if found != _COLUMNS:
            self._connection.close()
            said = f"a table 'requests' of {', '.join(found)}" if found else "no table 'requests'"
            raise StoreError(
                f"{self._path}: found {said}; expected the ledger of `envkit serve --ledger`, "
                f"with {', '.join(_COLUMNS)}"
            )

    def add(self, entry: Entry) -> None:
        """Append a request.

        Raises:
            StoreError: it cannot be written.
        """
        values = (entry.client, entry.model, entry.prompt_tokens, entry.completion_tokens)
        try:
            with self._lock, self._connection:
                self._connection.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (datetime.now(UTC).isoformat(), *values, entry.seconds, entry.outcome),
                )
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: cannot be written ({error})") from error

    def bill(self, prices: PriceTable, since: date | None = None) -> list[BillLine]:
        """Sum up by client and model. Requests that failed are free.

        Args:
            prices: of the models.
            since: the first day, in UTC; ``None`` for all.

        Raises:
            StoreError: the file cannot be read.
        """
        first = "" if since is None else since.isoformat()
        try:
            with self._lock:
                rows: list[tuple[str, str, int, int, int]] = self._connection.execute(
                    "SELECT client, model, count(*), sum(prompt_tokens), sum(completion_tokens) "
                    "FROM requests WHERE outcome != 'failed' AND at >= ? "
                    "GROUP BY client, model ORDER BY client, model",
                    (first,),
                ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: cannot be read ({error})") from error
        return [BillLine(*row, _usd(prices, row[1], row[3], row[4])) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _usd(prices: PriceTable, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    try:
        return prices.of(model).cost_usd(prompt_tokens, completion_tokens)
    except UnpricedError:
        return None
