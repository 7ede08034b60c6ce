"""QuixBugs (doi:10.1145/3135932.3135941): forty classic programs, each with one bug on one line.

Either its folder: ``python_programs/NAME.py``, ``correct_python_programs/NAME.py``, and
``json_testcases/NAME.json``, a list of arguments and answer on every line. Or a JSONL file with ``name``,
``buggy_code``, ``correct_code`` and ``tests`` (the same pairs), and ``docstring`` if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor.formats.problems import CallProblem, KnownCall, collect
from envkit.environments.code_editor.formats.records import (
    Record,
    parse_json,
    read_lines,
    read_records,
    read_text,
)
from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.errors import TaskFileError
from envkit.types import JSON

_BUGGY, _CORRECT, _TESTS = "python_programs", "correct_python_programs", "json_testcases"


def read(path: Path) -> ImportedTasks:
    """Read all programs with JSON tests; those on graphs and linked lists have none.

    Raises:
        TaskFileError: a file, or a line, does not have the form above.
    """
    return collect("quixbugs", _folder(path) if path.is_dir() else read_records(path), _problem)


def _problem(record: Record) -> CallProblem:
    name, broken, reference = record.text("name"), record.text("buggy_code"), record.text("correct_code")
    return CallProblem(
        id=name,
        prompt=record.text("docstring", ""),
        ask="Fix the bug",
        broken=f"{broken.strip(chr(10)).rstrip()}\n",
        reference=f"{reference.strip(chr(10)).rstrip()}\n",
        function=name,
        examples=[_example(record, index, test) for index, test in enumerate(record.items("tests"))],
        source=name,
        operator="one line",
        metadata={},
        json=True,
    )


def _folder(path: Path) -> Iterator[Record]:
    programs = sorted((path / _BUGGY).glob("*.py"))
    if not programs:
        raise TaskFileError(f"{path / _BUGGY} holds no programs; expected the folder of QuixBugs")
    for program in programs:
        name = program.stem
        if name.endswith("_test") or name in ("node", "__init__"):
            continue
        tests = path / _TESTS / f"{name}.json"
        data: Mapping[str, JSON] = {
            "name": name,
            "buggy_code": read_text(program),
            "correct_code": read_text(path / _CORRECT / program.name),
            "tests": _lines(tests) if tests.exists() else [],
        }
        yield Record(str(tests), data)


def _lines(path: Path) -> list[JSON]:
    return [parse_json(text, where, "[arguments, answer]") for where, text in read_lines(path)]


def _example(record: Record, index: int, test: JSON) -> KnownCall:
    match test:
        case [arguments, value]:
            # A single argument may come without a list.
            given = arguments if isinstance(arguments, list) else [arguments]
            return KnownCall(Call(tuple(map(literal, given))), literal(value))
        case _:
            raise record.error(f"tests[{index}]", repr(test)[:60], "a pair of arguments and answer")
