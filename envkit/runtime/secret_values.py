"""Secrets that a user gives an environment: read from environment variables, and kept out of all texts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from envkit.errors import UsageError

#: Shorter values would blot out ordinary words.
_FEWEST_CHARACTERS = 6


def read_secrets(names: Sequence[str]) -> dict[str, str]:
    """Read environment variables; returns name -> value.

    Raises:
        UsageError: one is missing, or too short to be a secret. No message holds a value.
    """
    values: dict[str, str] = {}
    for name in names:
        value = os.environ.get(name, "")
        if len(value) < _FEWEST_CHARACTERS:
            found = f"has {len(value)} characters" if value else "is not set"
            raise UsageError(
                f"the environment variable {name} {found}; expected a secret of {_FEWEST_CHARACTERS} or more "
                f"characters: export {name}=..."
            )
        values[name] = value
    return values


def blotted_out(text: str, secrets: Mapping[str, str]) -> str:
    """Replace every value by its name in brackets.

    >>> blotted_out("key=abc123!", {"SHOP_KEY": "abc123"})
    'key=[SHOP_KEY]!'
    >>> blotted_out("abc123def", {"A": "abc123", "B": "abc123def"})
    '[B]'
    """
    # The longest first, because one secret may be a part of another.
    for name, value in sorted(secrets.items(), key=lambda item: -len(item[1])):
        text = text.replace(value, f"[{name}]")
    return text
