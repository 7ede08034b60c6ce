"""Rules between two arguments: equal lengths, counts, indices, equal items."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from envkit.environments.code_editor.inputs.rules.rule import (
    ArgKey,
    Arguments,
    Rule,
    cells,
    fit_length,
    is_list,
    map_cells,
)

_INDEX = re.compile(r"\b(?:index\w*|indices|nodes?|labell?ed|numbered|range|permutation)\b", re.IGNORECASE)
_GUARANTEE = re.compile(r"guarante|\bexists? in\b", re.IGNORECASE)
#: Names of arguments that are ordered even if few examples show it.
_SMALLER = re.compile(r"k|left|low\w*|lo|start\w*|first|min\w*|from\w*")
_LARGER = re.compile(r"n|right|high\w*|hi|end\w*|last|max\w*|to\w*")


def rules_between(examples: Sequence[Arguments], statement: str) -> Iterator[Rule]:
    """Candidate rules for pairs of arguments.

    Args:
        examples: at least two; from fewer no rule is inferred.
        statement: the problem in words.
    """
    if len(examples) < 2:
        return
    sized = [p for p in examples[0] if all(is_list(e[p]) or isinstance(e[p], str) for e in examples)]
    whole = [p for p in examples[0] if all(type(e[p]) is int for e in examples)]
    for one, other in itertools.permutations(sized, 2):
        if all(type(example[one]) is type(example[other]) for example in examples):
            yield _rearranged(one, other)
    yield from (_equal_lengths(one, other) for one, other in itertools.combinations(sized, 2))
    for one, other in itertools.permutations(whole, 2):
        named = _SMALLER.fullmatch(str(one)) and _LARGER.fullmatch(str(other))
        if named or len({(example[one], example[other]) for example in examples}) > 2:
            yield _ordered_pair(one, other)
    for number, items in itertools.product(whole, sized):
        yield from _count_rules(number, items, examples)
        if _GUARANTEE.search(statement) and all(is_list(example[items]) for example in examples):
            yield _is_item(number, items)
    for items in sized:
        yield from _pointer_rules(items, whole, sized if _INDEX.search(statement) else (), examples)
        if all(is_list(example[items]) for example in examples):
            yield _parents(items)


def _equal_lengths(one: ArgKey, other: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        first, second = arguments[one], arguments[other]
        length = len(rng.choice((first, second)))
        arguments[one] = fit_length(first, length, first, rng)
        arguments[other] = fit_length(second, length, second, rng)

    return Rule(f"len({one}) == len({other})", lambda a: len(a[one]) == len(a[other]), fix)


def _rearranged(one: ArgKey, other: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        base = arguments[one]
        mixed = list(base)
        if rng.random() < 0.5:
            rng.shuffle(mixed)
        elif len(mixed) > 1:
            at = rng.randrange(len(mixed) - 1)
            mixed[at], mixed[at + 1] = mixed[at + 1], mixed[at]
        arguments[other] = "".join(mixed) if isinstance(base, str) else type(base)(mixed)

    return Rule(f"{other} rearranges {one}", lambda a: sorted(a[one]) == sorted(a[other]), fix)


def _ordered_pair(one: ArgKey, other: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        arguments[one], arguments[other] = arguments[other], arguments[one]

    return Rule(f"{one} <= {other}", lambda a: a[one] <= a[other], fix)


def _count_rules(number: ArgKey, items: ArgKey, examples: Sequence[Arguments]) -> Iterator[Rule]:
    """Rules for an integer that counts items or is at most their count."""
    if len({len(example[items]) for example in examples}) > 1:
        counts: list[tuple[str, Callable[[int], int]]] = [
            (f"len({items})", lambda length: length),
            (f"len({items}) + 1", lambda length: length + 1),
            (f"len({items}) - 1", lambda length: length - 1),
            (f"len({items}) / 2", lambda length: length // 2),
        ]
        for name, count in counts:
            yield Rule(
                f"{number} == {name}",
                lambda a, count=count: a[number] == count(len(a[items])),
                lambda a, rng, count=count: a.update({number: count(len(a[items]))}),
            )
    low = min(1, *(example[number] for example in examples))
    for name, over in (("<", 0), ("<=", 1)):

        def fix(arguments: Arguments, rng: random.Random, over: int = over) -> None:
            room = len(arguments[items]) + over - low
            if room > 0:
                arguments[number] = low + arguments[number] % room

        yield Rule(
            f"{number} {name} len({items})", lambda a, over=over: a[number] < len(a[items]) + over, fix
        )


def _is_item(number: ArgKey, items: ArgKey) -> Rule:
    def fix(arguments: Arguments, rng: random.Random) -> None:
        arguments[number] = rng.choice(arguments[items])

    return Rule(f"{number} in {items}", lambda a: a[number] in a[items], fix)


def _pointer_rules(
    items: ArgKey, whole: Sequence[ArgKey], sized: Sequence[ArgKey], examples: Sequence[Arguments]
) -> Iterator[Rule]:
    """Rules for integers in a list that point to one of ``n`` things or into another list."""
    known = [cells(example[items]) for example in examples]
    if not any(known) or not all(type(cell) is int and cell >= 0 for some in known for cell in some):
        return
    low = 0 if any(0 in some for some in known) else 1
    sizes: list[tuple[str, Callable[[Arguments], int]]] = [
        *((str(key), lambda a, key=key: a[key]) for key in whole),
        *((f"len({key})", lambda a, key=key: len(a[key])) for key in sized),
    ]
    for name, size in sizes:
        # Needs examples near the bound, because small numbers are below any length.
        near = sum(max(some, default=0) >= size(e) - 2 + low for some, e in zip(known, examples, strict=True))
        if near < (len(examples) if name == f"len({items})" else len(examples) / 2):
            continue

        def fix(arguments: Arguments, rng: random.Random, size: Callable[[Arguments], int] = size) -> None:
            room = max(1, size(arguments))
            arguments[items] = map_cells(
                arguments[items], lambda cell: cell if low <= cell < low + room else low + cell % room
            )

        yield Rule(
            f"{items} within {name}",
            lambda a, size=size: all(low <= cell < low + size(a) for cell in cells(a[items])),
            fix,
        )


def _parents(items: ArgKey) -> Rule:
    """The rule that a list holds each node's parent; the first node is the root and holds -1."""

    def holds(arguments: Arguments) -> bool:
        parents = arguments[items]
        if parents[0] != -1:
            return False
        for node in range(1, len(parents)):
            steps = 0
            while node != 0 and steps <= len(parents):
                node, steps = parents[node], steps + 1
                if node < 0:
                    return False
            if node != 0:
                return False
        return True

    def fix(arguments: Arguments, rng: random.Random) -> None:
        arguments[items] = [-1, *(rng.randrange(node) for node in range(1, len(arguments[items])))]

    return Rule(f"parents: {items}", holds, fix)
