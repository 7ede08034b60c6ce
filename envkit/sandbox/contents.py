"""Read what an environment's class declares for its sandboxes: packages, other languages, data, an image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from envkit.errors import ContractError
from envkit.sandbox import OCI_LAYOUT, Contents
from envkit.sandbox.repositories import PREFIX, Repository, checkout, parse_repository

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
        SandboxUnavailable: a repository cannot be fetched.
    """
    if not isinstance(kind.image, str):
        raise ContractError(f"{kind.__name__}.image is {kind.image!r}; expected a name such as 'python:3.12'")
    data = (*data_paths(kind), *map(checkout, repositories(kind)))
    return Contents(_lines(kind, "packages"), _lines(kind, "toolchains"), data, _image(kind))


def data_paths(kind: type[Any]) -> list[Path]:
    """Absolute paths of the files and folders in ``data``, beside the module of the class that declares them.

    Repositories are not among them.

    Raises:
        ContractError: one is not there, or lies elsewhere.
    """
    return _beside(kind, "data", [line for line in _lines(kind, "data") if not line.startswith(PREFIX)])


def repositories(kind: type[Any]) -> list[Repository]:
    """The git repositories in ``data``. A path is absolute, and begins beside the class's module.

    Raises:
        ContractError: one is malformed, or a path names nothing.
    """
    found: list[Repository] = []
    for line in _lines(kind, "data"):
        if not line.startswith(PREFIX):
            continue
        if (repository := parse_repository(line)) is None:
            raise ContractError(
                f"{kind.__name__}.data names {line!r}; expected git+URL@COMMIT with the commit's whole hash, "
                "as git rev-parse HEAD shows it"
            )
        if not repository.is_remote:
            [path] = _beside(kind, "data", [repository.url])
            repository = replace(repository, url=str(path))
        found.append(repository)
    return found


def image_layout(kind: type[Any]) -> Path | None:
    """Folder of the OCI layout that ``image`` names; ``None`` if it names an image, or nothing.

    Raises:
        ContractError: it is not there, or lies elsewhere than beside the class's module.
    """
    if not kind.image.startswith(OCI_LAYOUT):
        return None
    [path] = _beside(kind, "image", [kind.image.removeprefix(OCI_LAYOUT)])
    return path


def _image(kind: type[Any]) -> str:
    layout = image_layout(kind)
    return kind.image if layout is None else f"{OCI_LAYOUT}{layout}"


def _beside(kind: type[Any], attribute: str, names: Sequence[str]) -> list[Path]:
    """Absolute paths of files and folders beside the module of the class that declares them.

    Raises:
        ContractError: one is not there, or lies elsewhere.
    """
    if not names:
        return []
    owner = next(base for base in kind.__mro__ if attribute in vars(base))
    try:
        folder = Path(inspect.getfile(owner)).resolve().parent
    except (OSError, TypeError) as error:  # defined in a notebook, for instance
        raise ContractError(
            f"{owner.__name__}.{attribute} names files beside its module, which has no file"
        ) from error
    paths = [folder / name for name in names]
    for name, path in zip(names, paths, strict=True):
        found = path.resolve()
        if not found.exists() or found == folder or not found.is_relative_to(folder):
            raise ContractError(
                f"{kind.__name__}.{attribute} names {name!r}; expected a file or folder below {folder}, "
                "where the class's module is"
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
