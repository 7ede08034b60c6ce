"""Convert frozen dataclasses to plain data (JSON, TOML) and back; errors name the field."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints, runtime_checkable

Data = TypeVar("Data")

#: Container types by the names that TOML and JSON users know.
_CONTAINERS: dict[Any, str] = {tuple: "a list", Mapping: "a table"}
#: Key of a dataclass field's metadata; see `stored_as`.
_STORED_AS = "stored as"


def stored_as(key: str) -> Mapping[str, str]:
    """Metadata for a dataclass field whose key in plain data is not its name."""
    return {_STORED_AS: key}


@runtime_checkable
class HasPlainForm(Protocol):
    """A dataclass that chooses its own plain form instead of a table of its fields."""

    def to_plain(self) -> object:
        """Return the plain data."""
        ...

    @classmethod
    def from_plain(cls, value: object) -> object:
        """Make an instance of plain data.

        Raises:
            ValueError: the data has another form.
        """
        ...


def encode(value: object) -> object:
    """Plain data that `decode` takes back. Infinite floats and NaN become ``None``."""
    if isinstance(value, HasPlainForm):
        return value.to_plain()
    if is_dataclass(value) and not isinstance(value, type):
        return {_key(entry): encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in cast("Mapping[str, object]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decode(kind: type[Data], value: object, where: str, *, ignore_unknown: bool = False) -> Data:
    """Build the dataclass ``kind`` from plain data; ``None`` in place of a float becomes NaN.

    Args:
        kind: the dataclass.
        value: the plain data.
        where: name of the data in error messages, ``"spec"`` for instance.
        ignore_unknown: leave out fields that ``kind`` does not have, instead of refusing them. Holds for
            ``kind`` itself, not for dataclasses inside it.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type. The message begins with its path, such
            as ``spec.agents[0]``.
    """
    if ignore_unknown and isinstance(value, Mapping):
        known = {_key(entry) for entry in fields(cast("Any", kind))}
        content = cast("Mapping[str, object]", value)
        value = {key: item for key, item in content.items() if key in known}
    return cast("Data", _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> object:
    if kind is object:  # any plain data
        return value
    if _has_plain_form(kind):
        try:
            return kind.from_plain(value)
        except ValueError as error:
            raise ValueError(f"{where} is {value!r:.60}; {error}") from None
    if is_dataclass(kind) and isinstance(value, dict):
        return _decode_fields(cast("type[Any]", kind), cast("dict[str, object]", value), where)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        item_kind, items = get_args(kind)[0], cast("list[object]", value)
        return tuple(_decode(item_kind, item, f"{where}[{i}]") for i, item in enumerate(items))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        item_kind, table = get_args(kind)[1], cast("dict[str, object]", value)
        return {key: _decode(item_kind, item, f"{where}.{key}") for key, item in table.items()}
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    not_none = [member for member in kinds if member is not NoneType]
    if len(not_none) == 1 < len(kinds) and value is not None:  # an optional field
        return _decode(not_none[0], value, where)
    if type(value) in kinds:  # exact: True is no int here
        return value
    if float in kinds and type(value) is int and abs(value) < 2**1023:  # a larger int overflows a float
        return float(value)
    if kind is float and value is None:
        return math.nan
    name = _CONTAINERS.get(get_origin(kind)) or getattr(kind, "__name__", kind)
    raise ValueError(f"{where} is {value!r:.60}; expected {name}")


def _has_plain_form(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, HasPlainForm)


def _decode_fields(kind: type[Any], content: Mapping[str, object], where: str) -> object:
    known = {_key(entry): entry for entry in fields(kind)}
    if unknown := content.keys() - known.keys():
        raise ValueError(
            f"{where} has the unknown field {min(unknown)!r}; expected {', '.join(sorted(known))}"
        )
    for key, entry in known.items():
        if key not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {key!r}")
    hints = _hints(kind)
    values = {
        known[key].name: _decode(hints[known[key].name], item, f"{where}.{key}")
        for key, item in content.items()
    }
    try:
        return kind(**values)
    except ValueError as error:  # a range that the class checks
        raise ValueError(f"{where}: {error}") from error


@functools.cache  # resolving annotations takes longer than decoding a record
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _key(entry: Field[Any]) -> str:
    """Name of a field in plain data; see `stored_as`."""
    return str(entry.metadata.get(_STORED_AS, entry.name))
