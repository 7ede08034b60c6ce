"""Make edge calls: every argument, and every part of one, at the limits of its type.

A program can be right on everyday inputs and wrong at an edge: empty, very long, negative, beyond 64 bits,
not ASCII. `edges_of` lists the edges that the examples and the type hints of a function allow; `edge_call`
makes a call at one of them. Only the function itself can tell whether it accepts the call; see
`envkit.environments.code_editor.graders.reach`.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Final, TypeAlias, cast

from envkit.environments.code_editor.inputs.call import Call, exact_type, literal
from envkit.environments.code_editor.inputs.perturb import ENDLESS, Pool, literals_in, vary_source, vary_value
from envkit.runtime.syntax import parse, parse_expression

#: Index or name of an argument.
Place: TypeAlias = int | str
#: Way from an argument to a part of it: the index of a literal in the argument's source, or its complement
#: (``~index``) if the argument computes with the literal, as in ``range(5)``; then, at each level, the index
#: of a record's field, or one of `ITEM`, `KEY` and `VALUE`.
Path: TypeAlias = tuple[int | str, ...]

ITEM, KEY, VALUE = "item", "key", "value"

#: Sizes of large integers, lowest and highest. The first ones may be the depth of a right recursion, which
#: has 1,000 frames. The last ones exceed 16, 31 and 64 bits.
LARGE: Final = ((101, 900), (65_600, 99_999), (2**31 + 1, 2**33), (2**64 + 1, 2**70))
#: Magnitudes of negative integers.
NEGATIVE: Final = ((1, 9), (101, 2**33))
#: Lengths of short values.
SHORT: Final = ((2, 2), (3, 3))
#: Lengths of long values. The answer's first 64 items are compared if it is an iterator, so most are shorter.
LONG: Final = ((10, 16), (21, 40), (51, 62), (101, 140))
#: Sizes of `LARGE` for functions that compute with floats, which are exact up to 53 bits.
_FLOAT_SIZES = 3
#: Characters outside ASCII that every version of Unicode in use treats alike.
NON_ASCII: Final = "äöüßéèñçøåÄÖÉŁžЖяДλΩπאבعم漢字かな한글€→½²🙂🐍"
#: Deepest path, and most values of one part that are looked at.
_DEEPEST, _MOST_VALUES = 5, 200
#: Longest tuple or mixed list whose positions differ in meaning.
_MAX_RECORD = 4
#: Added levels of nested lists.
_DEEP = (2, 5)
_LENGTHS = {"short": SHORT, "long": LONG}
_SEQUENCES = (list, tuple)
#: Edges drawn for one grade, unless a function has more kinds of them.
MOST_EDGES = 24
#: Draws of a call that was not drawn before.
_TRIES = 4
_SIZED = (str, bytes, list, tuple, set, dict)

#: Type hints that allow tuples and lists for each other.
_LOOSE = frozenset(
    {
        "Any",
        "Collection",
        "Container",
        "Iterable",
        "Reversible",
        "Sequence",
        "Sized",
        "object",
        "TypeVar",
        "T",
    }
)


@dataclass(frozen=True, slots=True)
class Edge:
    """A limit of one part of an argument, or of several arguments at the same time.

    Args:
        kind: such as ``empty`` or ``negative``.
        places: the arguments; nearly always one.
        path: the part of each.
        of: name of the part's type.
        size: index into the sizes of this kind, the smallest first; 0 if it has only one.
    """

    kind: str
    places: tuple[Place, ...]
    path: Path
    of: str
    size: int = 0

    @property
    def ladder(self) -> tuple[object, ...]:
        """Equal for the sizes of one kind in one place."""
        return self.kind, self.places, self.path, self.of

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for the same kind of edge anywhere in the same arguments."""
        return self.kind, self.places, self.of, len(self.path) > 1


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameter names, type hints and defaults of a function, read from its source.

    Args:
        names: of the parameters, in order; those by keyword only come last.
        hints: name -> source of the type hint.
        defaults: name -> source of the default value.
        has_floats: the module computes with floats, so very large integers are inexact.
    """

    names: tuple[str, ...] = ()
    hints: dict[str, str] | None = None
    defaults: dict[str, str] | None = None
    has_floats: bool = False

    def name_of(self, place: Place) -> str | None:
        """Name of the parameter that an argument fills, if known."""
        if isinstance(place, str):
            return place
        return self.names[place] if place < len(self.names) else None

    def is_loose(self, place: Place) -> bool:
        """True if the type hint allows another kind of sequence; also if there is none."""
        hint = (self.hints or {}).get(self.name_of(place) or "")
        if hint is None:
            return True
        words = {node.id for node in ast.walk(parse(hint)) if isinstance(node, ast.Name)}
        words |= {node.attr for node in ast.walk(parse(hint)) if isinstance(node, ast.Attribute)}
        return not words.isdisjoint(_LOOSE)


def signature_of(source: str, function: str) -> Signature:
    """Read a function's parameters from a module's text.

    Args:
        source: the module.
        function: ``name``, or ``Class.name`` for a method; its first parameter is left out.

    Returns:
        An empty signature if the module does not parse or has no such function.
    """
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Signature()
    owner, _, method = function.rpartition(".")
    body: Sequence[ast.stmt] = tree.body
    if owner:
        body = [
            inner
            for node in body
            if isinstance(node, ast.ClassDef) and node.name == owner
            for inner in node.body
        ]
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == method]
    if not found:
        return Signature(has_floats=_has_floats(tree))
    spec = found[-1].args
    positional = [*spec.posonlyargs, *spec.args]
    given = dict(zip([arg.arg for arg in positional[::-1]], spec.defaults[::-1], strict=False))
    given |= {arg.arg: one for arg, one in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if one}
    hidden = {arg.arg for arg in spec.posonlyargs}  # cannot be passed by name
    positional = positional[1 if owner else 0 :]
    every = [*positional, *spec.kwonlyargs]
    return Signature(
        tuple(arg.arg for arg in (every if not spec.vararg else positional)),
        {arg.arg: ast.unparse(arg.annotation) for arg in every if arg.annotation},
        {arg.arg: ast.unparse(given[arg.arg]) for arg in every if arg.arg in given and arg.arg not in hidden},
        _has_floats(tree),
    )


def _has_floats(tree: ast.AST) -> bool:
    floats = {"float", "sqrt", "round", "ceil", "floor", "log", "log2", "log10", "mean", "fsum"}
    return any(
        isinstance(node, ast.Div)
        or (isinstance(node, ast.Constant) and type(node.value) in (float, complex))
        or (isinstance(node, ast.Name) and node.id in floats)
        or (isinstance(node, ast.Attribute) and node.attr in floats)
        for node in ast.walk(tree)
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an argument with the values that the examples have there.

    Args:
        place, path: the part.
        kind: type of all values.
        values: not empty.
        fixed: the length has a meaning: a record, or a row of a table.
    """

    place: Place
    path: Path
    kind: type
    values: Sequence[Any]
    fixed: bool

    @property
    def wrapped(self) -> bool:
        """True if the argument computes with the literal."""
        return isinstance(self.path[0], int) and self.path[0] < 0


