"""Times several ways of doing the same: shuffled rounds, medians, ratios of medians, and two files."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

from envkit.store import write_atomic

ROOT = Path(__file__).parents[1]

#: (operation, way) -> what to time.
Measures: TypeAlias = Mapping[tuple[str, str], Callable[[], object]]
#: The same of one operation, by way.
Ways: TypeAlias = Mapping[str, Callable[[], object]]
#: Opens what an operation needs; closed, none of it is left.
Operation: TypeAlias = Callable[[], AbstractContextManager[Ways]]
#: (operation, way) -> seconds of each round.
Samples: TypeAlias = Mapping[tuple[str, str], list[float]]


@dataclass(frozen=True, slots=True)
class Halted:
    """A way that is halted while others are timed, lest it take time from them.

    Args:
        run: what to time.
        awake: it is not halted in there.
    """

    run: Callable[[], object]
    awake: Callable[[], AbstractContextManager[object]]

    def __call__(self) -> object:
        return self.run()


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
    samples_s = _timed(measures, rounds)
    found = _found(samples_s, ratios)
    facts = _machine(rounds) | dict(facts)
    head = f"{rounds} shuffled rounds; {json.dumps(facts)}"
    table = [head, "", *_times(samples_s, tokens), "", *_against_bars(found, ratios)]
    _write(section, {**facts, **found, "samples_s": _named(samples_s)}, table)
    _require_bars(found, ratios)


def compare_each(
    section: str,
    operations: Mapping[str, Operation],
    ratios: Mapping[str, Ratio],
    rounds: int,
    facts: Mapping[str, object],
    tokens: Mapping[tuple[str, str], int] | None = None,
) -> None:
    """As `compare`, with one operation at a time in memory, into what the files hold of others.

    An operation's ways are always of one run, side by side: it is written when it is done, in place of all
    that was measured of it before. Each has facts of its own, and its own date.

    Args:
        operations: to time now, in order.

    Raises:
        SystemExit: a ratio of these operations is below its bar, or the file there is not one of these.
    """
    samples_s, done = _before(section)
    found: dict[str, float] = {}
    for operation, opened in operations.items():
        began = {"date": time.strftime("%Y-%m-%d %H:%M"), "load": round(os.getloadavg()[0], 1)}
        print(f"\n{operation}: since {began['date']}, load {began['load']}", flush=True)
        fresh = _opened(operation, opened, rounds)
        _let_go()
        samples_s = {name: times for name, times in samples_s.items() if name[0] != operation} | fresh
        done[operation] = began | _machine(rounds) | dict(facts)
        found = _found(samples_s, _timed_both(samples_s, ratios))
        table = [*_measured(done), "", *_times(samples_s, tokens), "", *_against_bars(found, ratios)]
        _write(section, {**found, "operations": done, "samples_s": _named(samples_s)}, table)
    _require_bars(found, {key: ratio for key, ratio in ratios.items() if ratio.operation in operations})


def _opened(operation: str, opened: Operation, rounds: int) -> Samples:
    with opened() as ways:
        return _timed({(operation, way): measure for way, measure in ways.items()}, rounds)


def _let_go() -> None:
    """Hand back to the system what an operation held; glibc keeps it otherwise, to use it again."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _timed(measures: Measures, rounds: int) -> Samples:
    for measure in measures.values():
        with _awake(measure):
            measure()  # fills caches and thread pools, starts what stays
    samples_s: dict[tuple[str, str], list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        order = list(measures)
        random.Random(number).shuffle(order)
        for name in order:
            with _awake(measures[name]):
                started = time.perf_counter()
                measures[name]()
                samples_s[name].append(time.perf_counter() - started)
    return samples_s


def _awake(measure: Callable[[], object]) -> AbstractContextManager[object]:
    return measure.awake() if isinstance(measure, Halted) else nullcontext()


def _machine(rounds: int) -> dict[str, object]:
    return {
        "rounds": rounds,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }


def _found(samples_s: Samples, ratios: Mapping[str, Ratio]) -> dict[str, float]:
    medians = {name: median(times) for name, times in samples_s.items()}
    return {
        key: medians[ratio.operation, ratio.slower] / medians[ratio.operation, ratio.faster]
        for key, ratio in ratios.items()
    }


def _timed_both(samples_s: Samples, ratios: Mapping[str, Ratio]) -> dict[str, Ratio]:
    """The ratios both of whose ways were timed."""
    return {
        key: ratio
        for key, ratio in ratios.items()
        if {(ratio.operation, ratio.slower), (ratio.operation, ratio.faster)} <= samples_s.keys()
    }


def _file(section: str) -> Path:
    return ROOT / "runs" / "bench" / f"{section}.json"


def _before(section: str) -> tuple[Samples, dict[str, Mapping[str, object]]]:
    """Samples and facts of the operations measured before."""
    target = _file(section)
    if not target.exists():
        return {}, {}
    try:
        held: Any = json.loads(target.read_text())
        done: dict[str, Mapping[str, object]] = dict(held["operations"])
        pairs = {tuple(name.split(", ", 1)): list(times) for name, times in held["samples_s"].items()}
        return {(operation, way): times for (operation, way), times in pairs.items()}, done
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SystemExit(
            f"{target} does not say when each operation was measured ({error!r}); move it elsewhere first"
        ) from None


def _named(samples_s: Samples) -> dict[str, list[float]]:
    return {", ".join(name): times for name, times in samples_s.items()}


def _write(section: str, record: Mapping[str, object], table: list[str]) -> None:
    target = _file(section)
    print("\n".join(table))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps(record, indent=2) + "\n").encode())
    write_atomic(target.with_suffix(".md"), ("\n".join(table) + "\n").encode())
    print(f"\nwritten: {target.relative_to(ROOT)} and .md", flush=True)


def _require_bars(found: Mapping[str, float], ratios: Mapping[str, Ratio]) -> None:
    missed = [key for key, ratio in ratios.items() if key in found and found[key] < (ratio.bar or 0.0)]
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


def _measured(done: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A row for each operation: when it was measured, and how."""
    rows = ["| operation | measured | on |", "| --- | --- | --- |"]
    for operation, facts in sorted(done.items()):
        others = ", ".join(f"{name} {fact}" for name, fact in facts.items() if name != "date")
        rows.append(f"| {operation} | {facts['date']} | {others} |")
    return rows


def _against_bars(found: Mapping[str, float], ratios: Mapping[str, Ratio]) -> list[str]:
    rows = ["| ratio | value | bar |", "| --- | ---: | ---: |"]
    return rows + [f"| {key} | {value:.2f} | {ratios[key].bar or '-'} |" for key, value in found.items()]


def _times(samples_s: Samples, tokens: Mapping[tuple[str, str], int] | None) -> list[str]:
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
