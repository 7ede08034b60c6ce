"""Golden files: behaviour that must not change unnoticed.

After an intended change, write them again: ``GOLDEN=write make test ARGS='-k golden'``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parents[1] / "goldens"
DURATIONS = {"seconds", "rollout_s", "learn_s"}


def expect(name: str, found: Any) -> None:
    """Compare plain data with the golden file of that name, durations left out.

    Floats may differ by a hundred-thousandth, and by what a sum in float32 depends on the processor.
    """
    text = json.dumps(_steady(found), indent=1, sort_keys=True) + "\n"
    path = FOLDER / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    old, new = _flat(json.loads(path.read_text())), _flat(json.loads(text))
    differ = [place for place in {**old, **new} if not _close(old.get(place, ...), new.get(place, ...))]
    assert not differ, f"{path.name}: {differ[0]} is {new.get(differ[0])!r}, was {old.get(differ[0])!r}"


def _close(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-5, abs_tol=1e-6)
    return type(old) is type(new) and old == new


def expect_text(name: str, found: str) -> None:
    """Compare a text with the golden file of that name, line by line."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(found)
    assert found.splitlines() == path.read_text().splitlines()


def _flat(data: Any, place: str = "") -> dict[str, Any]:
    """Values by their place in nested data; an empty list or object is a value."""
    if isinstance(data, dict | list) and data:
        inner = cast("dict[Any, Any]", data).items() if isinstance(data, dict) else enumerate(data)
        return {key: value for name, part in inner for key, value in _flat(part, f"{place}/{name}").items()}
    return {place: data}


def _steady(data: Any) -> Any:
    match data:
        case dict():
            return {key: _steady(value) for key, value in data.items() if key not in DURATIONS}
        case list() | tuple():
            return [_steady(each) for each in data]
        case float():
            return float(
                f"{data:.7g}"
            )  # finer than what may differ, or rounding could turn a little into more
        case _:
            return data