class Examples:
    """The example calls of a function, with the parts of their arguments.

    Args:
        calls: the examples. Those with endless iterators are not used.
        signature: of the function, if known.
    """

    def __init__(self, calls: Sequence[Call], signature: Signature | None = None) -> None:
        self.calls = [call for call in calls if not any(word in call.source("") for word in ENDLESS)]
        self.signature = signature or Signature()
        self.pool = Pool(self.calls)
        self.parts = {(part.place, part.path, part.kind): part for part in self._parts()}

    def _parts(self) -> Iterator[_Part]:
        found: dict[tuple[Place, int], list[Any]] = {}
        for call in self.calls:
            for place, source in places_of(call):
                for start, node in _starts(source):
                    found.setdefault((place, start), []).append(ast.literal_eval(node))
        for (place, start), values in found.items():
            yield from _parts(values, place, (start,), rows=False)


@lru_cache(4096)
def _starts(source: str) -> tuple[tuple[int, ast.expr], ...]:
    """The literals of an argument, each with the start of its path. Callers must not change them."""
    nodes = literals_in(source)
    whole = len(nodes) == 1 and ast.dump(nodes[0]) == ast.dump(parse_expression(source))
    return tuple((index if whole else ~index, node) for index, node in enumerate(nodes))


def _parts(values: Sequence[Any], place: Place, path: Path, *, rows: bool) -> Iterator[_Part]:
    """Parts at a path and below it, by type. ``rows``: the values are the rows of a table."""
    groups: dict[type, list[Any]] = {}
    for value in values[:_MOST_VALUES]:
        groups.setdefault(exact_type(value), []).append(value)
    for kind, some in groups.items():
        record = kind in _SEQUENCES and _is_record(some, inside=len(path) > 1)
        yield _Part(place, path, kind, some, record or rows)
        if len(path) == _DEEPEST:
            continue
        if record:
            for index in range(len(some[0])):
                yield from _parts([value[index] for value in some], place, (*path, index), rows=False)
        elif kind in _SEQUENCES or kind is set:
            items = [item for value in some for item in items_of(value)]
            table = [value for value in some if len(value) > 1]
            square = bool(table) and all(_is_table(value) for value in table)
            yield from _parts(items, place, (*path, ITEM), rows=square)
        elif kind is dict:
            yield from _parts([key for value in some for key in value], place, (*path, KEY), rows=False)
            inner = [item for value in some for item in value.values()]
            yield from _parts(inner, place, (*path, VALUE), rows=False)


