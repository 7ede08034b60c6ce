"""Frozen dataclasses as plain data (JSON, TOML) and back; what does not fit is named by its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

Data = TypeVar("Data")

#: What TOML and JSON call them.
_CONTAINERS: dict[Any, str] = {tuple: "a list", Mapping: "a table"}


#: Key of a field's metadata.
_STORED_AS = "stored as"


def stored_as(key: str) -> Mapping[str, str]:
    """Metadata for a dataclass field whose key in plain data is not its name."""
    return {_STORED_AS: key}


def encode(value: object) -> object:
    """Plain data that `decode` takes back; floats that are not finite become ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        return {_key(entry): encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [encode(each) for each in cast("tuple[object, ...]", value)]
    if isinstance(value, Mapping):
        return {key: encode(each) for key, each in cast("Mapping[str, object]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decode(kind: type[Data], value: object, where: str) -> Data:
    """``value`` as the dataclass ``kind``; ``None`` where a float belongs is NaN.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type; the message begins with its place,
            inside ``where``.
    """
    return cast("Data", _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> object:
    if is_dataclass(kind) and isinstance(value, dict):
        return _decode_fields(cast("type[Any]", kind), cast("dict[str, object]", value), where)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner, entries = get_args(kind)[0], cast("list[object]", value)
        return tuple(_decode(inner, each, f"{where}[{i}]") for i, each in enumerate(entries))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        inner, content = get_args(kind)[1], cast("dict[str, object]", value)
        return {key: _decode(inner, each, f"{where}.{key}") for key, each in content.items()}
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    some = [each for each in kinds if each is not NoneType]
    if len(some) == 1 < len(kinds) and value is not None:  # one that may be left out
        return _decode(some[0], value, where)
    if type(value) in kinds:  # exact: True is no int here
        return value
    if float in kinds and type(value) is int and abs(value) < 2**1023:  # a larger one is no float
        return float(value)
    if kind is float and value is None:
        return math.nan
    name = _CONTAINERS.get(get_origin(kind)) or getattr(kind, "__name__", kind)
    raise ValueError(f"{where} is {value!r:.60}; expected {name}")


def _decode_fields(kind: type[Any], content: Mapping[str, object], where: str) -> object:
    known = {_key(entry): entry for entry in fields(kind)}
    if unknown := content.keys() - known.keys():
        raise ValueError(f"{where} has the unknown field {min(unknown)!r}")
    for key, entry in known.items():
        if key not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {key!r}")
    hints = get_type_hints(kind)
    return kind(
        **{
            known[key].name: _decode(hints[known[key].name], each, f"{where}.{key}")
            for key, each in content.items()
        }
    )


def _key(entry: Field[Any]) -> str:
    """Name of a field in plain data; see `stored_as`."""
    return str(entry.metadata.get(_STORED_AS, entry.name))
