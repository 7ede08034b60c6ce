"""Time several ways of doing the same work in shuffled rounds; write medians and ratios to two files."""

from __future__ import annotations

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

from envkit.runtime.store import write_atomic
from envkit.training.learner.heap import release_freed_memory

ROOT = Path(__file__).parents[1]

#: (operation, way) -> function to time.
Measures: TypeAlias = Mapping[tuple[str, str], Callable[[], object]]
#: Way -> function to time, for one operation.
Ways: TypeAlias = Mapping[str, Callable[[], object]]
#: Context manager that sets up an operation, yields its ways, and releases everything on exit.
Operation: TypeAlias = Callable[[], AbstractContextManager[Ways]]
#: (operation, way) -> seconds of each round.
Samples: TypeAlias = Mapping[tuple[str, str], list[float]]


@dataclass(frozen=True, slots=True)
class Paused:
    """A way whose processes are paused while others are timed, so that they take no time from them.

    Args:
        run: the function to time.
        resumed: returns a context in which its processes run.
    """

    run: Callable[[], object]
    resumed: Callable[[], AbstractContextManager[object]]

    def __call__(self) -> object:
        return self.run()


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of the times of two ways.

    Args:
        operation: the operation that both do.
        slower, faster: the ways; their medians are divided.
        bar: the least acceptable ratio; None if it is only reported.
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
    """Time all ways, print the results, and write ``runs/bench/<section>.json`` and ``.md``.

    Each round has another order, so that a busy moment of the machine affects all ways.

    Args:
        tokens: number of tokens that each way forwards, if it is reported.

    Raises:
        SystemExit: a ratio is below its bar.
    """
    samples_s = _time_ways(measures, rounds)
    found = _ratios(samples_s, ratios)
    facts = {"rounds": rounds} | machine() | dict(facts)
    head = f"{rounds} shuffled rounds; {json.dumps(facts)}"
    table = [head, "", *_time_table(samples_s, tokens), "", *_ratio_table(found, ratios)]
    _write(section, {**facts, **found, "samples_s": _joined_names(samples_s)}, table)
    _require_bars(found, ratios)


def compare_each(
    section: str,
    operations: Mapping[str, Operation],
    ratios: Mapping[str, Ratio],
    rounds: int,
    facts: Mapping[str, object],
    tokens: Mapping[tuple[str, str], int] | None = None,
) -> None:
    """Like `compare`, but set up one operation at a time, and keep the files' results of other operations.

    All ways of an operation come from one run. Its results are written when it is done and replace earlier
    ones. Each operation has its own facts and date.

    Args:
        operations: the operations to time, in order.

    Raises:
        SystemExit: a ratio of these operations is below its bar, or the file has another format.
    """
    samples_s, done = _read_earlier(section)
    found: dict[str, float] = {}
    for operation, operation_ways in operations.items():
        start = {"date": time.strftime("%Y-%m-%d %H:%M"), "load": round(os.getloadavg()[0], 1)}
        print(f"\n{operation}: since {start['date']}, load {start['load']}", flush=True)
        new_samples_s = _time_operation(operation, operation_ways, rounds)
        gc.collect()
        release_freed_memory()
        samples_s = {name: times for name, times in samples_s.items() if name[0] != operation} | new_samples_s
        done[operation] = start | {"rounds": rounds} | machine() | dict(facts)
        found = _ratios(samples_s, _timed_both(samples_s, ratios))
        table = [*_date_table(done), "", *_time_table(samples_s, tokens), "", *_ratio_table(found, ratios)]
        _write(section, {**found, "operations": done, "samples_s": _joined_names(samples_s)}, table)
    _require_bars(found, {key: ratio for key, ratio in ratios.items() if ratio.operation in operations})


def _time_operation(operation: str, operation_ways: Operation, rounds: int) -> Samples:
    with operation_ways() as ways:
        return _time_ways({(operation, way): measure for way, measure in ways.items()}, rounds)