def items_of(value: Any) -> list[Any]:
    """Items of a collection in an order that does not depend on hashes."""
    return sorted(value, key=repr) if exact_type(value) is set else list(value)


def places_of(call: Call) -> list[tuple[Place, str]]:
    """The arguments of a call: index or name, and source."""
    return [*enumerate(call.args), *call.kwargs.items()]


def _is_record(values: Sequence[Any], *, inside: bool) -> bool:
    lengths = {len(value) for value in values}
    if len(lengths) > 1 or not 0 < max(lengths) <= _MAX_RECORD:
        return False
    mixed = any(len({exact_type(item) for item in value}) > 1 for value in values)
    return (inside and exact_type(values[0]) is tuple) or (mixed and len(values) > 1)


def _is_table(value: Any) -> bool:
    rows = [item for item in items_of(value) if exact_type(item) in _SEQUENCES]
    return len(rows) == len(value) and len({len(row) for row in rows}) == 1 and len(rows[0]) > 0


def edges_of(examples: Examples) -> list[Edge]:
    """All edges that examples and type hints allow; every ladder from its smallest size up."""
    found: dict[Edge, None] = {}
    for part in examples.parts.values():
        for kind, sizes in _kinds(part, examples.signature):
            found |= {
                Edge(kind, (part.place,), part.path, part.kind.__name__, size): None for size in range(sizes)
            }
    found |= dict.fromkeys(_joint(examples))
    found |= dict.fromkeys(_options(examples))
    return list(found)


