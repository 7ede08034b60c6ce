"""Merged adapters: the exact sum is one, and every way gives an adapter that loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from envkit.engine.adapters.updates import updates_of
from envkit.errors import StoreError, UsageError
from envkit.models import ModelRef
from envkit.training.checkpoint import save_adapter
from envkit.training.config import TrainConfig
from envkit.training.merging import METHODS, merge_adapters
from envkit.training.policy import Policy

CONFIG = TrainConfig(lora_r=2, dtype="float32", kv_cache_mb=16)


def adapter(ref: ModelRef, folder: Path, seed: int, rank: int = 2) -> Path:
    """Save an adapter whose weights are all random."""
    policy = Policy.of(ref, dataclasses.replace(CONFIG, lora_r=rank, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    save_adapter(policy, folder)
    policy.close()
    return folder


def changes(ref: ModelRef, folder: Path) -> dict[str, torch.Tensor]:
    """Load an adapter as a bench does; returns what it adds to each layer."""
    policy = Policy.of(ref, CONFIG)
    policy.add(folder, "it")
    found = {name: update.up @ update.down for name, update in updates_of(policy.model, "it").items()}
    policy.close()
    return found


@pytest.fixture(scope="module")
def two(ref: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [adapter(ref, folder / f"{seed}", seed) for seed in (1, 2)]


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_adapter_loads_and_changes_every_layer(
    ref: ModelRef, two: list[Path], tmp_path: Path, method: str
) -> None:
    merge_adapters(ref, two, tmp_path / "merged", method)
    one, other, merged = (changes(ref, folder) for folder in (*two, tmp_path / "merged"))
    assert merged.keys() == one.keys() == other.keys()
    for name, change in merged.items():
        exact = torch.allclose(change, one[name] + other[name], atol=1e-5)
        assert exact == (method == "cat"), name
        assert change.abs().max() > 0


@pytest.mark.parametrize("method", ["linear", "dare_linear", "ties"])
def test_updates_of_adapters_of_one_seed_are_added_once(ref: ModelRef, tmp_path: Path, method: str) -> None:
    """They share the first factor, as far as training does not change it."""
    folders: list[Path] = []
    for number in range(3):
        policy = Policy.of(ref, dataclasses.replace(CONFIG, seed=5))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        save_adapter(policy, tmp_path / f"{number}")
        policy.close()
        folders.append(tmp_path / f"{number}")
    merge_adapters(ref, folders, tmp_path / "merged", method)
    parts, merged = [changes(ref, folder) for folder in folders], changes(ref, tmp_path / "merged")
    found = torch.cat([change.flatten() for change in merged.values()])
    wanted = torch.cat([sum(part[name] for part in parts).flatten() for name in merged])  # type: ignore[union-attr]
    share = float(found @ wanted / (wanted @ wanted))
    if method == "linear":
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    else:
        assert (0.3 if method == "ties" else 0.8) < share < 1.2


def test_what_is_left_out_depends_on_the_seed(ref: ModelRef, two: list[Path], tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        merge_adapters(ref, two, tmp_path / name, "dare_linear", seed=seed)
    first, again, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "again", "b")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_other_ranks_only_add_up_exactly(ref: ModelRef, two: list[Path], tmp_path: Path) -> None:
    wider = adapter(ref, tmp_path / "wider", 3, rank=4)
    with pytest.raises(UsageError, match=r"ties merges adapters of one rank, found \[2, 4\]"):
        merge_adapters(ref, [two[0], wider], tmp_path / "no", "ties")
    merge_adapters(ref, [two[0], wider], tmp_path / "merged", "cat")
    one, other, merged = (changes(ref, folder) for folder in (two[0], wider, tmp_path / "merged"))
    assert all(torch.allclose(merged[name], one[name] + other[name], atol=1e-5) for name in one)


def test_bad_input_is_refused(ref: ModelRef, two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no way to merge is named 'mean'; expected one of: cat, linear"):
        merge_adapters(ref, two, tmp_path / "x", "mean")
    with pytest.raises(UsageError, match="found 1 adapter to merge"):
        merge_adapters(ref, two[:1], tmp_path / "x", "cat")
    with pytest.raises(StoreError):
        merge_adapters(ref, two, two[0], "cat")
