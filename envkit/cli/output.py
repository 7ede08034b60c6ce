"""Output of commands: results on stdout, errors on stderr, or one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, cast, final

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from envkit.measure.report.tables import Table


@final
class _Console(Console):
    """Leaves it to the program what to do when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        raise  # the error that is being handled; rich would exit with 1


#: Errors and warnings; results go to stdout.
err = Console(stderr=True, highlight=False)
out = _Console(highlight=False)


def print_table(content: Table) -> None:
    """Print a table. In a narrow terminal, long words go on in the next line; nothing is cut."""
    from rich import table as rich_table

    out.print(content.caption, markup=False, soft_wrap=True)
    table = rich_table.Table(box=None)
    for title in content.head:
        table.add_column(escape(title), overflow="fold")
    for row in content.rows:
        table.add_row(*map(escape, row))
    out.print(table)


def emit(data: Any) -> None:
    """Print one JSON value to stdout, for ``--json``; numbers that are not finite become null."""
    print(json.dumps(_plain(data), allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
