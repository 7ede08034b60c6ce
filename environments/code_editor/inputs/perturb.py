"""Perturb example calls: small seeded changes of literal arguments, so that no agent can foresee an input."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, final

from envkit.environments.code_editor.inputs.call import Call, exact_type, literal
from envkit.runtime.syntax import parse, parse_expression

#: An integer may exceed the largest example by this much. Run times stay small.
_GROWTH = 12
ENDLESS = ("count(", "cycle(", "repeat(", "iter(int", "iter(lambda")


def perturbed_calls(examples: Sequence[Call], seed: int | tuple[int, ...], count: int) -> list[Call]:
    """Make up to ``count`` distinct calls near the examples; no example is repeated.

    Each call is a pure function of (examples, seed, index). One or two literal arguments of an example are
    changed, or replaced by another example's value at the same position. A sorted list stays sorted, the rows
    of a table keep their length, and strings keep their alphabet. Lambdas and other callables stay unchanged.
    Fewer than ``count`` calls come back if too few distinct ones are found.

    >>> calls = perturbed_calls([Call(("[3, 1, 2]",))], seed=0, count=2)
    >>> calls == perturbed_calls([Call(("[3, 1, 2]",))], seed=0, count=2), len(calls)
    (True, 2)
    """
    # An endless iterator is safe only with the other arguments of its own example.
    usable = [call for call in examples if not any(word in call.source("") for word in ENDLESS)]
    if not usable:
        return []
    pool = Pool(usable)
    seen = {call.source("") for call in examples}
    found: list[Call] = []
    for index in range(8 * count):
        if len(found) == count:
            break
        rng = random.Random(repr((seed, index)))
        call = _vary(usable[index % len(usable)], pool, rng)
        if call.source("") not in seen:
            seen.add(call.source(""))
            found.append(call)
    return found


@final
class Pool:
    """Values by type and whole arguments by position, collected from the examples."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.scalars: dict[type, list[Any]] = {}
        self.arguments: dict[int | str, list[str]] = {}
        self.alphabet = ""
        for call in calls:
            for place, source in _places(call):
                self.arguments.setdefault(place, []).append(source)
                for node in ast.walk(parse(source)):
                    if isinstance(node, ast.Constant):
                        self.scalars.setdefault(type(node.value), []).append(node.value)
        self.alphabet = "".join(dict.fromkeys("".join(self.scalars.get(str, []))))
        self.largest = max([abs(value) for value in self.scalars.get(int, [])], default=0)


def _places(call: Call) -> list[tuple[int | str, str]]:
    return [*enumerate(call.args), *call.kwargs.items()]


def _vary(call: Call, pool: Pool, rng: random.Random) -> Call:
    places = dict(_places(call))
    varied = [place for place in places if literals_in(places[place])]
    for place in rng.sample(varied, min(len(varied), rng.choice((1, 1, 2)))):
        others = pool.arguments[place]
        if len(others) > 1 and rng.random() < 0.2:
            places[place] = rng.choice(others)
        else:
            places[place] = vary_source(places[place], pool, rng)
    args = tuple(places[index] for index in range(len(call.args)))
    return Call(args, {name: places[name] for name in call.kwargs})


@lru_cache(4096)
def literals_in(source: str) -> tuple[ast.expr, ...]:
    """The outermost literals in an expression, outside of lambdas. Callers must not change them."""

    def within(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Lambda):
            return
        if isinstance(node, ast.expr):
            try:
                ast.literal_eval(node)
            except (ValueError, TypeError):
                pass
            else:
                yield node
                return
        for child in ast.iter_child_nodes(node):
            yield from within(child)

    return tuple(within(parse_expression(source)))


def vary_source(source: str, pool: Pool, rng: random.Random) -> str:
    """Vary one of the literals in an expression, which has at least one."""
    node = rng.choice(literals_in(source))
    new = literal(vary_value(ast.literal_eval(node), pool, rng))
    # Columns of ast count UTF-8 bytes. An argument is one line, because it was unparsed.
    raw = source.encode()
    return (raw[: node.col_offset] + new.encode() + raw[node.end_col_offset :]).decode()


