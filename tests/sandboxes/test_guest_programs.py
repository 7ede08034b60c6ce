"""Guest programs are sent as text to other processes, so they must not import envkit."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from envkit import sandboxes

GUESTS = sorted(Path(sandboxes.__path__[0]).rglob("guest*.py"))


def test_guest_programs_are_found() -> None:
    assert len(GUESTS) >= 5


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.name)
def test_a_guest_program_imports_only_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    assert any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)