def _kinds(part: _Part, signature: Signature) -> Iterator[tuple[str, int]]:
    """Kinds of edges that a part can have, each with its number of sizes."""
    kind, deep = part.kind, len(part.path) > 1
    if kind is bool:
        yield "flipped", 1
    elif kind is int:
        sizes = _FLOAT_SIZES if signature.has_floats else len(LARGE)
        yield from (("zero", 1), ("negative", 1 if part.wrapped else len(NEGATIVE)))
        yield "large", 1 if part.wrapped else sizes
    elif kind is float:
        yield from (("zero", 1), ("negative", 1), ("large", 1), ("tiny", 1))
    elif kind is complex:
        yield from (("zero", 1), ("negative", 1))
    elif kind in _SIZED and not part.fixed:
        yield from (("empty", 1), ("one", 1))
        if kind not in (set, dict):
            yield "two equal", 1
        if any(len(value) > 0 for value in part.values):
            yield "long", len(LONG) - 1 if deep else len(LONG)
            yield "short", len(SHORT)
    if kind in (str, bytes) and any(len(value) > 0 for value in part.values):
        yield "non-ASCII", 1
    if kind in _SEQUENCES and not deep and not part.wrapped and signature.is_loose(part.place):
        yield "other sequence", 1
    if kind in _SEQUENCES and any(exact_type(item) is kind for value in part.values for item in value):
        yield "deep", 1


def _joint(examples: Examples) -> Iterator[Edge]:
    """Edges of two or more arguments of one type together, such as two long lists of equal length."""
    whole = [part for part in examples.parts.values() if part.path == (0,) and not part.wrapped]
    for kind in dict.fromkeys(part.kind for part in whole):
        places = [part.place for part in whole if part.kind is kind and not part.fixed]
        if len(places) < 2:
            continue
        # More than three arguments of one type are nearly always `*args`.
        pairs = [tuple(places)] if len(places) > 3 else [*combinations(places, 2)]
        for pair in pairs:
            if kind in _SIZED:
                yield Edge("empty", pair, (0,), kind.__name__)
                yield from (Edge("long", pair, (0,), kind.__name__, size) for size in range(len(LONG) - 1))
            elif kind is int:
                yield from (Edge("zero", pair, (0,), "int"), Edge("negative", pair, (0,), "int"))
                sizes = _FLOAT_SIZES if examples.signature.has_floats else len(LARGE)
                yield from (Edge("large", pair, (0,), "int", size) for size in range(sizes))


def _options(examples: Examples) -> Iterator[Edge]:
    """Optional parameters that no example passes, with other values than their defaults."""
    signature = examples.signature
    most = max((len(call.args) for call in examples.calls), default=0)
    passed = {*signature.names[:most]} | {name for call in examples.calls for name in call.kwargs}
    for name, source in (signature.defaults or {}).items():
        if name not in passed:
            yield from (
                Edge("option", (name,), (), source, size) for size in range(len(_other_values(source)))
            )


def _other_values(default: str) -> list[str]:
    """Values to pass to a parameter, as source, given its default."""
    try:
        value = ast.literal_eval(parse_expression(default))
    except (ValueError, TypeError):
        return []
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int):
        return [str(value + 1), str(value + 2), *(["0"] if value else [])]
    if isinstance(value, float):
        return [repr(value * 2 + 1)]
    if isinstance(value, str):
        return ["'-'", "'ab'"]
    return ["1", "2", "'a'"] if value is None else []


def edge_call(edge: Edge, base: int, examples: Examples, rng: random.Random, *, vary: bool) -> Call | None:
    """Make a call at an edge.

    Args:
        edge: one of `edges_of` the examples.
        base: index of the example that gives all else.
        examples: the examples.
        rng: source of all draws.
        vary: vary the other arguments too.

    Returns:
        ``None`` if the base has no part of this kind.
    """
    call = examples.calls[base]
    sources = dict(places_of(call))
    if edge.kind == "option":
        [name] = edge.places
        sources[name] = _other_values(edge.of)[edge.size]
    elif not all(place in sources for place in edge.places):
        return None
    if vary:
        _vary_others(sources, edge, examples.pool, rng)
    if edge.kind != "option":
        length = rng.randint(*_LENGTHS[edge.kind][edge.size]) if edge.kind in _LENGTHS else 0
        for place in edge.places:
            part = examples.parts.get((place, edge.path, _TYPES[edge.of]))
            # The varied argument may have lost the part.
            for source in (sources[place], dict(places_of(call))[place]):
                changed = part and _changed_source(source, edge, part, examples, rng, length)
                if changed:
                    sources[place] = changed
                    break
            else:
                return None
    args = tuple(sources[index] for index in range(len(call.args)))
    return Call(args, {name: source for name, source in sources.items() if isinstance(name, str)})


