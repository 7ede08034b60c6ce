"""The ledger's bill."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from envkit.cli.main import run as command
from envkit.errors import StoreError
from envkit.serving.ledger import Entry, Ledger


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Requests of three days; each has its own number of tokens."""
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    for number, outcome in enumerate(("done", "failed", "cancelled", "done")):
        ledger.add(Entry("ann", "red", 10**number, 2 * 10**number, 0.1, outcome))
    ledger.close()
    days = ("2026-11-27T23:59:59+00:00", *["2026-11-28T00:00:00+00:00"] * 2, "2026-11-29T12:00:00+00:00")
    with closing(sqlite3.connect(path)) as connection, connection:
        for row, at in enumerate(days, 1):
            connection.execute("UPDATE requests SET at = ? WHERE rowid = ?", (at, row))
    return path


@pytest.mark.parametrize(
    ("options", "requests", "tokens"),
    [
        ([], 3, 1101),
        (["--since", "2026-11-27"], 3, 1101),
        (["--since", "2026-11-28"], 2, 1100),
        (["--since", "2026-11-29"], 1, 1000),
    ],
)
def test_a_bill_has_what_did_not_fail_since_a_day(
    book: Path, options: list[str], requests: int, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["models", "bill", str(book), "--json", *options]) == 0
    [line] = json.loads(capsys.readouterr().out)
    assert (line["requests"], line["prompt_tokens"], line["completion_tokens"]) == (
        requests,
        tokens,
        2 * tokens,
    )


def test_a_bill_since_a_day_to_come_is_empty(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["models", "bill", str(book), "--json", "--since", "2030-01-01"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_day_that_is_none_is_refused(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["models", "bill", str(book), "--since", "yesterday"]) == 2
    assert "expected a date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("CREATE TABLE notes (text TEXT)", "found no table 'requests'"),
        ("CREATE TABLE requests (at TEXT, url TEXT)", "found a table 'requests' of at, url"),
    ],
)
def test_a_file_of_another_program_is_no_ledger_and_stays_as_it_is(
    tmp_path: Path, table: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(table)
    before = path.read_bytes()
    assert command(["models", "bill", str(path)]) == 2
    assert f"{found}; expected the ledger of `envkit serve --ledger`" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_server_takes_no_other_programs_table_for_its_ledger(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection, connection:
        connection.execute("CREATE TABLE requests (at TEXT, url TEXT)")
    with pytest.raises(StoreError, match="found a table 'requests' of at, url"):
        Ledger(tmp_path / "x.db")


def test_a_bill_is_read_while_the_server_writes(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(book)
    ledger.add(Entry("ann", "red", 5, 5, 0.1, "done"))
    assert command(["models", "bill", str(book), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["requests"] == 4
    ledger.close()


def test_a_damaged_ledger_is_told(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = book.read_bytes()
    book.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))  # its schema is on the first page
    assert command(["models", "bill", str(book)]) == 2
    assert "ledger.db: cannot be read (database disk image is malformed)" in capsys.readouterr().err


def test_names_in_a_bill_are_text_and_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for name in ("ann[dev]", "ann[prod]", "x[/b]"):
        ledger.add(Entry(name, f"{name}-model", 1, 1, 0.1, "done"))
    ledger.close()
    assert command(["models", "bill", str(tmp_path / "ledger.db")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}-model" in printed for name in ("ann[dev]", "ann[prod]", "x[/b]"))
