"""A configuration that cannot fit into memory is refused before the model is loaded."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from envkit.errors import ConfigError
from envkit.models import ModelRef
from envkit.training import memory
from envkit.training.config import TrainConfig
from envkit.training.policy import Policy

CONFIG = TrainConfig(dtype="float32")


def test_the_estimate_counts_weights_and_adapter(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    parts = memory.estimate_bytes(ref, dataclasses.replace(CONFIG, lora_r=4))
    trained = sum(parameter.numel() for parameter in policy.trainable())
    frozen = sum(parameter.numel() for parameter in policy.model.parameters()) - trained
    assert parts["weights"] == 4 * frozen
    assert parts["adapter"] == 5 * 4 * trained


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"lora_r": 1024}, "lower lora_r, which is 1024"),
        ({"max_completion_length": 2**17}, "lower max_completion_length, which is 131072"),
        (
            {"max_tokens_per_forward": 2**17, "max_completion_length": 4096},
            "lower max_tokens_per_forward, which is 131072",
        ),
    ],
)
def test_a_too_large_configuration_is_refused_with_the_fields_to_lower(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], advice: str
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**25)
    config = dataclasses.replace(CONFIG, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=rf"needs at least .* GiB .*{advice}"):
        Policy.of(ref, config)


def test_a_configuration_that_fits_is_accepted(ref: ModelRef) -> None:
    assert memory.available_bytes()
    memory.require_memory(ref, CONFIG)
