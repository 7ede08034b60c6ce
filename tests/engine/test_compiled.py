"""A compiled engine draws what plain transformers would."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from sampling import STOPS, adapted, check, following, requests

from envkit.engine.lora import updates_of
from envkit.engine.protocol import Sampling
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import ModelError
from envkit.models import ModelRef

#: torch's own compiler loads parts of torch that torch has given up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.skipif(shutil.which("g++") is None and "CI" not in os.environ, reason="there is no g++")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tokens_and_logprobs_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    ref = tiny.make(tmp_path, family)
    peft, engine = adapted(ref), TorchEngine(tiny.plain(ref), STOPS, torch_compile=True)
    engine.load([updates_of(peft, "0"), {}])
    asked = [
        dataclasses.replace(request, adapter=number % 2, goes_on=True)
        for number, request in enumerate(requests())
    ]
    for turn in range(2):
        drawn = engine.generate(asked, Sampling(1.0, 6))
        for number, model in enumerate((peft, tiny.plain(ref))):
            mine = [index for index, request in enumerate(asked) if request.adapter == number]
            check(model, [asked[index] for index in mine], [drawn[index] for index in mine], 1.0)
        numbers = [request.adapter for index, request in enumerate(asked) if index % 5 != turn]
        asked = [
            dataclasses.replace(request, adapter=number)
            for request, number in zip(following(asked, drawn, turn), numbers, strict=True)
        ]


def test_without_a_compiler_there_is_a_clear_error(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(ModelError, match=r"torch_compile: .*it needs a C\+\+ compiler"):
        TorchEngine(tiny.plain(ref), STOPS, torch_compile=True)


def test_a_model_without_blocks_is_refused(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.plain(ref)
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ModelError, match="torch_compile: this model names no blocks"):
        TorchEngine(model, STOPS, torch_compile=True)
