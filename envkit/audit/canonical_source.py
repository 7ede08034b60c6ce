"""Python source reduced to what can change its behaviour, in a form that no version of Python changes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import TypeAlias

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: Fields of nodes that only repeat information from elsewhere in the tree.
_REDUNDANT = ("ctx", "kind", "type_comment")


def parse(source: bytes) -> ast.Module | None:
    """The syntax tree of a file; ``None`` if it is not valid Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def canonical(tree: ast.Module) -> bytes:
    """A syntax tree without comments, formatting and docstrings, except the docstrings of tools.

    `ast.dump` and `ast.unparse` give other text in newer versions of Python, which have more fields and quote
    strings in other ways. Here empty fields are left out, and f-strings have one form.
    """
    return b"".join(_written(tree))


def source_digest(source: bytes) -> str:
    """SHA-256 of a Python file as `canonical` gives it; of its bytes if it is not valid Python."""
    tree = parse(source)
    return hashlib.sha256(source if tree is None else canonical(tree)).hexdigest()


def _written(tree: ast.Module) -> Iterator[bytes]:
    # An explicit stack, because the depth at which recursion fails differs between versions.
    waiting: list[object] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes):
            yield item
        elif isinstance(item, list):
            yield b"["
            waiting += [b"]", *reversed(item)]  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(item, ast.AST):
            yield f"({type(item).__name__}".encode()
            waiting.append(b")")
            for name in reversed(item._fields):
                if name not in _REDUNDANT and (value := _field(item, name)) not in (None, []):
                    waiting += [value, f" {name}=".encode()]
        else:
            yield _literal(item)


def _field(node: ast.AST, name: str) -> object:
    value = getattr(node, name, None)  # None: a field that the grammar makes optional
    if isinstance(node, ast.Constant):
        return _literal(value)
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values)
    if name == "body" and isinstance(node, _Documented) and not _is_tool(node):
        has_docstring = ast.get_docstring(node, clean=False) is not None
        return node.body[1:] if has_docstring else node.body
    return value


def _is_tool(node: _Documented) -> bool:
    """True for a function marked with ``@tool``, whose docstring agents read."""
    marks = [] if isinstance(node, ast.Module) else node.decorator_list
    names = [mark.func if isinstance(mark, ast.Call) else mark for mark in marks]
    return "tool" in (getattr(name, "id", getattr(name, "attr", "")) for name in names)


def _joined(parts: list[ast.expr]) -> list[object]:
    """The parts of an f-string. Neighbouring texts are joined: versions of Python split them differently."""
    found: list[object] = []
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        found += [_literal(text), part] if text else [part]
        text = ""
    return [*found, _literal(text)] if text else found


def _literal(value: object) -> bytes:
    """A constant with its type and length, so that no two constants give the same bytes."""
    if isinstance(value, str):
        data = value.encode(errors="surrogatepass")
    elif isinstance(value, bytes):
        data = value
    elif isinstance(value, int) and not isinstance(value, bool):
        data = hex(value).encode()  # `str` refuses more than 4,300 digits
    else:
        data = repr(value).encode()
    return f"{type(value).__name__} {len(data)}:".encode() + data
