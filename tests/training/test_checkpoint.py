"""A checkpoint is there whole or not at all, wherever its writing is cut off."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from envkit.errors import ModelError, StoreError
from envkit.models import ModelRef
from envkit.training.checkpoint import CheckpointStore, load_adapter, save_adapter
from envkit.training.policy import Policy

STATE = {"step": 1, "curriculum": {"solved": [0.1, 1 / 3]}}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.fixture(scope="module")
def policy(ref: ModelRef) -> Policy:
    return tiny.policy(ref, shaken=0.1)


@pytest.fixture(scope="module")
def fresh(ref: ModelRef) -> Policy:
    """Another process's policy, to load into."""
    return tiny.policy(ref, seed=77)


def stepped(policy: Policy) -> torch.optim.Optimizer:
    """An optimizer with moments, one step after the last."""
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3)
    torch.manual_seed(len(optimizer.state))
    for parameter in policy.trainable():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values()]


def assert_whole(store: CheckpointStore, fresh: Policy, step: int, saved: list[torch.Tensor]) -> None:
    """The newest checkpoint is ``step``, and it loads."""
    assert store.steps()[-1] == step
    with torch.no_grad():
        for parameter in fresh.trainable():
            parameter.zero_()
    optimizer = torch.optim.AdamW(fresh.trainable())
    assert store.load(fresh, optimizer) == STATE
    assert tiny.equal(saved, [*tiny.weights(fresh), *moments(optimizer)])


def test_what_was_saved_is_loaded_bit_for_bit(policy: Policy, fresh: Policy, tmp_path: Path) -> None:
    optimizer, store = stepped(policy), CheckpointStore(tmp_path / "checkpoints")
    path = store.save(1, policy, optimizer, STATE)
    assert path == store.path(1) == tmp_path / "checkpoints" / "step-000001"
    assert_whole(store, fresh, 1, [*tiny.weights(policy), *moments(optimizer)])
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["model"], manifest["base"]) == (1, policy.ref.id, policy.ref.digest)
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "state.json"} <= set(
        manifest["files"]
    )


