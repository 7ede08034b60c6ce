"""Early layers: the hidden states are those of plain transformers, and the engine samples as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from envkit.engine.adapters.updates import Update
from envkit.engine.early import EarlyLayers
from envkit.engine.protocol import Request, Sampling
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import ModelError
from envkit.models import ModelRef

PROMPTS = [tiny.prompt(length, seed=length) for length in (5, 40, 1, 17)]


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "phi", "gpt_neox"])
def test_means_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    ref = tiny.make(tmp_path / family, family, num_hidden_layers=5)
    early = EarlyLayers(tiny.engine(ref), 2)
    assert (early.count, early.all) == (2, 5)
    found = early.means(PROMPTS)
    plain = tiny.plain(ref)
    for prompt, mean in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            states = plain(torch.tensor([prompt]), output_hidden_states=True).hidden_states[2][0]
        expected = (states / states.square().mean(dim=-1, keepdim=True).sqrt()).mean(dim=0)
        assert torch.from_numpy(mean).float() == pytest.approx(expected, abs=1e-4)


def test_a_quarter_of_the_layers_is_the_default(tmp_path: Path) -> None:
    engine = tiny.engine(tiny.make(tmp_path / "model", num_hidden_layers=9))
    assert EarlyLayers(engine).count == 2
    with pytest.raises(ModelError, match="10 layers are asked for, and the base has 9"):
        EarlyLayers(engine, 10)


def test_adapters_change_nothing_and_the_engine_samples_as_before(ref: ModelRef) -> None:
    engine: TorchEngine = tiny.engine(ref)
    layer = "model.layers.0.mlp.down_proj"
    torch.manual_seed(0)
    adapter = {layer: Update(torch.randn(4, 128), torch.randn(64, 4))}
    early = EarlyLayers(engine, 1)
    before = early.means(PROMPTS)
    requests = [Request(prompt, (number,)) for number, prompt in enumerate(PROMPTS)]
    engine.load([adapter])
    answers = engine.generate(requests, Sampling(1.0, 8))
    assert (early.means(PROMPTS) == before).all()
    assert engine.generate(requests, Sampling(1.0, 8)) == answers
