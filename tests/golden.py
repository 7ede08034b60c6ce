"""Golden files: behaviour that must not change unnoticed.

After an intended change, write them again: ``GOLDEN=write make test ARGS='-k golden'``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "goldens"
DURATIONS = {"seconds", "rollout_s", "learn_s"}


def expect(name: str, found: Any) -> None:
    """Compare plain data with the golden file of that name, durations left out and floats to 5 digits."""
    text = json.dumps(_steady(found), indent=1, sort_keys=True) + "\n"
    path = FOLDER / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert json.loads(text) == json.loads(path.read_text())


def expect_text(name: str, found: str) -> None:
    """Compare a text with the golden file of that name, line by line."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(found)
    assert found.splitlines() == path.read_text().splitlines()


def _steady(data: Any) -> Any:
    match data:
        case dict():
            return {key: _steady(value) for key, value in data.items() if key not in DURATIONS}
        case list() | tuple():
            return [_steady(each) for each in data]
        case float():
            return float(f"{data:.5g}")
        case _:
            return data