def test_without_checkpoints_there_is_nothing_to_load(policy: Policy, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.steps() == []
    assert store.load(policy, stepped(policy)) is None


def test_the_newest_two_are_kept(policy: Policy, tmp_path: Path) -> None:
    optimizer, store = stepped(policy), CheckpointStore(tmp_path)
    for step in (5, 10, 100, 1_000_000):
        store.save(step, policy, optimizer, STATE)
    assert store.steps() == [100, 1_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000100", "step-1000000"]


def test_a_checkpoint_is_never_overwritten(policy: Policy, tmp_path: Path) -> None:
    optimizer, store = stepped(policy), CheckpointStore(tmp_path)
    path = store.save(1, policy, optimizer, STATE)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    store.save(1, policy, stepped(policy), {"step": 2})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_why_training_ended_is_added_to_a_checkpoint_that_stays_as_it_is(
    policy: Policy, fresh: Policy, tmp_path: Path
) -> None:
    optimizer, store = stepped(policy), CheckpointStore(tmp_path)
    assert store.alarm() == ""
    store.save(1, policy, optimizer, STATE)
    assert store.alarm() == ""
    store.end("the gradient is not finite")
    assert CheckpointStore(tmp_path).alarm() == "the gradient is not finite"
    assert_whole(store, fresh, 1, [*tiny.weights(policy), *moments(optimizer)])
    store.save(2, policy, optimizer, {**STATE, "alarm": "collapsed"})
    assert store.alarm() == "collapsed"


def counted(function: Callable[..., Any], calls: list[int], kill_at: int | None) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == kill_at:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


@contextmanager
def killed_at(point: int | None) -> Iterator[list[int]]:
    """Die just before the ``point``-th call that makes something durable or visible."""
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename"):
            patch.setattr(os, name, counted(getattr(os, name), calls, point))
        patch.setattr(torch, "save", counted(torch.save, calls, point))
        yield calls


def test_a_kill_at_any_point_leaves_the_last_checkpoint(
    policy: Policy, fresh: Policy, tmp_path: Path
) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    saved = [*tiny.weights(policy), *moments(optimizer)]
    store.save(1, policy, optimizer, STATE)
    optimizer = stepped(policy)
    with killed_at(None) as calls:
        CheckpointStore(tmp_path / "count").save(2, policy, optimizer, {})
    assert len(calls) >= 8
    for point in range(len(calls) - 1):  # the last only makes a finished rename durable
        with pytest.raises(Killed), killed_at(point):
            store.save(2, policy, optimizer, {"step": 2})
        assert_whole(store, fresh, 1, saved)
    with pytest.raises(Killed), killed_at(len(calls) - 1):
        store.save(2, policy, optimizer, STATE)
    assert_whole(store, fresh, 2, [*tiny.weights(policy), *moments(optimizer)])
    # What a killed process leaves behind is swept away when it does that step again.
    (tmp_path / ".step-000003.0badc0de").mkdir()
    (tmp_path / ".step-000003.0badc0de" / "state.json").write_text("{")
    store.save(3, policy, optimizer, STATE)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "count") == ["step-000002", "step-000003"]


@contextmanager
def disk_of(file_bytes: int) -> Iterator[None]:
    """Files end at ``file_bytes``; one byte more fails like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("file_bytes", [0, 300, 20_000, 80_000])
def test_a_full_disk_is_an_error_and_no_checkpoint(
    policy: Policy, fresh: Policy, tmp_path: Path, file_bytes: int
) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    path = store.save(1, policy, optimizer, STATE)
    assert (path / "optimizer.pt").stat().st_size > 80_000
    with (
        pytest.raises(StoreError, match=r"cannot write .*step-000002: .*untouched"),
        disk_of(file_bytes),
    ):
        store.save(2, policy, stepped(policy), {})
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]
    assert store.load(fresh, torch.optim.AdamW(fresh.trainable())) == STATE


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")]
)
def test_a_rename_that_fails_is_an_error(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    store.save(1, policy, optimizer, STATE)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StoreError, match=str(error.strerror)):
        store.save(2, policy, optimizer, STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "state.json"]
)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_file_is_named(
    policy: Policy, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    damage(store.save(1, policy, optimizer, STATE) / name)
    before = tiny.weights(policy)
    with pytest.raises(StoreError, match=name):
        store.load(policy, optimizer)
    assert tiny.equal(before, tiny.weights(policy))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"base": "x"}', '{"base": "x", "files": 3}'])
def test_a_damaged_manifest_is_named(policy: Policy, tmp_path: Path, content: str) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    (store.save(1, policy, optimizer, STATE) / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="step-000001 cannot be read"):
        store.load(policy, optimizer)


def test_another_base_model_is_refused(policy: Policy, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, policy, stepped(policy), STATE)
    other = tiny.policy(tiny.make(tmp_path / "model", "llama", rms_norm_eps=1e-3))
    file = tmp_path / "model" / "model.safetensors"
    with file.open("ab") as stream:
        stream.write(b" ")
    other.ref = ModelRef("other", other.ref.path, "0" * 64)
    with pytest.raises(StoreError, match=r"was trained on weights [0-9a-f]{12}, not other's"):
        store.load(other, torch.optim.AdamW(other.trainable()))


def test_a_checkpoint_without_its_manifest_is_refused_before_training(policy: Policy, tmp_path: Path) -> None:
    store, optimizer = CheckpointStore(tmp_path), stepped(policy)
    store.save(1, policy, optimizer, STATE)
    (store.save(2, policy, optimizer, STATE) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"step-000002 has no manifest\.json, .*; delete it"):
        store.load(policy, optimizer)
    with pytest.raises(StoreError, match=r"step-000002 has no manifest\.json, .*; delete it"):
        store.save(2, policy, optimizer, STATE)


def test_a_flipped_byte_in_a_saved_adapter_is_noticed(policy: Policy, fresh: Policy, tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    save_adapter(policy, folder)
    load_adapter(fresh, folder)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors differs from its manifest: .*; delete"):
        load_adapter(fresh, folder)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors differs from its manifest"):
        fresh.add(folder, "damaged")


def test_an_adapter_from_before_manifests_still_loads(policy: Policy, fresh: Policy, tmp_path: Path) -> None:
    save_adapter(policy, tmp_path / "sft")
    (tmp_path / "sft" / "manifest.json").unlink()
    load_adapter(fresh, tmp_path / "sft")
    assert tiny.equal(tiny.weights(policy), tiny.weights(fresh))
