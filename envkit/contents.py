"""Read what an environment's class declares for its sandboxes: packages, other languages, data, an image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from envkit.errors import ContractError
from envkit.sandbox import Contents

_EXAMPLES: Final = {
    "packages": ["pandas==2.3.3"],
    "toolchains": ["node"],
    "data": ["data/prices.csv"],
}


def declared_contents(kind: type[Any]) -> Contents:
    """The contents that an environment's class declares; see `envkit.env.Env.packages` and what follows it.

    Raises:
        ContractError: a declaration has the wrong type, or names a file that is not there.
        ConfigError: the declarations do not go together.
    """
    if not isinstance(kind.image, str):
        raise ContractError(f"{kind.__name__}.image is {kind.image!r}; expected a name such as 'python:3.12'")
    data = tuple(data_paths(kind))
    return Contents(_lines(kind, "packages"), _lines(kind, "toolchains"), data, kind.image)


def data_paths(kind: type[Any]) -> list[Path]:
    """Absolute paths of the files and folders in ``data``, beside the module of the class that declares them.

    Raises:
        ContractError: one is not there, or lies elsewhere.
    """
    names = _lines(kind, "data")
    if not names:
        return []
    owner = next(base for base in kind.__mro__ if "data" in vars(base))
    try:
        folder = Path(inspect.getfile(owner)).resolve().parent
    except (OSError, TypeError) as error:  # defined in a notebook, for instance
        raise ContractError(
            f"{owner.__name__}.data names files beside its module, which has no file"
        ) from error
    paths = [folder / name for name in names]
    for name, path in zip(names, paths, strict=True):
        found = path.resolve()
        if not found.exists() or found == folder or not found.is_relative_to(folder):
            raise ContractError(
                f"{kind.__name__}.data names {name!r}; expected a file or folder below {folder}, where the "
                "class's module is"
            )
    return paths


def _lines(kind: type[Any], name: str) -> tuple[str, ...]:
    """A declaration that is a sequence of texts.

    Raises:
        ContractError: it is not.
    """
    found: object = getattr(kind, name)
    lines = cast("Sequence[object]", found) if isinstance(found, list | tuple) else [found]
    if lines is not found or not all(isinstance(line, str) for line in lines):
        raise ContractError(f"{kind.__name__}.{name} is {found!r}; expected a list such as {_EXAMPLES[name]}")
    return tuple(str(line).strip() for line in lines)
