"""Rules for one argument that is a list of rows: tables, records, and graphs given as edges or neighbours."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from envkit.environments.code_editor.inputs.rules.lists import in_order_by_chance, orders
from envkit.environments.code_editor.inputs.rules.rule import (
    ArgKey,
    Arguments,
    Rule,
    cells,
    fit_length,
    sort_key,
)

_GRAPH = re.compile(r"\b(?:tree|graph|edges?|roads?|nodes?|cities|connect\w*)\b", re.IGNORECASE)
_SQUARE = re.compile(r"\bn ?x ?n\b|square|matrix", re.IGNORECASE)
#: Longest row whose columns are compared with each other.
_MAX_RECORD = 4


def table_rules(key: ArgKey, seen: Sequence[Any], statement: str) -> Iterator[Rule]:
    """Candidate rules for a list of rows.

    Args:
        key: the argument.
        seen: its values in the examples.
        statement: the problem in words.
    """
    rows = [row for value in seen for row in value]
    yield Rule(f"rows not empty: {key}", lambda arguments: all(len(row) > 0 for row in arguments[key]))
    if len(rows) > len(seen):
        yield _equal_rows(key)
    if _SQUARE.search(statement) and all(len(value) == len(row) for value in seen for row in value):
        yield _square(key)
        yield _symmetric(key)
    if rule := _same_cells(key, seen):
        yield rule
        return
    if not all(type(cell) is int for cell in cells(rows)):
        return
    yield from _order_rules(key, seen, statement)
    if _GRAPH.search(statement):
        yield from _graph_rules(key)
    width = min(map(len, rows), default=0)
    if len(rows) > 2 and width == max(map(len, rows)) and 1 < width <= _MAX_RECORD:
        for strict in (True, False):
            for first, last in itertools.permutations(range(width), 2):
                yield _columns(key, first, last, strict=strict)
    if len(rows) > 2:
        yield Rule(
            f"rows of distinct items: {key}",
            lambda arguments: all(len({*row}) == len(row) for row in arguments[key]),
        )


def _equal_rows(key: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[key]
        width = max(1, len(rng.choice(rows)))
        arguments[key] = [fit_length(row, width, cells(rows), rng) for row in rows]

    return Rule(
        f"rows equally long: {key}",
        lambda arguments: len({len(row) for row in arguments[key]}) <= 1,
        fix,
    )


def _square(key: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[key]
        arguments[key] = [fit_length(row, len(rows), cells(rows), rng) for row in rows]

    return Rule(f"square: {key}", lambda a: all(len(row) == len(a[key]) for row in a[key]), fix)


def _symmetric(key: ArgKey) -> Rule:
    def holds(arguments: Arguments) -> bool:
        rows = arguments[key]
        return all(rows[i][j] == rows[j][i] for i, j in itertools.combinations(range(len(rows)), 2))

    def fix(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[key]
        for one, other in itertools.combinations(range(len(rows)), 2):
            rows[other][one] = rows[one][other]

    return Rule(f"symmetric: {key}", holds, fix)


def _same_cells(key: ArgKey, seen: Sequence[Any]) -> Rule | None:
    """The rule that all tables have the same cells in any order; ``None`` if the examples break it."""
    base = seen[0]
    known, lengths = sorted(map(sort_key, cells(base))), [len(row) for row in base]
    if all(value == base for value in seen):
        return None

    def holds(arguments: Arguments) -> bool:
        rows = arguments[key]
        return sorted(map(sort_key, cells(rows))) == known and [len(row) for row in rows] == lengths

    def fix(arguments: Arguments, rng: random.Random) -> None:
        mixed = iter(rng.sample(cells(base), len(known)))
        arguments[key] = [[next(mixed) for _ in row] for row in base]

    return Rule(f"the same cells: {key}", holds, fix) if all(holds({key: v}) for v in seen) else None


def _order_rules(key: ArgKey, seen: Sequence[Any], statement: str) -> Iterator[Rule]:
    """Rules for the order of cells: through the whole table, along rows, along columns."""
    if not in_order_by_chance([cells(value) for value in seen], statement):
        for name, arrange in orders():

            def flat(arguments: Arguments, rng: random.Random) -> None:
                some = iter(sorted(cells(arguments[key])))
                arguments[key] = [[next(some) for _ in row] for row in arguments[key]]

            yield Rule(f"cells {name}: {key}", lambda a, f=arrange: cells(a[key]) == f(cells(a[key])), flat)
    if not in_order_by_chance([row for value in seen for row in value], statement):
        for name, arrange in orders():

            def along(arguments: Arguments, rng: random.Random) -> None:
                arguments[key] = [sorted(row) for row in arguments[key]]

            yield Rule(
                f"rows {name}: {key}",
                lambda a, f=arrange: all(list(row) == f(row) for row in a[key]),
                along,
            )
        # Sorted columns of sorted rows leave the rows sorted.
        yield Rule(
            f"columns ascending: {key}",
            lambda a: all(list(c) == sorted(c) for c in zip(*a[key], strict=True)),
            lambda a, rng: a.update(
                {key: [list(row) for row in zip(*map(sorted, zip(*a[key], strict=True)), strict=True)]}
            ),
        )


def _columns(key: ArgKey, first: int, last: int, *, strict: bool) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        for row in arguments[key]:
            if row[first] > row[last]:
                row[first], row[last] = row[last], row[first]
            if strict and row[first] == row[last]:
                row[last] += 1

    return Rule(
        f"[{first}] {'<' if strict else '<='} [{last}] in {key}",
        lambda a: all(row[first] < row[last] + (not strict) for row in a[key]),
        fix,
    )


# Graphs: a list of edges, or a list of neighbours for each node.


def _graph_rules(key: ArgKey) -> Iterator[Rule]:
    def tree(arguments: Arguments, rng: random.Random) -> None:
        count, low = len(arguments[key]) + 1, rng.choice((0, 1))
        names = rng.sample(range(low, low + count), count)
        arguments[key] = [rng.sample([names[rng.randrange(i)], names[i]], 2) for i in range(1, count)]

    def without_repeats(arguments: Arguments, rng: random.Random) -> None:
        arguments[key] = list({frozenset(pair): pair for pair in arguments[key]}.values())

    def mutual(arguments: Arguments, rng: random.Random) -> None:
        nodes = range(len(arguments[key]))
        pairs = {frozenset((i, j)) for i in nodes for j in arguments[key][i] if j in nodes and i != j}
        arguments[key] = [[j for j in nodes if frozenset((i, j)) in pairs and i != j] for i in nodes]

    yield Rule(f"a tree: {key}", lambda a: _is_tree(a[key]), tree)
    yield Rule(
        f"no pair twice: {key}", lambda a: len({*map(frozenset, a[key])}) == len(a[key]), without_repeats
    )
    yield Rule(
        f"neighbours of each other: {key}",
        lambda a: all(i != j and i in a[key][j] for i, row in enumerate(a[key]) for j in row),
        mutual,
    )


def _is_tree(pairs: Sequence[Any]) -> bool:
    """True if edges join nodes, numbered from 0 or 1, into one tree."""
    nodes = sorted({*cells(pairs)})
    if not nodes:
        return True
    if nodes[0] not in (0, 1) or nodes != list(range(nodes[0], nodes[0] + len(pairs) + 1)):
        return False
    joined: dict[int, set[int]] = {node: {node} for node in nodes}
    for one, other in pairs:
        joined[one] |= joined[other]
        for node in joined[one]:
            joined[node] = joined[one]
    return len(joined[nodes[0]]) == len(nodes)
