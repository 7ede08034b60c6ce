"""The tiny model of these tests, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for tiny.py

import tiny

from envkit.models import ModelRef

torch.set_num_threads(1)  # all that a tiny model can use


@pytest.fixture(scope="session")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny.make(tmp_path_factory.mktemp("tiny"))
