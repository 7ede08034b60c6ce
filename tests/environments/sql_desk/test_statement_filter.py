"""The statement filter: splitting and refusing statements."""

from __future__ import annotations

import contextlib

import pytest

from envkit.environments.sql_desk.postgres.statement_filter import (
    MAX_SQL_BYTES,
    MAX_STATEMENTS,
    NotAllowed,
    split_statements,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("select 1;\n delete from a ;; ", ["select 1", "delete from a"]),
        ("SELECT ';' -- ; none\n; TABLE a", ["SELECT ';' -- ; none", "TABLE a"]),
        ("/* ; /* ; */ ; */ SELECT 1", ["/* ; /* ; */ ; */ SELECT 1"]),
        ("SELECT 'it''s; one'; SELECT 2", ["SELECT 'it''s; one'", "SELECT 2"]),
        ("SELECT 'a\\'; SELECT 2", ["SELECT 'a\\'", "SELECT 2"]),
        ("SELECT E'a\\'; b'", ["SELECT E'a\\'; b'"]),
        ('SELECT "a;""b"', ['SELECT "a;""b"']),
        ("SELECT $$;$$, $a$;$$;$a$", ["SELECT $$;$$, $a$;$$;$a$"]),
        ("SELECT a$b$ FROM c; VALUES (1)", ["SELECT a$b$ FROM c", "VALUES (1)"]),
        ("((SELECT 1))", ["((SELECT 1))"]),
        ("SELECT 'now, date, xmin, pg_roles' AS dates", ["SELECT 'now, date, xmin, pg_roles' AS dates"]),
        ("SELECT 'user, regclass', \"user\" FROM a", ["SELECT 'user, regclass', \"user\" FROM a"]),
        ("WITH update AS (SELECT 1) TABLE update", ["WITH update AS (SELECT 1) TABLE update"]),
        ("SELECT 'Grüße', \N{SNOWMAN}", ["SELECT 'Grüße', \N{SNOWMAN}"]),
    ],
)
def test_statements_are_split_as_the_server_does(text: str, found: list[str]) -> None:
    assert split_statements(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no statement"),
        (" ;; -- nothing", "no statement"),
        ("SELECT 1; DROP TABLE a", "drop is not allowed"),
        ("/* SELECT */ COPY a TO STDOUT", "copy is not allowed"),
        ("-- x\rDO 'x'", "do is not allowed"),
        ("/* /* */ SELECT */ DO 'x'", "do is not allowed"),
        ("SELECT 'a", "does not end"),
        ("SELECT E'a\\'", "does not end"),
        ('SELECT "a', "does not end"),
        ("SELECT $a$ b $c$", "does not end"),
        ("SELECT 1 /* /* */", "does not end"),
        ("SELECT current_user", "current_user is not allowed"),
        ("SELECT 1::RegRole", "regrole is not allowed"),
        ('SELECT 1::"regrole"', "regrole is not allowed"),
        ('SELECT 1::U&"\\0072egrole"', "an escaped name is not allowed"),
        ("SELECT 'now'::timestamp", "timestamp is not allowed"),
        ("SELECT CAST('today' AS Date)", "date is not allowed"),
        ("SELECT timestamptz 'now'", "timestamptz is not allowed"),
        ("SELECT '{now}'::_timestamp", "_timestamp is not allowed"),
        ("SELECT '[now,]'::\"tstzrange\"", "tstzrange is not allowed"),
        ("SELECT xmin, id FROM a", "xmin is not allowed"),
        ('SELECT a."ctid" FROM a', "ctid is not allowed"),
        ("SELECT '(now)'::pg_roles", "permission denied for the catalog"),
        ("SELECT '{}'::_pg_roles", "permission denied for the catalog"),
        ("SELECT 1::pg_catalog.int4", "permission denied for the catalog"),
        ("SELECT * FROM envkit.rows('SHOW all', 9)", "envkit is not allowed"),
        ("SELECT '\0'", "NUL"),
        ("SELECT '\ud800'", "no valid text"),
        ("SELECT 1;" * (MAX_STATEMENTS + 1), f"more than {MAX_STATEMENTS} statements"),
        ("SELECT '" + "\N{SNOWMAN}" * MAX_SQL_BYTES + "'", "bytes of statements"),
        ("\\copy a to b", "not allowed"),
    ],
)
def test_refused_statements(text: str, why: str) -> None:
    with pytest.raises(NotAllowed, match=why):
        split_statements(text)


@pytest.mark.parametrize("piece", ["'", '"', "$a$b", "/*", "(", "''", "E'\\", "-", "$"])
def test_no_text_is_slow_to_read(piece: str) -> None:
    """A backtracking reader would exceed the test's timeout."""
    text = "SELECT " + piece * (MAX_SQL_BYTES // len(piece) - 10)
    with contextlib.suppress(NotAllowed):
        split_statements(text)