def _time_ways(measures: Measures, rounds: int) -> Samples:
    for measure in measures.values():
        with _resumed(measure):
            measure()  # fills caches and thread pools and starts processes
    samples_s: dict[tuple[str, str], list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        order = list(measures)
        random.Random(number).shuffle(order)
        for name in order:
            with _resumed(measures[name]):
                started = time.perf_counter()
                measures[name]()
                samples_s[name].append(time.perf_counter() - started)
    return samples_s


def _resumed(measure: Callable[[], object]) -> AbstractContextManager[object]:
    return measure.resumed() if isinstance(measure, Paused) else nullcontext()


def machine() -> dict[str, object]:
    """Return facts of this machine."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }


def _ratios(samples_s: Samples, ratios: Mapping[str, Ratio]) -> dict[str, float]:
    medians = {name: median(times) for name, times in samples_s.items()}
    return {
        key: medians[ratio.operation, ratio.slower] / medians[ratio.operation, ratio.faster]
        for key, ratio in ratios.items()
    }


def _timed_both(samples_s: Samples, ratios: Mapping[str, Ratio]) -> dict[str, Ratio]:
    """Return the ratios for which both ways were timed."""
    return {
        key: ratio
        for key, ratio in ratios.items()
        if {(ratio.operation, ratio.slower), (ratio.operation, ratio.faster)} <= samples_s.keys()
    }


def file_of(section: str) -> Path:
    """Return the JSON file of a benchmark's results."""
    return ROOT / "runs" / "bench" / f"{section}.json"


def _read_earlier(section: str) -> tuple[Samples, dict[str, Mapping[str, object]]]:
    """Return samples and facts of the operations measured earlier."""
    target = file_of(section)
    if not target.exists():
        return {}, {}
    try:
        earlier: Any = json.loads(target.read_text())
        done: dict[str, Mapping[str, object]] = dict(earlier["operations"])
        pairs = {tuple(name.split(", ", 1)): list(times) for name, times in earlier["samples_s"].items()}
        return {(operation, way): times for (operation, way), times in pairs.items()}, done
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SystemExit(
            f"{target} does not say when each operation was measured ({error!r}); move it elsewhere first"
        ) from None


def _joined_names(samples_s: Samples) -> dict[str, list[float]]:
    return {", ".join(name): times for name, times in samples_s.items()}


def _write(section: str, record: Mapping[str, object], table: list[str]) -> None:
    target = file_of(section)
    print("\n".join(table))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps(record, indent=2) + "\n").encode())
    write_atomic(target.with_suffix(".md"), ("\n".join(table) + "\n").encode())
    print(f"\nwritten: {target.relative_to(ROOT)} and .md", flush=True)


def _require_bars(found: Mapping[str, float], ratios: Mapping[str, Ratio]) -> None:
    missed = [key for key, ratio in ratios.items() if key in found and found[key] < (ratio.bar or 0.0)]
    if missed:
        raise SystemExit(f"below the bar: {', '.join(missed)}")


def _date_table(done: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return a table of the operations with date and facts of their measurement."""
    rows = ["| operation | measured | on |", "| --- | --- | --- |"]
    for operation, facts in sorted(done.items()):
        others = ", ".join(f"{name} {fact}" for name, fact in facts.items() if name != "date")
        rows.append(f"| {operation} | {facts['date']} | {others} |")
    return rows


def _ratio_table(found: Mapping[str, float], ratios: Mapping[str, Ratio]) -> list[str]:
    rows = ["| ratio | value | bar |", "| --- | ---: | ---: |"]
    return rows + [f"| {key} | {value:.2f} | {ratios[key].bar or '-'} |" for key, value in found.items()]


def _time_table(samples_s: Samples, tokens: Mapping[tuple[str, str], int] | None) -> list[str]:
    """Return a table of the ways' times, with tokens if they are counted."""
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