_TYPES: dict[str, type] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, dict)
}


def _vary_others(sources: dict[Place, str], edge: Edge, pool: Pool, rng: random.Random) -> None:
    for place, source in list(sources.items()):
        if edge.kind == "option" and place in edge.places:
            continue
        if rng.random() < (0.3 if place in edge.places else 0.5) and literals_in(source):
            others = pool.arguments.get(place, [source])
            varied = rng.choice(others) if rng.random() < 0.3 else vary_source(source, pool, rng)
            sources[place] = varied


@dataclass(frozen=True, slots=True)
class _Change:
    """What to do with a part.

    Args:
        kind: type of the part.
        make: makes the new value of it.
        arrange: orders the items of the collection that holds it.
        everywhere: change all items of that collection.
    """

    kind: type
    make: Callable[[Any], Any]
    arrange: Callable[[list[Any]], list[Any]]
    everywhere: bool


def _changed_source(
    source: str, edge: Edge, part: _Part, examples: Examples, rng: random.Random, length: int
) -> str | None:
    """The argument with the edge in one place of it."""
    start, *rest = edge.path
    node = dict(_starts(source)).get(start) if isinstance(start, int) else None
    if node is None:
        return None
    holders = [
        value
        for kind in _SEQUENCES
        if (found := examples.parts.get((part.place, edge.path[:-1], kind)))
        for value in found.values
    ]
    change = _Change(
        part.kind,
        _maker(edge, part, examples.pool, rng, length),
        lambda items: _in_order(items, holders, rng),
        # Some edges show only if all items have them, as in a list of negative numbers.
        edge.kind in ("zero", "negative") and rng.random() < 0.2,
    )
    try:
        new = _replaced(ast.literal_eval(node), rest, change, rng)
    except (LookupError, TypeError):
        return None
    raw = source.encode()
    return (raw[: node.col_offset] + literal(new).encode() + raw[node.end_col_offset :]).decode()


def _replaced(value: Any, path: Sequence[int | str], change: _Change, rng: random.Random) -> Any:
    """The value with a part of it changed.

    Raises:
        LookupError: it has no part of this type at the path.
        TypeError: the changed part cannot be a key or an item of a set.
    """
    if not path:
        if exact_type(value) is not change.kind:
            raise LookupError
        return change.make(value)
    step, rest = path[0], path[1:]
    if exact_type(value) is dict:
        return _replaced_in_dict(value, step, rest, change, rng)
    if exact_type(value) not in (*_SEQUENCES, set):
        raise LookupError
    items, done = items_of(value), False
    for at in [step] if isinstance(step, int) else rng.sample(range(len(items)), len(items)):
        try:
            items[at] = _replaced(items[at], rest, change, rng)
        except LookupError:
            continue
        done = True
        if rest or not change.everywhere:
            break
    if not done:
        raise LookupError
    return exact_type(value)(change.arrange(items) if step == ITEM and not rest else items)


def _replaced_in_dict(
    value: dict[Any, Any], step: int | str, rest: Sequence[int | str], change: _Change, rng: random.Random
) -> dict[Any, Any]:
    for key in rng.sample(list(value), len(value)):
        try:
            new = _replaced(key if step == KEY else value[key], rest, change, rng)
        except LookupError:
            continue
        if step == KEY:
            return {(new if one == key else one): item for one, item in value.items()}
        return {one: (new if one == key else item) for one, item in value.items()}
    raise LookupError


