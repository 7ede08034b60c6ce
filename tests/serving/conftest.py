"""A tiny model, one that calls a tool when it is asked to, two adapters, and a server of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # for tiny.py and served.py
sys.path.append(str(Path(__file__).parents[1] / "helpers" / "servers"))

import tiny
from served import Process, save_adapter, serving, teach_call

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tiny.make(folder)
    return folder


@pytest.fixture(scope="session")
def caller(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "caller"
    shutil.copytree(model, folder)
    teach_call(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("red", "blue")):
        save_adapter(model, folder / name, seed)
    return folder


@pytest.fixture(scope="session")
def server(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Process]:
    """A server without keys."""
    folder = tmp_path_factory.mktemp("open")
    options = ["--model", str(model), "--adapters", str(adapters), "--ledger", str(folder / "ledger.db")]
    with serving(folder, options) as process:
        yield process
