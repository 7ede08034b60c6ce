"""Times several ways of doing the same: shuffled rounds, medians, ratios of medians, and two files."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TypeAlias

ROOT = Path(__file__).parents[2]

#: (operation, way) -> what to time.
Measures: TypeAlias = Mapping[tuple[str, str], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one way takes as another.

    Args:
        operation: what both do.
        slower, faster: the ways; their medians are divided.
        bar: the least that the ratio should be; None where it is only reported.
    """

    operation: str
    slower: str
    faster: str
    bar: float | None


def compare(
    section: str,
    measures: Measures,
    ratios: Mapping[str, Ratio],
    rounds: int,
    facts: Mapping[str, object],
    tokens: Mapping[tuple[str, str], int] | None = None,
) -> None:
    """Time everything, print, and write ``runs/bench/<section>.json`` and ``.md``.

    A busy moment of the machine falls on all ways alike, since each round takes them in another order.

    Args:
        tokens: forwarded by each way, where that says something.

    Raises:
        SystemExit: a ratio is below its bar.
    """
    for measure in measures.values():
        measure()  # fills caches and thread pools, starts what stays
    samples_s: dict[tuple[str, str], list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        order = list(measures)
        random.Random(number).shuffle(order)
        for name in order:
            started = time.perf_counter()
            measures[name]()
            samples_s[name].append(time.perf_counter() - started)
    medians = {name: median(times) for name, times in samples_s.items()}
    found = {
        key: medians[ratio.operation, ratio.slower] / medians[ratio.operation, ratio.faster]
        for key, ratio in ratios.items()
    }
    facts = {
        "rounds": rounds,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        **facts,
    }
    table = [f"{rounds} shuffled rounds; {json.dumps(facts)}", "", *_times(samples_s, tokens), ""]
    table += ["| ratio | value | bar |", "| --- | ---: | ---: |"]
    table += [f"| {key} | {found[key]:.2f} | {ratio.bar or '-'} |" for key, ratio in ratios.items()]
    print("\n".join(table))
    target = ROOT / "runs" / "bench" / f"{section}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    named = {", ".join(name): times for name, times in samples_s.items()}
    target.write_text(json.dumps({**facts, **found, "samples_s": named}, indent=2) + "\n")
    target.with_suffix(".md").write_text("\n".join(table) + "\n")
    print(f"\nwritten: {target.relative_to(ROOT)} and .md")
    missed = [key for key, ratio in ratios.items() if ratio.bar is not None and found[key] < ratio.bar]
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


def _times(
    samples_s: Mapping[tuple[str, str], list[float]], tokens: Mapping[tuple[str, str], int] | None
) -> list[str]:
    """A row for each way of each operation, tokens only where they are counted."""
    head = "| operation | way | median ms | quartiles |"
    rows = [head, "| --- | --- | ---: | --- |"]
    if tokens is not None:
        rows = [head + " tokens forwarded | tokens/s |", rows[1] + " ---: | ---: |"]
    for name, times in sorted(samples_s.items()):
        low, middle, high = quantiles(times, n=4)
        row = f"| {' | '.join(name)} | {1000 * middle:.1f} | {1000 * low:.1f} to {1000 * high:.1f} |"
        if tokens is not None:
            count = tokens.get(name)
            row += f" {count} | {count / middle:.0f} |" if count else " - | - |"
        rows.append(row)
    return rows