def _in_order(items: list[Any], known: Sequence[Any], rng: random.Random) -> list[Any]:
    """Sort items if all known sequences are sorted; half of the time if only one tells."""
    telling = [each for each in known if len(each) > 2]
    if not telling or (len(telling) == 1 and rng.random() < 0.5):
        return items
    try:
        for down in (False, True):
            if all(list(each) == sorted(each, reverse=down) for each in telling):
                return sorted(items, reverse=down)
    except TypeError:  # items of several types have no order
        pass
    return items


def _maker(edge: Edge, part: _Part, pool: Pool, rng: random.Random, length: int) -> Callable[[Any], Any]:
    """The function that turns a part into one at the edge."""
    if part.kind is bool:
        return lambda value: not value
    if part.kind in (int, float, complex):
        return lambda value: _number(edge, part, rng)
    if part.kind in (str, bytes):
        return lambda value: _text(edge, value, part.values, rng, length)
    return lambda value: _collection(edge, value, part.values, pool, rng, length)


def _number(edge: Edge, part: _Part, rng: random.Random) -> Any:
    kind = part.kind
    if edge.kind == "zero":
        return kind(0)
    if kind is int and edge.kind == "negative":
        # The opposite of a known number, which may stand beside it, tells more than any.
        opposite = edge.size == 0 and rng.random() < 0.3
        return -abs(rng.choice(part.values)) or -1 if opposite else -rng.randint(*NEGATIVE[edge.size])
    if kind is int:
        return rng.randint(*LARGE[edge.size])
    if edge.kind == "tiny":
        return rng.randint(1, 99) / 10**5
    number = rng.randint(10**6, 10**9) + 0.5 if edge.kind == "large" else -rng.randint(1, 999) / 8
    return kind(number)


def _text(edge: Edge, value: Any, known: Sequence[Any], rng: random.Random, length: int) -> Any:
    if isinstance(value, bytes):
        texts = [one.decode("latin-1") for one in known]
        return _new_text(edge, value.decode("latin-1"), texts, rng, length, "äöüßéñ").encode("latin-1")
    return _new_text(edge, value, known, rng, length, NON_ASCII)


def _new_text(
    edge: Edge, value: str, known: Sequence[str], rng: random.Random, length: int, strange: str
) -> str:
    letters = sorted({*"".join(known)}) or ["a", "b"]
    match edge.kind:
        case "empty":
            return ""
        case "one":
            return rng.choice(letters)
        case "two equal":
            return rng.choice(letters) * 2
        case "non-ASCII":
            for _ in range(rng.randint(1, 3)):
                at = rng.randint(0, len(value))
                value = value[:at] + rng.choice(strange) + value[at + rng.randint(0, 1) :]
            return value
        case _:
            pass
    if rng.random() < 0.6:  # whole examples in a row keep more of their form than single characters do
        parts: list[str] = []
        while sum(map(len, parts)) < length:
            parts.append(rng.choice([text for text in known if text]))
        return "".join(parts)[:length]
    return "".join(rng.choice(letters) for _ in range(length))


def _collection(
    edge: Edge, value: Any, known: Sequence[Any], pool: Pool, rng: random.Random, length: int
) -> Any:
    kind = exact_type(value)
    make: Callable[..., Any] = cast("Any", kind)
    items = [*value.items()] if kind is dict else items_of(value)
    stock: list[Any] = _alike(
        items, [item for each in known for item in (each.items() if kind is dict else items_of(each))]
    )
    if not stock and edge.kind in ("one", "two equal"):
        stock = [("a", 1) if kind is dict else rng.randint(0, 9)]

    def fresh() -> Any:
        chosen: Any = copy.deepcopy(rng.choice(stock))
        if kind is dict:
            return vary_value(chosen[0], pool, rng), vary_value(chosen[1], pool, rng)
        return chosen if rng.random() < 0.4 else vary_value(chosen, pool, rng)

    match edge.kind:
        case "empty":
            return make()
        case "one":
            return make([fresh()])
        case "two equal":
            return make([fresh()] * 2)
        case "other sequence":
            return (tuple if kind is list else list)(items)
        case "deep":
            at = rng.choice([index for index, item in enumerate(items) if exact_type(item) is kind] or [0])
            for _ in range(rng.randint(*_DEEP)):
                items[at] = make([items[at]])
            return make(items)
        case _:
            pass
    many = [fresh() for _ in range(length)]
    if kind is set:
        unique = {*many}
        return unique | {*_more(items_of(unique), length - len(unique), rng)}
    if kind is dict:
        made = dict(many)
        for key in _more([*made], length - len(made), rng):
            made[key] = fresh()[1]
        return made
    return make(_in_order(many, known, rng))


