"""Calls of a function, with arguments as Python source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from envkit.types import JSON


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call as Python source, which is evaluated anew each time the call is made.

    Args:
        args: positional arguments: literals, lambdas, or expressions with names of standard-library modules.
        kwargs: keyword arguments of the same kinds.
    """

    args: tuple[str, ...]
    kwargs: Mapping[str, str] = field(default_factory=dict[str, str])

    def source(self, function: str) -> str:
        """Source of the call. ``Class.method`` is called on a new instance: ``Class().method(...)``."""
        function = function.replace(".", "().")
        return f"{function}({', '.join([*self.args, *(f'{k}={v}' for k, v in self.kwargs.items())])})"

    def to_plain(self) -> JSON:
        """See `envkit.runtime.plain.HasPlainForm`."""
        return [list(self.args), dict(self.kwargs)]

    @classmethod
    def from_plain(cls, value: object) -> Call:
        """See `envkit.runtime.plain.HasPlainForm`."""
        parts = cast("list[object]", value) if isinstance(value, list) else []
        if len(parts) == 2 and isinstance(parts[0], list) and isinstance(parts[1], dict):
            args, kwargs = cast("list[str]", parts[0]), cast("dict[str, str]", parts[1])
            if all(type(source) is str for source in (*args, *kwargs.values())):
                return cls(tuple(args), dict(kwargs))
        raise ValueError("expected [[SOURCE, ...], {NAME: SOURCE, ...}]")


def literal(value: Any) -> str:
    """Source of a value, like ``repr`` but independent of the hash order of sets.

    >>> literal({"b", "a"})
    "{'a', 'b'}"
    """
    kind = exact_type(value)
    if kind is dict:
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if kind not in (set, list, tuple):
        return repr(value)
    parts: list[str] = [literal(item) for item in value]
    if kind is set:
        return "{" + ", ".join(sorted(parts)) + "}" if parts else "set()"
    if kind is list:
        return f"[{', '.join(parts)}]"
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def exact_type(value: object) -> type:
    """The type of a value of any type."""
    return type(value)
