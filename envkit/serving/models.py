"""Model ids: the base, adapters that were named, and those in a folder, which may come and go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from envkit.engine.adapters.updates import Update, read_adapter
from envkit.errors import ModelError, UsageError
from envkit.models.adapter_folder import require_all_layers
from envkit.models.reference import model_errors
from envkit.serving.decoding.decoder import Adapters

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: Files whose change is another version of a model.
_BASE, _ADAPTER = ("config.json",), ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model id that exists.

    Args:
        version: name of the adapter's files as they are now; ``None`` without an adapter.
        created: time of its files, in seconds since 1970.
        specialists: ids of the models that a router may choose from; ``None`` if there is no choice.
    """

    version: str | None
    created: int
    specialists: Sequence[str] | None = None


@final
class Models:
    """Finds the adapter of a model id.

    Every subfolder of ``folder`` with an adapter is a model of its name. It is served from the moment it is
    there, without a restart; a changed adapter is read again, and a removed one is gone.

    Args:
        base: id of the base model.
        base_folder: with its files.
        named: by model id, returns the folder of an adapter as it is now, such as a run's newest checkpoint;
            raises `UsageError` if there is none.
        folder: of more adapters.
        require_fit: raises if a folder's adapter is not for this base.
        layers: returns the paths of the base's layers that an adapter can change.
    """

    def __init__(
        self,
        base: str,
        base_folder: Path,
        named: Mapping[str, Callable[[], Path]],
        folder: Path | None,
        require_fit: Callable[[Path], None],
        layers: Callable[[], Collection[str]],
    ) -> None:
        self.base, self._base_folder = base, base_folder
        self._named, self._folder = named, folder
        self._require_fit, self._layers = require_fit, layers
        #: Names in the pool of the versions of each model that rows may still use, the newest last.
        self._versions: dict[str, list[str]] = {}

    def ids(self) -> list[str]:
        """All model ids, the base first."""
        folder = self._folder
        children = sorted(path.name for path in folder.iterdir()) if folder and folder.is_dir() else []
        found = [name for name in children if name not in self._named and self._child(name) is not None]
        return [self.base, *self._named, *found]

    def path(self, model: str) -> Path | None:
        """Folder of an adapter; ``None`` if there is no such model, or it is the base."""
        if (find := self._named.get(model)) is None:
            return self._child(model)
        try:
            return find()
        except (OSError, UsageError):
            return None

    def find(self, model: str) -> ModelEntry | None:
        """Look for a model's files; ``None`` if they are not there."""
        folder = self._base_folder if model == self.base else self.path(model)
        if folder is None:
            return None
        try:
            files = [(folder / name).stat() for name in (_BASE if model == self.base else _ADAPTER)]
        except OSError:
            return None
        # Time and size may be equal where a link leads to another folder now; the inode is not.
        facts = ((f.st_mtime_ns, f.st_ctime_ns, f.st_ino, f.st_size) for f in files)
        version = "@".join([model, *("-".join(map(str, fact)) for fact in facts)])
        return ModelEntry(None if model == self.base else version, int(max(file.st_mtime for file in files)))

    def register(self, model: str, version: str, pool: Adapters, is_used: Callable[[str], bool]) -> None:
        """Offer a version in the pool. Only ``prepare`` of `Decoder.stream` may call it.

        Args:
            model: its id.
            version: as `find` returned it.
            pool: takes it.
            is_used: True if a row waits or runs with a version. Earlier ones, and those of models that have
                left the folder, are dropped when no row does.

        Raises:
            ModelError: the model was removed after it was asked for.
        """
        if version in self._versions.get(model, ()):
            return
        if (folder := self.path(model)) is None:
            raise ModelError(f"model {model} was removed before it was read")
        for name in {model, *self._gone()}:
            versions = self._versions.get(name, [])
            for old in [old for old in versions if not is_used(old)]:
                versions.remove(old)
                pool.unregister(old)
            if not versions:
                self._versions.pop(name, None)

        def read() -> Mapping[str, Update]:
            # The files come from anywhere, and an error of another kind would end the decoding thread.
            with model_errors(f"{folder}: the adapter cannot be read"):
                self._require_fit(folder)
                updates = read_adapter(folder)
                require_all_layers(folder, self._layers(), updates)
                return updates

        pool.register(version, read)
        self._versions.setdefault(model, []).append(version)

    def _gone(self) -> list[str]:
        """Models that were registered and are none any more."""
        there = {*os.listdir(self._folder)} if self._folder and self._folder.is_dir() else set[str]()
        others = self._versions.keys() - self._named.keys()
        return [name for name in others if name not in there or self.path(name) is None]

    def _child(self, name: str) -> Path | None:
        """An adapter's folder directly in ``folder``; a link that leads out of it is none."""
        if self._folder is None or name == self.base or not _NAME.fullmatch(name):
            return None
        path, root = self._folder / name, self._folder.resolve()
        files = [path / name for name in _ADAPTER]
        try:
            is_inside = path.resolve().parent == root and all(
                file.resolve().is_relative_to(root) and file.is_file() for file in files
            )
        except (OSError, RuntimeError):  # a link to itself is a RuntimeError before Python 3.13
            return None
        return path if is_inside else None


def require_names(base: str, named: Mapping[str, Path]) -> None:
    """Refuse model ids that could not be asked for.

    Raises:
        ModelError: an adapter has the base's id, or a name that is none.
    """
    for name in named:
        if name == base or not _NAME.fullmatch(name):
            raise ModelError(
                f"adapter name {name!r}: expected letters, digits, '.', '_', '-', and not the base's name"
            )
