"""Adapters of a folder as models, while files come and go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import final

from envkit.engine.adapters.updates import Update
from envkit.runs.adapter import adapter_folder
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


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_text("{}")


def test_a_model_that_is_gone_leaves_the_pool_also_if_its_folder_stays(tmp_path: Path) -> None:
    pool = _Pool()
    models = Models("base", tmp_path, {}, tmp_path, lambda folder: None, list)

    def add(name: str) -> None:
        write(tmp_path / name)
        found = models.find(name)
        assert found is not None
        assert found.version is not None
        models.register(name, found.version, pool, is_used=lambda version: False)

    for name in ("stays", "loses-its-weights", "goes"):
        add(name)
    (tmp_path / "loses-its-weights" / "adapter_model.safetensors").unlink()
    (tmp_path / "goes").rename(tmp_path / ".goes")
    add("new")
    assert pool.names == {*models.ids()} - {"base"} == {"stays", "new"}


def test_a_run_that_trains_is_served_by_its_newest_checkpoint(tmp_path: Path) -> None:
    steps = [tmp_path / "checkpoints" / f"step-{step:06d}" for step in (10, 20)]
    models = Models(
        "base", tmp_path, {"sql": partial(adapter_folder, tmp_path)}, None, lambda folder: None, list
    )
    versions = list[str | None]()
    for folder in steps:
        write(folder)
        assert models.path("sql") == folder
        found = models.find("sql")
        assert found is not None
        versions.append(found.version)
    assert len({*versions}) == 2
    for folder in steps:
        shutil.rmtree(folder)
    assert models.find("sql") is None
    assert models.path("sql") is None
    assert models.ids() == ["base", "sql"]
