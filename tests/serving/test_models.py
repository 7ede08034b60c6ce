"""Adapters of a folder as models, while files come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from envkit.engine.updates import Update
from envkit.serving.models import Models


@final
class _Pool:
    """Names that are registered."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.loaded, self.used_bytes, self.loads, self.evictions = (), 0, 0, 0

    def register(self, name: str, read: Callable[[], Mapping[str, Update]]) -> None:
        self.names.add(name.partition("@")[0])

    def unregister(self, name: str) -> None:
        self.names.remove(name.partition("@")[0])


def test_a_model_that_is_gone_leaves_the_pool_also_if_its_folder_stays(tmp_path: Path) -> None:
    pool = _Pool()
    models = Models("base", tmp_path, {}, tmp_path, lambda folder: None, list)

    def add(name: str) -> None:
        (tmp_path / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name / file).write_text("{}")
        version = models.version(name)
        assert version is not None
        models.register(name, version, pool, is_used=lambda version: False)

    for name in ("stays", "loses-its-weights", "goes"):
        add(name)
    (tmp_path / "loses-its-weights" / "adapter_model.safetensors").unlink()
    (tmp_path / "goes").rename(tmp_path / ".goes")
    add("new")
    assert pool.names == {*models.ids()} - {"base"} == {"stays", "new"}
