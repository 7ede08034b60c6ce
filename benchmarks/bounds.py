"""Measure numbers part by part, compare them with bounds, and write them to two files."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import side_by_side
from side_by_side import machine

from envkit.runtime.store import write_atomic
from envkit.training.learner.heap import release_freed_memory

#: Numbers that a part of a benchmark has found: by name, with the unit in it; one of each round.
Found: TypeAlias = Mapping[str, Sequence[float]]
#: Measures a part.
Part: TypeAlias = Callable[[], Found]


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on a number, or on a ratio of two.

    Args:
        part: that finds them.
        number: its name; the median counts.
        over: name of the number that it is divided by; ``None`` for none.
        least, most: bounds; ``None`` if it is only reported.
    """

    part: str
    number: str
    over: str | None = None
    least: float | None = None
    most: float | None = None

    def value(self, found: Found) -> float | None:
        """The number or ratio; ``None`` if it was not measured."""
        if self.number not in found or (self.over is not None and self.over not in found):
            return None
        return median(found[self.number]) / (1.0 if self.over is None else median(found[self.over]))

    def is_missed(self, value: float) -> bool:
        """True if a value is out of bounds, or is no number."""
        low = float("-inf") if self.least is None else self.least
        high = float("inf") if self.most is None else self.most
        return not low <= value <= high


def measure(
    section: str, parts: Mapping[str, Part], bounds: Mapping[str, Bound], facts: Mapping[str, object]
) -> None:
    """Measure some parts, and write ``runs/bench/<section>.json`` and ``.md`` after each.

    The files keep the results of other parts, each with its own date and facts.

    Raises:
        SystemExit: a number of these parts is out of bounds, or the file has another format.
    """
    done = _read_earlier(section)
    for name, part in parts.items():
        start = {"date": time.strftime("%Y-%m-%d %H:%M"), "load": round(os.getloadavg()[0], 1)}
        print(f"\n{name}: since {start['date']}, load {start['load']}", flush=True)
        found = {number: [*values] for number, values in part().items()}
        gc.collect()
        release_freed_memory()
        done[name] = {"facts": start | machine() | dict(facts), "found": found}
        _write(section, done, bounds)
    missed = [
        key
        for key, bound in bounds.items()
        if bound.part in parts
        and (value := bound.value(done[bound.part]["found"])) is not None
        and bound.is_missed(value)
    ]
    if missed:
        raise SystemExit(f"out of bounds: {', '.join(missed)}")


def _read_earlier(section: str) -> dict[str, Any]:
    target = side_by_side.file_of(section)
    if not target.exists():
        return {}
    try:
        return {
            name: {"facts": dict(part["facts"]), "found": dict(part["found"])}
            for name, part in json.loads(target.read_text())["parts"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SystemExit(
            f"{target} does not say when each part was measured ({error!r}); move it elsewhere first"
        ) from None


def _write(section: str, done: Mapping[str, Any], bounds: Mapping[str, Bound]) -> None:
    values = {
        key: value
        for key, bound in bounds.items()
        if bound.part in done and (value := bound.value(done[bound.part]["found"])) is not None
    }
    table = ["| part | number | median | lowest to highest |", "| --- | --- | ---: | --- |"]
    for name, part in done.items():
        for number, found in part["found"].items():
            spread = f"{min(found):.4g} to {max(found):.4g}" if len(found) > 1 else "-"
            table.append(f"| {name} | {number} | {median(found):.4g} | {spread} |")
    table += ["", "| bound | value | expected |", "| --- | ---: | --- |"]
    table += [f"| {key} | {value:.3g} | {_expected(bounds[key])} |" for key, value in values.items()]
    table += ["", "| part | measured | on |", "| --- | --- | --- |"]
    for name, part in done.items():
        others = ", ".join(f"{key} {fact}" for key, fact in part["facts"].items() if key != "date")
        table.append(f"| {name} | {part['facts']['date']} | {others} |")
    target = side_by_side.file_of(section)
    print("\n".join(table))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps({**values, "parts": done}, indent=2) + "\n").encode())
    write_atomic(target.with_suffix(".md"), ("\n".join(table) + "\n").encode())
    print(f"\nwritten: {target.relative_to(side_by_side.ROOT)} and .md", flush=True)


def _expected(bound: Bound) -> str:
    limits = [
        f"{word} {limit}"
        for word, limit in (("at least", bound.least), ("at most", bound.most))
        if limit is not None
    ]
    return " and ".join(limits) or "-"
