"""Exercism's Python track as Aider's benchmark uses it: exercises to write from their instructions.

A folder (the repository, or its ``exercises/practice``) with a folder for each exercise: in it,
``.meta/config.json`` names the stub, the example and the tests, and ``.docs/*.md`` holds the instructions.
Exercises with one function, tested by calls with literals, become tasks. Tests that expect an exception are
not used, because calls that the example rejects are not graded.
"""

from __future__ import annotations

import ast
from pathlib import Path

from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor.formats.problems import (
    CallProblem,
    LeftOut,
    applied_normalizers,
    collect,
    known_calls,
    statements,
    without_body,
)
from envkit.environments.code_editor.formats.records import Record, parse_record, read_text
from envkit.errors import TaskFileError


def read(path: Path) -> ImportedTasks:
    """Read all exercises of a folder.

    Raises:
        TaskFileError: it holds none, or one's files do not have the form above.
    """
    folder = path / "exercises" / "practice"
    folder = folder if folder.is_dir() else path
    configs = sorted(folder.glob("*/.meta/config.json"))
    if not configs:
        raise TaskFileError(f"{folder} holds no NAME/.meta/config.json; expected exercises of Exercism")
    return collect("exercism", configs, _problem)


def _problem(config: Path) -> CallProblem:
    folder = config.parent.parent
    files = parse_record(read_text(config), str(config)).nested("files")
    stub, example, test = (_only(files, folder, field) for field in ("solution", "example", "test"))
    docs = sorted((folder / ".docs").glob("*.md"))
    tests = statements(test)
    public = [node.name for node in statements(stub) if isinstance(node, ast.FunctionDef)]
    if len(public) != 1 or any(isinstance(node, ast.ClassDef) for node in statements(stub)):
        raise LeftOut("that are not one function")
    [name] = public
    return CallProblem(
        id=folder.name,
        prompt="\n\n".join(read_text(one).strip() for one in docs),
        ask="Write the function",
        broken=without_body(stub, name),
        reference=f"{example.rstrip()}\n",
        function=name,
        examples=known_calls(tests, name),
        source=folder.name,
        operator="unwritten",
        metadata={},
        normalizers=applied_normalizers(tests, name),
    )


def _only(files: Record, folder: Path, field: str) -> str:
    names = files.items(field)
    if not names or not all(isinstance(name, str) for name in names):
        raise files.error(field, repr(names)[:60], "a list of file names")
    if len(names) > 1:
        raise LeftOut("that are several files")
    path = folder / str(names[0])
    if not path.resolve().is_relative_to(folder.resolve()):
        raise files.error(field, repr(names[0]), "a file of the exercise's own folder")
    return read_text(path)