def _alike(items: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Other items of these items' types: a function may take words or numbers, but not both at once."""
    kinds = set(map(exact_type, items))
    found = [item for item in others if exact_type(item) in kinds or not items]
    return found[:_MOST_VALUES]


def _more(keys: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """Up to ``count`` new keys of the same type, because variations of a few keys soon repeat."""
    start, sample = rng.randint(20, 60), keys[0] if keys else 0
    if isinstance(sample, str):
        return [f"{sample}{start + index}" for index in range(count)]
    return [start + index for index in range(count)] if isinstance(sample, int) else []


@dataclass(frozen=True, slots=True)
class ReachedEdge:
    """An edge that a function answers.

    Args:
        edge: the edge.
        bases: indices of the examples from which a call at the edge was answered; not empty.
    """

    edge: Edge
    bases: tuple[int, ...]


def drawn_edges(
    examples: Examples,
    reached: Sequence[ReachedEdge],
    seed: int | tuple[int, ...],
    avoid: Collection[str] = (),
) -> list[list[Call]]:
    """Draw calls at every kind of edge of every argument; cheap ones first.

    Of a kind with several sizes, the largest is drawn and a smaller one. If a kind can be reached in several
    parts of an argument, at least one part is drawn.

    Args:
        examples: the function's examples.
        reached: the edges that the function answers.
        seed: decides every draw.
        avoid: sources of calls that must not be drawn. An edge with no other call is left out.

    Returns:
        For each edge, its calls in order of preference. Half of the first ones vary other arguments too.
    """
    seen = set(avoid)
    drawn: list[list[Call]] = []
    choice = random.Random(repr((seed, "edges")))
    for one in sorted(_chosen(reached, choice), key=lambda one: one.edge.size):
        calls: list[Call] = []
        # Varied arguments may be rejected, so the others are kept in reserve.
        for vary in (True, False) if choice.random() < 0.5 else (False,):
            for index in range(_TRIES):
                rng = random.Random(repr((seed, one.edge, vary, index)))
                call = edge_call(one.edge, rng.choice(one.bases), examples, rng, vary=vary)
                if call is not None and (source := call.source("")) not in seen:
                    seen.add(source)
                    calls.append(call)
                    break
        if calls:
            drawn.append(calls)
    return drawn


def _chosen(reached: Sequence[ReachedEdge], rng: random.Random) -> list[ReachedEdge]:
    ladders: dict[tuple[object, ...], list[ReachedEdge]] = {}
    for one in reached:
        ladders.setdefault(one.edge.ladder, []).append(one)
    groups: dict[tuple[object, ...], list[list[ReachedEdge]]] = {}
    for ladder in rng.sample([*ladders.values()], len(ladders)):
        *lower, top = sorted(ladder, key=lambda one: one.edge.size)
        # The second longest: of an iterator only the first items are compared.
        second = lower[-1:] if top.edge.kind == "long" else rng.sample(lower, min(len(lower), 1))
        groups.setdefault(top.edge.group, []).append([top, *second])
    first = [one for ladders in groups.values() for one in ladders[0]]
    others = [one for ladders in groups.values() for some in ladders[1:] for one in some]
    return [*first, *others[: max(0, MOST_EDGES - len(first))]]
