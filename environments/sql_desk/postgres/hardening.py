"""Limits on untrusted statements, and the SQL that removes privileges from a PostgreSQL database."""

from __future__ import annotations

from typing import Final

#: Wall seconds for one statement, and for all statements of one request. The server measures no CPU time.
STATEMENT_S: Final = 3.0
#: Wall seconds for a trusted statement: a reference, or one that loads the tables. On a busy machine, it must
#: not make the episode void.
TRUSTED_S: Final = 60.0
#: Most bytes of all rows in one answer, most bytes of one stored row, and most rows written to one database.
MAX_ANSWER_BYTES: Final = 2**20
MAX_ROW_BYTES: Final = 4_000
MAX_WRITTEN_ROWS: Final = 10_000
MAX_TEMPORARY_KB: Final = 64 * 1024
_CONNECTION_OPTIONS: Final = {
    "bytea_output": "hex",
    "client_min_messages": "error",
    "datestyle": "iso",
    "extra_float_digits": "1",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "search_path": "desk",
    "standard_conforming_strings": "on",
    "timezone": "UTC",
    "work_mem": "4MB",
}

# Roles may call the functions that PostgreSQL declares immutable: they depend on their arguments alone. That
# excludes files, locks, notifications, settings, sleep, dynamic SQL, clocks and the catalog. The stable
# functions allowed beside them implement operators and casts, or format values. Functions of dates and times
# are excluded too: PostgreSQL reads the clock when it converts the text 'now' to their arguments.
HARDEN: Final = f"""
DROP SCHEMA public CASCADE;
REVOKE ALL ON ALL TABLES IN SCHEMA pg_catalog, information_schema FROM PUBLIC;
REVOKE ALL ON SCHEMA information_schema FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog, information_schema FROM PUBLIC;
REVOKE USAGE ON LANGUAGE sql, plpgsql FROM PUBLIC;
DO $$
DECLARE name regprocedure;
BEGIN
    FOR name IN SELECT oid FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'p' AND proname !~ 'acl|^pg_'
        AND NOT EXISTS (
            SELECT FROM unnest(proargtypes::oid[] || coalesce(proallargtypes, '{{}}') || prorettype) AS used
            WHERE format_type(used, NULL) ~ '^(date|time|ts(tz)?(multi)?range)'
        ) AND (
            provolatile = 'i' OR provolatile = 's' AND (
                oid IN (SELECT oprcode FROM pg_operator)
                OR oid IN (SELECT castfunc FROM pg_cast WHERE casttarget::regtype::text !~ '^reg')
                OR proname IN (
                    'array_to_string', 'concat', 'concat_ws', 'format',
                    'generate_series', 'json_agg', 'json_build_array', 'json_build_object', 'json_object_agg',
                    'jsonb_agg', 'row_to_json', 'to_char', 'to_json', 'to_jsonb', 'to_number'
        )))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', name);
    END LOOP;
END $$;
CREATE SCHEMA envkit;
GRANT USAGE ON SCHEMA envkit TO PUBLIC;
-- The rows of one query, each as the text of a JSON object. It runs on the server, because a client could not
-- stop in the middle of a row that fills its memory.
CREATE FUNCTION envkit.rows(query text, max_rows integer, OUT line text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    found record;
    size bigint := 0;
BEGIN
    FOR found IN EXECUTE query LOOP
        max_rows := max_rows - 1;
        EXIT WHEN max_rows < 0;
        line := row_to_json(found);
        size := size + octet_length(line);
        IF size > {MAX_ANSWER_BYTES} THEN
            RAISE program_limit_exceeded USING MESSAGE = 'more than {MAX_ANSWER_BYTES:,} bytes of rows';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
-- There is no quota per database, so a trigger counts written rows in a sequence. No rollback resets it.
CREATE SEQUENCE envkit.written MAXVALUE {MAX_WRITTEN_ROWS};
CREATE FUNCTION envkit.count() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM nextval('envkit.written');
    IF octet_length(NEW::text) > {MAX_ROW_BYTES} THEN
        RAISE program_limit_exceeded USING MESSAGE = 'a row of more than {MAX_ROW_BYTES:,} bytes';
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION envkit.count() FROM PUBLIC;
"""


def connection_options(statement_s: float) -> dict[str, str]:
    """Return the settings of a role's connection. SET and set_config(), which change them, are not allowed.

    Args:
        statement_s: longest run of one statement, in wall seconds.
    """
    limit = f"{statement_s * 1000:.0f}ms"
    return {**_CONNECTION_OPTIONS, "lock_timeout": limit, "statement_timeout": limit}


def ownership_sql(owner: str) -> str:
    """Return SQL that gives a role the objects that `HARDEN` creates, and the functions their owner needs."""
    return (
        f"ALTER SCHEMA envkit OWNER TO {owner}; ALTER SEQUENCE envkit.written OWNER TO {owner};"
        f"ALTER FUNCTION envkit.count() OWNER TO {owner};"
        f"ALTER FUNCTION envkit.rows(text, integer) OWNER TO {owner};"
        f"GRANT EXECUTE ON FUNCTION nextval(regclass), setval(regclass, bigint) TO {owner};"
        f"GRANT SELECT ON pg_class TO {owner}"
    )


def role_limits_sql(role: str) -> str:
    """Return SQL that sets the limits of a role that only a superuser can set; see `connection_options`."""
    return (
        f"ALTER ROLE {role} SET temp_file_limit = {MAX_TEMPORARY_KB};ALTER ROLE {role} SET lc_messages = 'C'"
    )
