"""Count how often test tasks were opened: what is looked at again and again is no test any more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from envkit.types import JSON, Task

#: Field of a run's manifest: environment -> number of this opening of its test tasks.
FIELD: Final = "test_openings"


def openings(root: Path, tasks: Mapping[str, Sequence[Task]]) -> dict[str, JSON]:
    """Return the manifest's field for a new run, empty if it opens no test task.

    Args:
        root: parent of the run folders. Runs in it that opened test tasks of an environment are counted.
        tasks: the tasks that the run measures on, by environment.
    """
    found: dict[str, JSON] = {}
    for name, measured in tasks.items():
        if any(task.split == "test" for task in measured):
            earlier = sum(_has_opened(path, name) for path in root.glob("*/manifest.json"))
            found[name] = earlier + 1
    return {FIELD: found} if found else {}


def opening_note(manifest: Mapping[str, Any], environment: str) -> list[str]:
    """A sentence for the report of a run that measured on test tasks; none for other runs."""
    opening = manifest.get(FIELD, {}).get(environment)
    said = (
        f"Measured on test tasks, as run {opening} in its folder. The more such runs, the less a test proves."
    )
    return [said] if opening else []


def _has_opened(manifest: Path, environment: str) -> bool:
    """True if a run opened an environment's test tasks. Runs of graded-again episodes opened nothing."""
    try:
        fields: object = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(fields, dict):
        return False
    known = cast("dict[str, Any]", fields)
    return "rescored" not in known and environment in (known.get(FIELD) or {})
