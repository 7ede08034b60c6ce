"""Shorten docstrings of sliced code to a summary, or remove them."""

from __future__ import annotations

import ast
import re
import textwrap

from envkit.runtime.syntax import parse

#: Longest docstring that stays in the function to repair, in characters.
MAX_SUMMARY = 160
#: Most characters of a description.
_MAX_DESCRIPTION = 600

_AFTER_SUMMARY = re.compile(r"\n\s*\n|(?:\n|^)\s*(?:>>>|(?:For )?Examples?\b)", re.IGNORECASE)


def without_docstrings(text: str, keep: str = "") -> str:
    """Remove all docstrings from the text of a definition; the outermost is replaced by ``keep`` if given."""
    lines = text.split("\n")
    tree = parse(text).body[0]
    cuts: list[tuple[int, int, str]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = node.body[0]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
            continue
        if not isinstance(first.value.value, str) or first.lineno == node.lineno:
            continue
        new = " " * first.col_offset + f'"""{keep}"""' if node is tree and keep else ""
        if len(node.body) == 1 and not new:
            new = " " * first.col_offset + "pass"
        cuts.append((first.lineno, first.end_lineno or first.lineno, new))
    for start, end, new in sorted(cuts, reverse=True):
        while not new and end < len(lines) and not lines[end].strip():
            end += 1
        lines[start - 1 : end] = [new] if new else []
    return "\n".join(line.rstrip() for line in lines)


def description(docstring: str) -> str:
    r"""What a docstring says after its summary, without examples: a few paragraphs, or nothing.

    >>> description("Adds.\n\nNumbers only.\n\n>>> add(1, 2)\n3")
    'Numbers only.'
    """
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", docstring.strip())[1:]]
    kept: list[str] = []
    for paragraph in paragraphs:
        if ">>>" in paragraph or _AFTER_SUMMARY.match(paragraph):
            continue
        if sum(map(len, kept)) + len(paragraph) > _MAX_DESCRIPTION:
            break
        kept.append(textwrap.dedent(paragraph))
    return "\n".join(kept)


def summary(docstring: str) -> str:
    r"""The first paragraph of a docstring on one line, or its first sentence if that is too long.

    >>> summary("Adds two numbers.\n\n>>> add(1, 2)\n3")
    'Adds two numbers.'
    """
    paragraph = _AFTER_SUMMARY.split(docstring.strip(), maxsplit=1)[0]
    line = " ".join(paragraph.split())
    if len(line) > MAX_SUMMARY:
        line = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
    if len(line) > MAX_SUMMARY:
        line = line[: MAX_SUMMARY - 3].rsplit(" ", 1)[0] + "..."
    # The result goes between triple quotes: no quotes and no escapes.
    return line.replace("\\", "").replace('"', "'")
