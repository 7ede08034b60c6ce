"""Output of commands: results on stdout, errors on stderr, or one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from rich.console import Console

#: Errors and warnings; results go to stdout.
err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def emit(data: Any) -> None:
    """Print one JSON object to stdout, for ``--json``; numbers that are not finite become null."""
    print(json.dumps(_plain(data), allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