def vary_value(value: Any, pool: Pool, rng: random.Random) -> Any:
    """A value of the same type, usually close to ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _vary_int(value, pool, rng)
    if isinstance(value, float | complex):
        delta = rng.choice((-2, -1, -0.5, 0.25, 0.5, 1, 3))
        return rng.choice((value + delta, value + delta, value * 2, -value, type(value)(0)))
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode("latin-1")
        text = _vary_text(text, pool, rng)
        return text if isinstance(value, str) else text.encode("latin-1", "ignore")
    kind = exact_type(value)
    if kind in (list, tuple):
        items = _vary_items(list(value), pool, rng)
        return items if kind is list else tuple(items)
    if kind is set:
        return set(_vary_items(sorted(value, key=repr), pool, rng, hashable=True))
    return _vary_dict(value, pool, rng) if kind is dict else value


def _vary_int(value: int, pool: Pool, rng: random.Random) -> int:
    roll = rng.random()
    if roll < 0.45:
        new = value + rng.choice((-2, -1, 1, 2, 3))
    elif roll < 0.6:
        new = rng.choice((0, 1, 2))
    elif roll < 0.75:
        new = rng.choice(pool.scalars.get(int, [value]))
    elif roll < 0.95:
        new = rng.randint(0, min(pool.largest + _GROWTH, max(2 * abs(value), 10)))
    else:
        new = -value
    # Most functions of natural numbers are undefined for negative ones.
    return abs(new) if value >= 0 and new < 0 and rng.random() < 0.7 else new


def _vary_text(text: str, pool: Pool, rng: random.Random) -> str:
    alphabet = pool.alphabet or "abc"
    at = rng.randrange(len(text) + 1)
    other = rng.choice(pool.scalars.get(str) or [text])
    ways: list[Callable[[], str]] = [
        lambda: text[:at] + rng.choice(alphabet) + text[at:],
        lambda: text[:at] + rng.choice(alphabet) + text[at + 1 :],
        lambda: text[:at] + text[at + 1 :],
        lambda: text[: max(1, at)],
        lambda: text[at:] + text[:at],
        lambda: text[:at] + text[max(0, at - 2) : at] + text[at:],
        lambda: text[::-1],
        lambda: "".join(rng.sample(text, len(text))),
        lambda: text.swapcase() if rng.random() < 0.5 else text.upper(),
        lambda: "".join(rng.choice(alphabet) for _ in range(rng.randint(1, max(2, min(12, len(text)))))),
        lambda: other,
    ]
    return "" if rng.random() < 0.04 else rng.choice(ways)()


def _vary_items(items: list[Any], pool: Pool, rng: random.Random, *, hashable: bool = False) -> list[Any]:
    if not items:
        return [rng.choice(pool.scalars[int])] if int in pool.scalars else []
    at = rng.randrange(len(items))
    nested = [len(item) for item in items if type(item) in (list, tuple)]
    if len(nested) == len(items) > 1 and len(set(nested)) == 1 and nested[0]:
        # A table: keep the number and length of its rows, vary a cell.
        row = list(items[at])
        cell = rng.randrange(len(row))
        row[cell] = vary_value(row[cell], pool, rng)
        return [*items[:at], type(items[at])(row), *items[at + 1 :]] if rng.random() < 0.8 else items[::-1]
    changed = vary_value(items[at], pool, rng) if not hashable or _is_scalar(items[at]) else items[at]
    order = rng.sample(items, len(items))
    ways: list[list[Any]] = [
        [*items[:at], changed, *items[at + 1 :]],
        [*items[:at], changed, *items[at + 1 :]],
        [*items[:at], changed, *items[at:]],
        items[:at] + items[at + 1 :],
        [*items[:at], items[at], *items[at:]],
        items[: at + 1],
        order,
        items[::-1],
        [vary_value(item, pool, rng) if _is_scalar(item) else item for item in items],
    ]
    new = [] if rng.random() < 0.04 else rng.choice(ways)
    ordered = len(items) > 2 and _ordered(items)
    if ordered and rng.random() < 0.9 and all(type(item) is type(items[0]) for item in new):
        return sorted(new, reverse=items[0] > items[-1])
    return new


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | complex | str | bytes)


def _ordered(items: list[Any]) -> bool:
    if not all(type(item) is type(items[0]) and type(item) in (int, float, str) for item in items):
        return False
    return items in (sorted(items), sorted(items, reverse=True))


def _vary_dict(value: dict[Any, Any], pool: Pool, rng: random.Random) -> dict[Any, Any]:
    if not value:
        return value
    key = rng.choice(list(value))
    new = dict(value)
    roll = rng.random()
    if roll < 0.6:
        new[key] = vary_value(value[key], pool, rng)
    elif roll < 0.75:
        del new[key]
    elif roll < 0.9 and _is_scalar(key):
        new[vary_value(key, pool, rng)] = value[key]
    else:
        new = dict(reversed(value.items()))
    return new
