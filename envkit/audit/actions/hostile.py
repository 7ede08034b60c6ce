"""Hostile actions: valid ones, bent and stuffed until a parser or a budget may break. Pure functions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from envkit.env.tools import Tool

#: Sizes of what is repeated or nested: small ones, limits of parsers, and all that fits into an action.
_COUNTS: Final = (2, 3, 5, 9, 30, 99, 101, 200, 300, 1_000, 1_500, 4_000)
#: Most characters of an intermediate text.
_LONGEST: Final = 40_000
_WORDS: Final = (
    *("a", "f", "x", "self", "print", "__import__", "lambda", "yield", "await", "match", "case", "type"),
    *("*", "submit", "run", "undo", "view", "outline", "done()", "definition", "None", "True", "...", "_"),
    *("é", "π"),
)
#: Values that break conversions: sizes, encodings, control characters and tokens, names that look alike.
_ATOMS: Final = (
    *("0x" + "f" * 3_572, "0x" + "f" * 12_000, "9" * 4_299, "9" * 4_301, "-" + "9" * 9_000),
    *("0b" + "1" * 14_000, "0o" + "7" * 5_000, "1e400", "1e-400", "9" * 400 + ".0", "1" * 300 + "j"),
    *("1_" * 2_000 + "1", "0_0", "1__0", "nan", "inf", "-inf", "-0.0", "1.e", "0x", "0b2", "08"),
    *("1if 1else 1", "1or 2", "2**63", "2**9999**9999", "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775809", "18446744073709551616", "\0", "'\\0'", "'\\ud800'", "\ud800", "'\\N{BELL}'"),
    *("'\\N{no such name}'", "'\\x'", "b'\\xff'", "'\\u12'", "\x0c", "\x1a", "\x1b[2J", "\r", "\r\n"),
    *("\u2028", "\u2029", "\x85", "\x7f", "\ufeff", "\ufffd", "\t", "\u202e", "\u2066", "\u200b", "\u200d"),
    *("\u0301" * 500, "\N{SNOWMAN}" * 300, "\U0001f600" * 300, "\uff46", "\u0430", "\ufb01", "\u017f"),
    *("\u0130", "\u1e9e", "\N{MATHEMATICAL BOLD SMALL F}", "\u0661", "<|im_end|>", "<|im_start|>system\n"),
    *("<|endoftext|>", "</s>", "[INST]", "<tool_call>", "```", "~~~", "`", "'" * 3, '"' * 3, "'", '"'),
    *("\\", "\\\n", "#", "# -*- coding: utf-7 -*-", "%s%n", "{}", "{0}", "$(id)", "$$", "../../etc/passwd"),
    *("/etc/passwd", "file:///etc/passwd", "a" * 16_000, " " * 9_000, "\n" * 9_000, "\t" * 99),
    *("a\n" * 5_000, "a;" * 5_000, ";" * 9_000, "," * 9_000, "." * 9_000, "-" * 9_000, "@a\n" * 3_000),
    *("~" * 5_000, "'a' " * 4_000, "if 1: pass\n" * 1_200, "x = 1\n" * 2_500, "import a\n" * 1_500),
    *("global a\n" * 1_500,),
)
#: Text before and after what it holds; nested.
_NESTS: Final = (
    *(("(", ")"), ("[", "]"), ("{", "}"), ("{1:", "}"), ("((", "),)"), ("f(", ")"), ("a[", "]"), ("-", "")),
    *(("not ", ""), ("~", ""), ("lambda:", ""), ("lambda a=", ":0"), ("a if ", " else b"), ("1+", "")),
    *(("2**", ""), ("[a for a in ", "]"), ("{a:b for a in ", "}"), ("(yield ", ")"), ("*", "")),
    *(("a:=", ""), ("(a:=", ")"), ("f'{", "}'"), ('f"{', '}"'), ("f'''{", "}'''"), ("f'{a:{", "}}'")),
    *(("a.", "b"), ("", ".a"), ("", "()"), ("", "[0]"), ("a=", ""), ("a,", ""), ("a<", ""), ("a and ", "")),
    *(("await ", ""), ("@", "\ndef f(): 0"), ("with (", "): 0"), ("with a as (", "): 0"), ("del (", ")")),
    *(("for a in ", ": 0"), ("print(", ")"), ("SELECT (", ")"), ("SELECT * FROM (", ")"), ("NOT ", "")),
    *(("CASE WHEN ", " THEN 1 END"), ("/*", "*/"), ("abs(", ")"), ("EXISTS (", ")"), ("1 IN (", ")")),
    *(("WITH a AS (", ") SELECT 1"), ("'", "'"), ("1 || ", "")),
)
#: Lines whose block is the next of them, with one more blank before each line.
_BLOCKS: Final = (
    *("if 1:", "while 1:", "for a in b:", "with a:", "def f():", "async def f():", "class A:", "try:"),
    *("else:", "match a:", "case b:", "try: a\nfinally:", "if 1: pass\nelse:", "for a in b: pass\nelse:"),
    *("@a\nclass A:",),
)
_SQL: Final = (
    *("SELECT 1", "SELECT", "VALUES (1), (2)", "TABLE {t}", "EXPLAIN SELECT 1"),
    *("EXPLAIN QUERY PLAN SELECT 1", "SELECT * FROM {t}"),
    *("SELECT * FROM {t}, {t} a, {t} b, {t} c, {t} d, {t} e", "SELECT 1/0", "SELECT -{n}"),
    *("SELECT {n} + {n}", "SELECT abs({n})", "SELECT {n} << 62", "SELECT 1 LIMIT {n}"),
    *("SELECT 1 LIMIT -1 OFFSET {n}", "SELECT zeroblob({n})", "SELECT hex(zeroblob(99999))"),
    *("SELECT printf('%{n}d', 1)", "SELECT char({n}, 55296)", "SELECT replace('{s}', '', 'b')"),
    *("SELECT substr('{s}', {n}, {n})", "SELECT CAST('{s}' AS BLOB)", "SELECT x'ff00'"),
    *("SELECT CAST(x'80ff' AS TEXT)", "SELECT 1e999", "SELECT -1e999", "SELECT 1e999 - 1e999"),
    *("SELECT round(1e300, {n})", "SELECT json('{s}')", "SELECT json_array({n}, x'00')"),
    *("SELECT instr('{s}', '{s}')", "SELECT '{s}' LIKE '{s}'", "SELECT '{s}' GLOB '*{s}*{s}*{s}*{s}'"),
    *("SELECT group_concat(a.id, '{s}') FROM {t} a, {t} b", "SELECT sum(id) OVER () FROM {t}"),
    *("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",),
    *("SELECT * FROM sqlite_master", "SELECT * FROM pragma_table_info('{t}')"),
    *("PRAGMA writable_schema = 1", "PRAGMA page_count", "ATTACH '{s}' AS a", "DETACH a", "VACUUM"),
    *("REINDEX", "ANALYZE", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE request"),
    *("CREATE TABLE a (b)", "CREATE VIEW a AS SELECT 1", "CREATE INDEX a ON {t} (id)", "DROP TABLE {t}"),
    *("ALTER TABLE {t} RENAME TO a", "INSERT INTO {t} VALUES (1)", "INSERT INTO {t} SELECT * FROM {t}"),
    *("INSERT OR REPLACE INTO {t} SELECT * FROM {t}", "UPDATE {t} SET id = id + 1"),
    *("UPDATE {t} SET id = {n}", "UPDATE {t} SET id = '{s}'", "DELETE FROM {t}"),
    *("DELETE FROM {t} RETURNING *", "REPLACE INTO {t} VALUES ({n})", "SELECT load_extension('{s}')"),
    *("SELECT datetime('now')", "SELECT random()", "SELECT changes()", "DO $$ BEGIN END $$"),
    *("COPY {t} TO STDOUT", "SET a = 1", "SHOW ALL", "LISTEN a", "CALL a()", "PREPARE a AS SELECT 1"),
    *("EXECUTE a", "SELECT 'now'::timestamp", "SELECT xmin FROM {t}", "SELECT pg_sleep(9)"),
    *("SELECT repeat('{s}', {n})", "SELECT $1", "SELECT E'\\x'", "SELECT '{s}", 'SELECT "{s}'),
    *("SELECT /* {s}", "SELECT [{s}]", "SELECT `{s}`", "SELECT :a, ?, ?1, @a, $a", "-- {s}", ";;;"),
    *("SELECT 1;",),
)
_ARGUMENTS: Final = (
    *("''", "'a'", "b'a'", "0", "-1", "True", "None", "1.5", "[]", "{}", "()", "{1}", "[1]", "['1']"),
    *("'1'", "x", "[[]]", "{'a': 1}", "[None]", "*[1]", "**{'a': 1}", "1 if 1 else 2", "f'{1}'", "'a' 'b'"),
    *("-1j", "...", "a=1"),
)

Bend = Callable[[str, random.Random], str]


def hostile_actions(valid: Sequence[str], tools: Sequence[Tool], draw: random.Random) -> Iterator[str]:
    """Yield hostile actions without end.

    Args:
        valid: actions that the environment understands, such as an oracle's and its exploits'.
        tools: the environment's tools.
        draw: determines the actions.
    """
    samples = [*valid, "", "submit"]
    while True:
        kind = draw.random()
        if kind < 0.15:
            text = _stuff(draw)
        elif kind < 0.25:
            text = _fenced(_python(draw, samples), draw)
        elif kind < 0.35:
            text = _fenced(_statements(draw, samples), draw)
        elif kind < 0.5 and tools:
            text = _call(draw.choice(tools), draw)
        else:
            text = draw.choice(samples)
            for _ in range(draw.choice((1, 1, 2, 4))):
                text = draw.choice(_BENDS)(text, draw)[:_LONGEST]
        yield text if draw.random() < 0.05 else _cut(text)


def _cut(text: str) -> str:
    """Most actions get a length that environments accept."""
    return text.encode(errors="surrogatepass")[:16_000].decode(errors="ignore")


def _stuff(draw: random.Random) -> str:
    """Something hostile by itself."""
    count, kind = draw.choice(_COUNTS), draw.randrange(7)
    if kind == 0:
        return draw.choice(_ATOMS)
    if kind == 1:
        before, after = draw.choice(_NESTS)
        return before * count + draw.choice(_WORDS) + after * count
    if kind == 2:
        nests = [draw.choice(_NESTS) for _ in range(min(count, 40))]
        return "".join(n[0] for n in nests) + "a" + "".join(n[1] for n in reversed(nests))
    if kind == 3:
        chosen = [draw.choice(_BLOCKS) for _ in range(draw.choice((1, 1, 2)))]
        return (
            "".join(
                "".join(f"{' ' * depth}{line}\n" for line in chosen[depth % len(chosen)].split("\n"))
                for depth in range(min(count, 150))
            )
            + " " * min(count, 150)
            + draw.choice(_WORDS)
        )
    if kind == 4:
        return _times(draw.choice((*_WORDS, *_ATOMS)), draw.choice((1, count)))
    if kind == 5:
        return "".join(_character(draw) for _ in range(min(count, 400)))
    return " ".join(draw.choice((*_WORDS, *"()[]{}:,.;='\"\n`@#\\<>-+*/%&|^~!?$")) for _ in range(count))


def _python(draw: random.Random, samples: Sequence[str]) -> str:
    """A Python block, often with a name that the environment knows."""
    names = [*dict.fromkeys(re.findall(r"(?:def|class)\s+(\w+)", "\n".join(samples))), "f"]
    name, count = draw.choice(names), draw.choice(_COUNTS)
    stuff = _stuff(draw)
    makers: Sequence[Callable[[], str]] = (
        lambda: f"def {name}(a):\n    return {stuff}\n",
        lambda: f"def {name}(a={stuff}):\n    return a\n",
        lambda: f"def {name}(a):\n    {stuff}\n",
        lambda: f"def {name}(a):\n" + "".join(f"    {line}\n" for line in stuff.split("\n")),
        lambda: f"{stuff}\ndef {name}(a):\n    return a\n",
        lambda: f"x = {stuff}\ndef {name}(a):\n    return x\n",
        lambda: f"@{stuff}\ndef {name}(a):\n    return a\n",
        lambda: f"def {name}(a):\n    return a\n" * count,
        lambda: "".join(f"def f{i}(a): f{i + 1}(a)\n" for i in range(count)) + f"def {name}(a): f0(a)\n",
        lambda: _times("".join(f"def {each}(a):\n    return a\n" for each in names), count),
        lambda: f"class {name}:\n" + f"    def {name}(self): return 1\n" * count,
        lambda: "".join(f"{' ' * i}def {name}():\n" for i in range(min(count, 120))) + f"{' ' * 120}a\n",
        lambda: "".join(f"x{i} = x{i - 1}\n" for i in range(count)) + f"def {name}(a): x{count - 1}\n",
        lambda: f"def {name}(a):\n" + "    return a\n" * count,
        lambda: f"def {name}(a):\n try:\n" + "  return a\n" * count + " finally:\n" + "  a\n" * count,
        lambda: f'def {name}(a):\n    """{stuff}"""\n    return a\n',
        lambda: f"def {name}(a):\n{' ' * (4 * count)}return a\n",
    )
    return draw.choice(makers)()


def _statements(draw: random.Random, samples: Sequence[str]) -> str:
    """SQL statements, often about tables that the environment knows."""
    tables = [*dict.fromkeys(re.findall(r"(?i)(?:from|into|update)\s+(\w+)", "\n".join(samples))), "t"]
    found: list[str] = []
    for _ in range(draw.choice((1, 1, 1, 2, 60))):
        text = draw.choice((*_SQL, draw.choice(samples)))
        values = {"{t}": draw.choice(tables), "{n}": draw.choice(_ATOMS[:30]), "{s}": _stuff(draw)}
        for mark, value in values.items():
            text = text.replace(mark, value)
        found.append(text)
    return draw.choice((";", ";\n", " UNION ", " ; -- ", "\n")).join(found)


def _fenced(text: str, draw: random.Random) -> str:
    language = draw.choice(("python", "python", "sql", "sql", "diff", "", "py", "text"))
    block = f"```{language}\n{text}\n```\n"
    return draw.choice(
        (block, block, text, _times(block, draw.choice((2, 30, 500))), f"{block}run", block[:-5])
    )


def _call(tool: Tool, draw: random.Random) -> str:
    """A call of a tool with hostile arguments."""

    def value() -> str:
        drawn = (_stuff(draw), repr(_stuff(draw)), f"[{draw.choice(_ATOMS)}]")
        return draw.choice((*_ARGUMENTS, *_ATOMS, *drawn))

    names = [*tool.arguments]
    given = [f"{name}={value()}" if draw.random() < 0.7 else value() for name in names]
    extra = draw.random()
    if extra < 0.1:
        given += given
    elif extra < 0.2:
        given.append(draw.choice(("a=1", "*a", "**a", "self=1", "1")))
    elif extra < 0.4:
        given = given[1:]
    call = f"{tool.name}({', '.join(given)})"
    if extra < 0.4 or extra > 0.8:
        call += f"\n```\n{_stuff(draw)}\n```"
    return call if draw.random() < 0.8 else draw.choice(_BENDS)(call, draw)


# Bends of a text.


def _times(text: str, count: int) -> str:
    """Repeat a text, but not beyond `_LONGEST` by much."""
    return text * min(count, _LONGEST // max(len(text), 1) + 1)


def _character(draw: random.Random) -> str:
    return chr(draw.choice((draw.randrange(128), draw.randrange(256), draw.randrange(0x110000))))


def _at(text: str, draw: random.Random) -> int:
    return draw.randrange(len(text) + 1)


def _inserted(text: str, draw: random.Random) -> str:
    at = _at(text, draw)
    return text[:at] + _stuff(draw) + text[at:]


def _replaced_word(text: str, draw: random.Random) -> str:
    words = [*re.finditer(r"\w+", text)]
    if not words:
        return _inserted(text, draw)
    word = draw.choice(words)
    return text[: word.start()] + _stuff(draw) + text[word.end() :]


def _repeated_line(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    return "\n".join([*lines[:at], _times(f"{lines[at]}\n", draw.choice(_COUNTS)), *lines[at + 1 :]])


def _repeated(text: str, draw: random.Random) -> str:
    return _times(text + draw.choice(("", "\n", " ", ";")), draw.choice(_COUNTS))


def _repeated_part(text: str, draw: random.Random) -> str:
    start, end = sorted((_at(text, draw), _at(text, draw)))
    return text[:start] + _times(text[start:end], draw.choice(_COUNTS)) + text[end:]


def _deleted(text: str, draw: random.Random) -> str:
    start, end = sorted((_at(text, draw), _at(text, draw)))
    return text[:start] + text[end:]


def _truncated(text: str, draw: random.Random) -> str:
    return text[: _at(text, draw)]


def _swapped_lines(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    draw.shuffle(lines)
    return "\n".join(lines)


def _one_character(text: str, draw: random.Random) -> str:
    at = _at(text, draw)
    return text[:at] + _character(draw) + text[at + 1 :]


def _look_alike(text: str, draw: random.Random) -> str:
    """Letters as their full-width forms, which Python takes for the same name."""
    share = draw.random()
    return "".join(
        chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() and draw.random() < share else c for c in text
    )


def _nested(text: str, draw: random.Random) -> str:
    before, after = draw.choice(_NESTS)
    start, end = sorted((_at(text, draw), _at(text, draw)))
    count = draw.choice(_COUNTS)
    return text[:start] + before * count + text[start:end] + after * count + text[end:]


def _as_search(text: str, draw: random.Random) -> str:
    lines = [line for line in text.split("\n") if line.strip()] or ["a"]
    old, new = draw.choice(lines), _stuff(draw)
    return f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n" * draw.choice((1, 1, 2, 40))


def _as_diff(text: str, draw: random.Random) -> str:
    lines = [line for line in text.split("\n") if line.strip()] or ["a"]
    rows = [f"{draw.choice('+- ')}{line}" for line in lines]
    return "```diff\n" + "\n".join([*rows, f"+{_stuff(draw)}"]) + "\n```"


_BENDS: Final[Sequence[Bend]] = (
    *(_inserted, _inserted, _replaced_word, _replaced_word, _repeated_line, _repeated, _repeated_part),
    *(_deleted, _truncated, _swapped_lines, _one_character, _look_alike, _nested, _nested),
    *(_as_search, _as_diff),
)
