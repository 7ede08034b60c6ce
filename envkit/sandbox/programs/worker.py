"""The program that answers calls inside a sandbox; stdlib only, run as ``python -P -S -c SOURCE``.

It shares a process with hostile code, so its output is not trusted. It holds no expected value; the host
compares every answer. Protocol, one JSON object per line:

    argv        module path, function name, comma-separated modules that arguments may use;
                a method ``Class.method`` is called on a new instance each time; then folders of packages that
                may be imported, if there are any
    first line  {"id": ..., "ready": true} after import, or {"id": ..., "raises": TYPE}
    request     {"id": ..., "calls": [[[SOURCE, ...], {NAME: SOURCE, ...}], ...]}, positional arguments first
    answer      {"id": ..., "answers": [{"value": ENCODED, "after": [ENCODED, ...]} or {"raises": TYPE}, ...]}
                for the first calls, as many as fit into about `MAX_MESSAGE` characters; at least one

Encoded values are JSON with exact types. Plain: None, bool, int, str, list. Tagged as
``{"t": KIND, "v": ...}``: float, tuple, set, frozenset, dict, bytes, complex, range, deque,
Counter, OrderedDict, defaultdict, Decimal, Fraction, iterator (materialised up to a cap). Anything
else is ``{"t": "opaque", "v": TYPE}`` and never equals anything. ``after`` encodes, after the call,
the arguments that can be changed in place, so that such changes count: positional arguments in order, then
keyword arguments in the call's order.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_ITEMS = 10_000
MAX_ITERATOR = 64
MAX_TEXT = 100_000
MAX_DEPTH = 40
MAX_MESSAGE = 65_536


class Unencodable(Exception):
    """The value is too large or nested too deeply to be an answer."""


def exact_type(value: object) -> type:
    """The type of a value; a subclass is not its base class."""
    return type(value)


def encode(value: Any, budget: list[int] | None = None, depth: int = 0) -> Any:
    """Encode ``value`` as JSON data with exact types.

    Raises:
        Unencodable: too many items, a text too long, or nesting too deep.
    """
    if budget is None:
        budget = [MAX_ITEMS]
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise Unencodable("too many items or too deep")

    def each(items: Iterable[Any]) -> list[Any]:
        return [encode(item, budget, depth + 1) for item in items]

    def in_order(items: Iterable[Any], key: Callable[[Any], Any]) -> list[Any]:
        import json  # bound per call: the module may be patched, and then only answers go wrong

        return sorted(items, key=lambda item: json.dumps(key(item), sort_keys=True))

    def pairs(mapping: dict[Any, Any]) -> list[Any]:
        return in_order(map(each, mapping.items()), lambda pair: pair[0])

    def text(written: str) -> str:
        if len(written) > MAX_TEXT:
            raise Unencodable("text too long")
        return written

    kind = exact_type(value)  # exact: a subclass of int with its own __eq__ is not an int
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -(2**53) < value < 2**53 else {"t": "int", "v": text(hex(value))}
    if kind is str:
        return text(value)
    if kind is list:
        return each(value)
    name = kind.__name__
    if kind is float:
        return {"t": name, "v": repr(value)}
    if kind is tuple:
        return {"t": name, "v": each(value)}
    if kind in (set, frozenset):
        return {"t": name, "v": in_order(each(value), lambda item: item)}
    if kind is dict:
        return {"t": name, "v": pairs(value)}
    if kind in (bytes, bytearray):
        return {"t": name, "v": text(value.hex())}
    if kind in (complex, range):
        return {"t": name, "v": repr(value)}
    module = kind.__module__
    if module == "collections" and name in ("Counter", "defaultdict"):
        return {"t": name, "v": pairs(value)}
    if module == "collections" and name == "OrderedDict":  # the one mapping whose equality knows order
        return {"t": name, "v": [each(pair) for pair in value.items()]}
    if module == "collections" and name == "deque":
        return {"t": name, "v": each(value)}
    if (module, name) in (("decimal", "Decimal"), ("fractions", "Fraction")):
        return {"t": name, "v": str(value)}
    if hasattr(kind, "__next__") and hasattr(kind, "__iter__"):
        items: list[Any] = []
        for item in value:
            if len(items) == MAX_ITERATOR:
                items.append({"t": "more", "v": None})
                break
            items.append(encode(item, budget, depth + 1))
        return {"t": "iterator", "v": items}
    return {"t": "opaque", "v": name}


def changeable(value: Any) -> bool:
    """True if a call can change the argument in place and `encode` shows it."""
    kind = exact_type(value)
    if kind is tuple:
        return any(map(changeable, value))
    if kind in (list, dict, set, bytearray):
        return True
    named = kind.__name__ in ("Counter", "OrderedDict", "defaultdict", "deque")
    return named and kind.__module__ == "collections"


def after(args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Encode the arguments after a call, except those that cannot change."""
    return [encode(each) for each in (*args, *kwargs.values()) if changeable(each)]


def main(argv: list[str]) -> None:
    """Import the module, then answer requests from stdin until it closes."""
    import importlib
    import json
    import os
    import sys

    path, function, modules, *packages = argv
    owner, _, method = function.partition(".")
    # Messages use a private copy of stdout. Prints of the candidate go to stderr.
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    sink = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    sys.path += packages

    def outcome(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return work()
        except RecursionError:
            return {"raises": "RecursionError"}
        except BaseException as error:  # SystemExit in a call is an answer, not an exit
            return {"raises": type(error).__name__}

    names = {name: importlib.import_module(name) for name in modules.split(",") if name}
    found: list[Any] = []

    def load() -> dict[str, Any]:
        with open(path, encoding="utf-8") as file:
            code = compile(file.read(), "solution.py", "exec", dont_inherit=True)
        module = type(sys)("solution")
        sys.modules["solution"] = module
        exec(code, module.__dict__)
        found.append(module.__dict__[owner] if method else module.__dict__[function])
        return {"ready": True}

    def call(positional: list[str], named: dict[str, str]) -> dict[str, Any]:
        scope: dict[str, Any] = dict(names)
        args = [eval(text, scope) for text in positional]
        kwargs = {name: eval(text, scope) for name, text in named.items()}
        asked = getattr(found[0](), method) if method else found[0]
        value = encode(asked(*args, **kwargs))
        return {"value": value, "after": after(args, kwargs)}

    def send(text: str) -> None:
        data = text.encode()
        while data:  # a signal may cut a write short
            data = data[os.write(sink, data) :]

    ident = json.loads(source.readline())["id"]
    send(json.dumps({"id": ident, **outcome(load)}) + "\n")
    for line in source:
        request, answers, room = json.loads(line), list[str](), MAX_MESSAGE
        for positional, named in request["calls"]:
            answers.append(json.dumps(outcome(lambda: call(positional, named))))  # noqa: B023
            room -= len(answers[-1])
            if room < 0:
                break
        send(f'{{"id": {json.dumps(request["id"])}, "answers": [{", ".join(answers)}]}}\n')


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
