"""What holds a stranger's statements back on a PostgreSQL server: limits, and what databases lack."""

from __future__ import annotations

from typing import Final

#: Of one statement, and of all those of one request together. Wall time: a server counts no other.
STATEMENT_S: Final = 3.0
#: Bytes of all rows of one answer, and of one row that is kept; rows that may be written to one database.
ANSWER_BYTES: Final = 2**20
ROW_BYTES: Final = 4_000
WRITTEN: Final = 10_000
TEMPORARY_KB: Final = 64 * 1024
#: What a role's connections begin with. `SET` and set_config() could change it, and are not allowed.
OPTIONS: Final = {
    "bytea_output": "hex",
    "client_min_messages": "error",
    "datestyle": "iso",
    "extra_float_digits": "1",
    "jit": "off",
    "lock_timeout": f"{STATEMENT_S:.0f}s",
    "max_parallel_workers_per_gather": "0",
    "search_path": "desk",
    "standard_conforming_strings": "on",
    "statement_timeout": f"{STATEMENT_S:.0f}s",
    "timezone": "UTC",
    "work_mem": "4MB",
}

# Everybody may call a function that PostgreSQL itself declares immutable: it sees nothing but its arguments.
# That leaves out files, locks, notifications, settings, sleep, dynamic SQL, clocks and the catalog. Of the
# others there are those behind operators and casts, and a few that format values.
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
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'p' AND proname !~ 'acl|^pg_' AND (
            provolatile = 'i' OR provolatile = 's' AND (
                oid IN (SELECT oprcode FROM pg_operator)
                OR oid IN (SELECT castfunc FROM pg_cast WHERE casttarget::regtype::text !~ '^reg')
                OR proname IN (
                    'array_to_string', 'concat', 'concat_ws', 'date_part', 'date_trunc', 'format',
                    'generate_series', 'json_agg', 'json_build_array', 'json_build_object', 'json_object_agg',
                    'jsonb_agg', 'row_to_json', 'to_char', 'to_date', 'to_json', 'to_jsonb', 'to_number'
        )))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', name);
    END LOOP;
END $$;
CREATE SCHEMA envkit;
GRANT USAGE ON SCHEMA envkit TO PUBLIC;
-- The rows of one query, each as the text of a JSON object; a client that read them itself could not stop
-- before the end of one that fills its memory.
CREATE FUNCTION envkit.rows(query text, most integer, OUT line text) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    found record;
    size bigint := 0;
BEGIN
    FOR found IN EXECUTE query LOOP
        most := most - 1;
        EXIT WHEN most < 0;
        line := row_to_json(found);
        size := size + octet_length(line);
        IF size > {ANSWER_BYTES} THEN
            RAISE program_limit_exceeded USING MESSAGE = 'more than {ANSWER_BYTES:,} bytes of rows';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
-- A database has no quota: rows are counted as they are written, in a sequence, which no rollback sets back.
CREATE SEQUENCE envkit.written MAXVALUE {WRITTEN};
CREATE FUNCTION envkit.count() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM nextval('envkit.written');
    IF octet_length(NEW::text) > {ROW_BYTES} THEN
        RAISE program_limit_exceeded USING MESSAGE = 'a row of more than {ROW_BYTES:,} bytes';
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION envkit.count() FROM PUBLIC;
"""


def own(owner: str) -> str:
    """What makes a role the owner of that which `HARDEN` has made, and lets it do what an owner has to."""
    return (
        f"ALTER SCHEMA envkit OWNER TO {owner}; ALTER SEQUENCE envkit.written OWNER TO {owner};"
        f"ALTER FUNCTION envkit.count() OWNER TO {owner};"
        f"ALTER FUNCTION envkit.rows(text, integer) OWNER TO {owner};"
        f"GRANT EXECUTE ON FUNCTION nextval(regclass), setval(regclass, bigint) TO {owner};"
        f"GRANT SELECT ON pg_class TO {owner}"
    )


def bound(role: str) -> str:
    """What holds a role to limits that only a superuser may set; the others come with its connection."""
    return f"ALTER ROLE {role} SET temp_file_limit = {TEMPORARY_KB};ALTER ROLE {role} SET lc_messages = 'C'"
