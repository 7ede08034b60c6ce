"""Copy the imports, constants and helpers that new definitions need from their block. Pure functions."""

from __future__ import annotations

import ast
import dis
from collections.abc import Collection, Iterator, Sequence
from types import CodeType

from envkit.runtime.syntax import compiled, parse

_USES = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"})


def with_dependencies(source: str, block: str, placed: Collection[str]) -> str:
    r"""Insert what definitions use from their block, right above the first of them.

    Copies each statement of the block that binds a name used by the definitions or by another copied
    statement, unless the file already has it. A file with a syntax error is returned unchanged.

    Args:
        source: the file, with the definitions in it.
        block: Python that defines them and more.
        placed: names of the definitions; methods without their class.

    >>> block = "import re\nimport os\ndef f(a):\n    return re.escape(a)\nprint(f('.'))\n"
    >>> print(with_dependencies("def f(a):\n    return re.escape(a)\n", block, ["f"]))
    import re
    <BLANKLINE>
    <BLANKLINE>
    def f(a):
        return re.escape(a)
    <BLANKLINE>
    """
    try:
        file = statement_texts(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source  # saving it will report the error
    imported = {
        name for node in file if isinstance(node, ast.Import | ast.ImportFrom) for name in _bound(node)
    }
    names = frozenset(placed)
    needed = _needed(block, names, {*file.values()}, imported - {"*"})
    at = next((_first_line(node) - 1 for node in file if _defines(node, names)), None)
    if at is None or not needed:
        return source
    lines = source.split("\n")
    return "\n".join([*lines[:at], *needed, "", "", *lines[at:]])


def _needed(
    block: str, placed: Collection[str], present: Collection[str], imported: Collection[str]
) -> list[str]:
    """Return the statements to copy, in the block's order.

    Args:
        block, placed: see `with_dependencies`.
        present: texts of the file's statements.
        imported: names that the file imports.
    """
    texts = statement_texts(block)
    # Each name is looked up once, so that a hostile block takes linear time.
    binding: dict[str, list[ast.stmt]] = {}
    for node in texts:
        for name in _bound(node):
            binding.setdefault(name, []).append(node)
    definitions = {node for name in placed for node in binding.pop(name, [])}
    reached, found = [*definitions], {*definitions}
    while reached:
        used = _used(texts[reached.pop()]).difference(imported)
        for name in (*used, "*"):  # a star import may bind any name
            new = {node for node in binding.pop(name, []) if texts[node] not in present} - found
            reached += new
            found |= new
    return [texts[node] for node in texts if node in found - definitions]


def _bound(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a module's statement binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
        case ast.Assign(targets=targets):
            yield from (
                part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
            )
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            yield name
        case _:
            pass


def _used(statement: str) -> set[str]:
    """Return the global names that a statement uses, now or when its functions are called."""
    names, codes = set[str](), [compiled(statement)]
    for code in codes:
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        # Without its constants, because `dis` formats each one: that is slow for long ones, and raises
        # ValueError for an integer of more than 4,300 digits.
        bare = code.replace(co_consts=(None,) * len(code.co_consts))
        names |= {str(step.argval) for step in dis.get_instructions(bare) if step.opname in _USES}
    return names


def _defines(statement: ast.stmt, names: Collection[str]) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names
        for node in ast.walk(statement)
    )


def statement_texts(source: str) -> dict[ast.stmt, str]:
    """Return a module's statements with their texts."""
    lines = source.encode().split(b"\n")
    return {node: _text(node, lines) for node in parse(source).body}


def _text(node: ast.stmt, lines: Sequence[bytes]) -> str:
    """Return a statement's text without other code on its lines. Columns count bytes."""
    first = _first_line(node)
    rows = [*lines[first - 1 : node.end_lineno]]
    rows[-1] = rows[-1][: node.end_col_offset]
    rows[0] = rows[0][node.col_offset if first == node.lineno else 0 :]
    return b"\n".join(rows).decode()


def _first_line(node: ast.stmt) -> int:
    """First line of a statement, 1-based, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(part.lineno for part in (node, *decorators))
