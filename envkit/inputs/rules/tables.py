"""Rules of one argument that is a list of rows: tables, records, and graphs written down as either."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from envkit.inputs.rules.lists import in_order_by_chance, orders
from envkit.inputs.rules.rule import ArgKey, Arguments, Rule, cells, fitted, known_by

_GRAPH = re.compile(r"\b(?:tree|graph|edges?|roads?|nodes?|cities|connect\w*)\b", re.IGNORECASE)
_SQUARE = re.compile(r"\bn ?x ?n\b|square|matrix", re.IGNORECASE)
#: Longest row whose places are compared with each other.
_MAX_RECORD = 4


def table_rules(place: ArgKey, seen: Sequence[Any], said: str) -> Iterator[Rule]:
    """Candidates for an argument that is a list of rows.

    Args:
        place: of the argument.
        seen: its values in the examples.
        said: what the task says in words.
    """
    rows = [row for value in seen for row in value]
    yield Rule(f"rows not empty: {place}", lambda arguments: all(len(row) > 0 for row in arguments[place]))
    if len(rows) > len(seen):
        yield _equal_rows(place)
    if _SQUARE.search(said) and all(len(value) == len(row) for value in seen for row in value):
        yield _square(place)
        yield _symmetric(place)
    if rule := _same_cells(place, seen):
        yield rule
        return
    if not all(type(cell) is int for cell in cells(rows)):
        return
    yield from _order_rules(place, seen, said)
    if _GRAPH.search(said):
        yield from _graph_rules(place)
    width = min(map(len, rows), default=0)
    if len(rows) > 2 and width == max(map(len, rows)) and 1 < width <= _MAX_RECORD:
        for strict in (True, False):
            for first, last in itertools.permutations(range(width), 2):
                yield _columns(place, first, last, strict=strict)
    if len(rows) > 2:
        yield Rule(
            f"rows of distinct items: {place}",
            lambda arguments: all(len({*row}) == len(row) for row in arguments[place]),
        )


def _equal_rows(place: ArgKey) -> Rule:
    def mend(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[place]
        width = max(1, len(rng.choice(rows)))
        arguments[place] = [fitted(row, width, cells(rows), rng) for row in rows]

    return Rule(
        f"rows equally long: {place}",
        lambda arguments: len({len(row) for row in arguments[place]}) <= 1,
        mend,
    )


def _square(place: ArgKey) -> Rule:
    def mend(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[place]
        arguments[place] = [fitted(row, len(rows), cells(rows), rng) for row in rows]

    return Rule(f"square: {place}", lambda a: all(len(row) == len(a[place]) for row in a[place]), mend)


def _symmetric(place: ArgKey) -> Rule:
    def holds(arguments: Arguments) -> bool:
        rows = arguments[place]
        return all(rows[i][j] == rows[j][i] for i, j in itertools.combinations(range(len(rows)), 2))

    def mend(arguments: Arguments, rng: random.Random) -> None:
        rows = arguments[place]
        for one, other in itertools.combinations(range(len(rows)), 2):
            rows[other][one] = rows[one][other]

    return Rule(f"symmetric: {place}", holds, mend)


def _same_cells(place: ArgKey, seen: Sequence[Any]) -> Rule | None:
    """That a table has the cells of the examples' in other places; ``None`` where they do not."""
    base = seen[0]
    known, lengths = sorted(map(known_by, cells(base))), [len(row) for row in base]
    if all(value == base for value in seen):
        return None

    def holds(arguments: Arguments) -> bool:
        rows = arguments[place]
        return sorted(map(known_by, cells(rows))) == known and [len(row) for row in rows] == lengths

    def mend(arguments: Arguments, rng: random.Random) -> None:
        mixed = iter(rng.sample(cells(base), len(known)))
        arguments[place] = [[next(mixed) for _ in row] for row in base]

    return Rule(f"the same cells: {place}", holds, mend) if all(holds({place: v}) for v in seen) else None


def _order_rules(place: ArgKey, seen: Sequence[Any], said: str) -> Iterator[Rule]:
    """Cells in order from row to row, along rows, along columns."""
    if not in_order_by_chance([cells(value) for value in seen], said):
        for name, arrange in orders():

            def flat(arguments: Arguments, rng: random.Random) -> None:
                some = iter(sorted(cells(arguments[place])))
                arguments[place] = [[next(some) for _ in row] for row in arguments[place]]

            yield Rule(
                f"cells {name}: {place}", lambda a, f=arrange: cells(a[place]) == f(cells(a[place])), flat
            )
    if not in_order_by_chance([row for value in seen for row in value], said):
        for name, arrange in orders():

            def along(arguments: Arguments, rng: random.Random) -> None:
                arguments[place] = [sorted(row) for row in arguments[place]]

            yield Rule(
                f"rows {name}: {place}",
                lambda a, f=arrange: all(list(row) == f(row) for row in a[place]),
                along,
            )
        # Sorted columns of sorted rows leave the rows sorted.
        yield Rule(
            f"columns ascending: {place}",
            lambda a: all(list(c) == sorted(c) for c in zip(*a[place], strict=True)),
            lambda a, rng: a.update(
                {place: [list(row) for row in zip(*map(sorted, zip(*a[place], strict=True)), strict=True)]}
            ),
        )


def _columns(place: ArgKey, first: int, last: int, *, strict: bool) -> Rule:
    def mend(arguments: Arguments, rng: random.Random) -> None:
        for row in arguments[place]:
            if row[first] > row[last]:
                row[first], row[last] = row[last], row[first]
            if strict and row[first] == row[last]:
                row[last] += 1

    return Rule(
        f"[{first}] {'<' if strict else '<='} [{last}] in {place}",
        lambda a: all(row[first] < row[last] + (not strict) for row in a[place]),
        mend,
    )


# Graphs: pairs of neighbours, or for each node the list of its neighbours.


def _graph_rules(place: ArgKey) -> Iterator[Rule]:
    def tree(arguments: Arguments, rng: random.Random) -> None:
        count, low = len(arguments[place]) + 1, rng.choice((0, 1))
        names = rng.sample(range(low, low + count), count)
        arguments[place] = [rng.sample([names[rng.randrange(i)], names[i]], 2) for i in range(1, count)]

    def once(arguments: Arguments, rng: random.Random) -> None:
        arguments[place] = list({frozenset(pair): pair for pair in arguments[place]}.values())

    def mutual(arguments: Arguments, rng: random.Random) -> None:
        nodes = range(len(arguments[place]))
        pairs = {frozenset((i, j)) for i in nodes for j in arguments[place][i] if j in nodes and i != j}
        arguments[place] = [[j for j in nodes if frozenset((i, j)) in pairs and i != j] for i in nodes]

    yield Rule(f"a tree: {place}", lambda a: _is_tree(a[place]), tree)
    yield Rule(f"no pair twice: {place}", lambda a: len({*map(frozenset, a[place])}) == len(a[place]), once)
    yield Rule(
        f"neighbours of each other: {place}",
        lambda a: all(i != j and i in a[place][j] for i, row in enumerate(a[place]) for j in row),
        mutual,
    )


def _is_tree(pairs: Sequence[Any]) -> bool:
    """Whether pairs join consecutive numbers, from 0 or 1 on, into one tree."""
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
