"""The tiny model of these tests, created once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # for tiny.py

import tiny

from envkit.models import ModelRef

torch.set_num_threads(1)  # more threads do not speed up a tiny model


@pytest.fixture(scope="session")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny.make(tmp_path_factory.mktemp("tiny"))
