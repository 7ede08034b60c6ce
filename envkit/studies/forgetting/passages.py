"""Passages of text that no task is made from: a file's paragraphs, or an installed package's docstrings."""

from __future__ import annotations

import ast
import importlib.util
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envkit.errors import UsageError
from envkit.runtime.files import read_regular_file

#: Characters of a passage: shorter ones say little, longer ones are cut.
_FEWEST, _MOST = 200, 2_000
#: Docstrings that are read for each that is drawn, in files of random order: a large package has thousands.
_READ: Final = 8
#: Larger files are left out.
_MAX_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Passage:
    """A text.

    Args:
        source: the file that it stands in: the cluster of statistics.
        text: 200 to 2,000 characters.
    """

    source: str
    text: str


def passages_of(texts: Sequence[Path], package: str, count: int, seed: int = 0) -> list[Passage]:
    """Draw passages from text files; or, without any, from a package's docstrings.

    Args:
        texts: files in UTF-8.
        package: name of an installed package. Nothing of it is imported or run.
        count: number of passages; fewer if there are not so many.
        seed: which ones are drawn.

    Raises:
        UsageError: a file cannot be read, the package is not installed, or there is no passage.
    """
    draw, found = random.Random(seed), dict[str, Passage]()
    for path in texts:
        for text in _joined(_read(path).replace("\r\n", "\n").split("\n\n")):
            found.setdefault(text, Passage(str(path), text))
    if not texts:
        for passage in _docstrings(package, draw):
            if len(found) >= _READ * count:
                break
            found.setdefault(passage.text, passage)
    if not found:
        where = ", ".join(map(str, texts)) or f"the docstrings of {package}"
        raise UsageError(f"no passage of {_FEWEST} characters or more in {where}")
    return draw.sample([*found.values()], min(count, len(found)))


def _read(path: Path) -> str:
    try:
        return read_regular_file(path, _MAX_BYTES).decode()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not text in UTF-8 ({error})") from error


def _joined(paragraphs: Sequence[str]) -> Iterator[str]:
    """Join paragraphs to passages that are long enough."""
    held = ""
    for paragraph in paragraphs:
        held = f"{held}\n\n{paragraph}".strip()
        if len(held) >= _FEWEST:
            yield held[:_MOST]
            held = ""


def _docstrings(package: str, draw: random.Random) -> Iterator[Passage]:
    try:
        spec = importlib.util.find_spec(package) if "." not in package else None
    except ValueError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise UsageError(f"no package {package!r} is installed; give a text file or another package")
    for folder in map(Path, folders):
        paths = sorted(folder.rglob("*.py"))
        for path in draw.sample(paths, len(paths)):
            if path.stat().st_size > _MAX_BYTES:
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # such as a template
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node) or ""
                    if len(text) >= _FEWEST:
                        yield Passage(str(path.relative_to(folder)), text[:_MOST])
