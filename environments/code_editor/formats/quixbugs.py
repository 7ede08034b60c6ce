"""QuixBugs (doi:10.1145/3135932.3135941): forty classic programs, each with one bug on one line.

Either its folder: ``python_programs/NAME.py``, ``correct_python_programs/NAME.py``, and
``json_testcases/NAME.json``, a list of arguments and answer on every line. Or a JSONL file with ``name``,
``buggy_code``, ``correct_code`` and ``tests`` (the same pairs), and ``docstring`` where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from envkit.env import ImportedTasks
from envkit.environments.code_editor.formats.rows import Row, parse_json, read_lines, read_rows, read_text
from envkit.environments.code_editor.formats.stated import Example, Stated, collected
from envkit.errors import TaskFileError
from envkit.inputs.call import Call, literal
from envkit.types import JSON

_WRONG, _RIGHT, _TESTS = "python_programs", "correct_python_programs", "json_testcases"


def read(path: Path) -> ImportedTasks:
    """All programs that tests in JSON are for; those of graphs and linked lists have none.

    Raises:
        TaskFileError: a file, or a line, is not as said above.
    """
    return collected("quixbugs", _folder(path) if path.is_dir() else read_rows(path), _problem)


def _problem(row: Row) -> Stated:
    name, wrong, right = row.text("name"), row.text("buggy_code"), row.text("correct_code")
    return Stated(
        id=name,
        said=row.text("docstring", ""),
        ask="Fix the bug",
        wrong=f"{wrong.strip(chr(10)).rstrip()}\n",
        right=f"{right.strip(chr(10)).rstrip()}\n",
        function=name,
        examples=[_example(row, index, test) for index, test in enumerate(row.items("tests"))],
        source=name,
        operator="one line",
        metadata={},
        json=True,
    )


def _folder(path: Path) -> Iterator[Row]:
    programs = sorted((path / _WRONG).glob("*.py"))
    if not programs:
        raise TaskFileError(f"{path / _WRONG} holds no programs; expected the folder of QuixBugs")
    for wrong in programs:
        name = wrong.stem
        if name.endswith("_test") or name in ("node", "__init__"):
            continue
        tests = path / _TESTS / f"{name}.json"
        data: Mapping[str, JSON] = {
            "name": name,
            "buggy_code": read_text(wrong),
            "correct_code": read_text(path / _RIGHT / wrong.name),
            "tests": _lines(tests) if tests.exists() else [],
        }
        yield Row(str(tests), data)


def _lines(path: Path) -> list[JSON]:
    return [parse_json(text, where, "[arguments, answer]") for where, text in read_lines(path)]


def _example(row: Row, index: int, test: JSON) -> Example:
    match test:
        case [arguments, value]:
            # One argument may stand without its list.
            given = arguments if isinstance(arguments, list) else [arguments]
            return Example(Call(tuple(map(literal, given))), literal(value))
        case _:
            raise row.error(f"tests[{index}]", repr(test)[:60], "a pair of arguments and answer")
