"""Checkpoints are written atomically: an interrupted save leaves the previous one."""

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
from envkit.training import checkpoint
from envkit.training.checkpoint import CheckpointStore, load_adapter, save_adapter
from envkit.training.policy import Policy

STATE = {"step": 1, "curriculum": {"solved": [0.1, 1 / 3]}}


class Killed(BaseException):
    """Stands in for SIGKILL: no code may catch it."""


@pytest.fixture(scope="module")
def policy(ref: ModelRef) -> Policy:
    return tiny.policy(ref, noise=0.1)


@pytest.fixture(scope="module")
def other_policy(ref: ModelRef) -> Policy:
    """A policy with other weights, to load checkpoints into."""
    return tiny.policy(ref, seed=77)


def optimizer_after_a_step(policy: Policy) -> torch.optim.Optimizer:
    """Return an optimizer after one step, so that it has moments."""
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3)
    torch.manual_seed(len(optimizer.state))
    for parameter in policy.trainable():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values()]


def assert_newest_loads(
    store: CheckpointStore, other_policy: Policy, step: int, saved: list[torch.Tensor]
) -> None:
    """Assert that the newest checkpoint is ``step`` and loads the saved tensors."""
    assert store.steps()[-1] == step
    with torch.no_grad():
        for parameter in other_policy.trainable():
            parameter.zero_()
    optimizer = torch.optim.AdamW(other_policy.trainable())
    assert store.load(other_policy, optimizer) == STATE
    assert tiny.equal(saved, [*tiny.weights(other_policy), *moments(optimizer)])


def test_a_checkpoint_loads_bit_for_bit(policy: Policy, other_policy: Policy, tmp_path: Path) -> None:
    optimizer, store = optimizer_after_a_step(policy), CheckpointStore(tmp_path / "checkpoints")
    path = store.save(1, policy, optimizer, STATE)
    assert path == store.path(1) == tmp_path / "checkpoints" / "step-000001"
    assert_newest_loads(store, other_policy, 1, [*tiny.weights(policy), *moments(optimizer)])
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["model"], manifest["base"]) == (1, policy.ref.id, policy.ref.digest)
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "state.json"} <= set(
        manifest["files"]
    )


def test_loading_without_checkpoints_returns_none(policy: Policy, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.steps() == []
    assert store.load(policy, optimizer_after_a_step(policy)) is None


def test_only_the_newest_two_checkpoints_are_kept(policy: Policy, tmp_path: Path) -> None:
    optimizer, store = optimizer_after_a_step(policy), CheckpointStore(tmp_path)
    for step in (5, 10, 100, 1_000_000):
        store.save(step, policy, optimizer, STATE)
    assert store.steps() == [100, 1_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000100", "step-1000000"]


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_part_of_it(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, store = optimizer_after_a_step(policy), CheckpointStore(tmp_path)
    for step in (5, 10):
        store.save(step, policy, optimizer, STATE)

    def killed(folder: Path, *_: Any, **__: Any) -> None:
        if "step-000005" in str(folder):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(15, policy, optimizer, STATE)
    assert store.steps() == [10, 15]
    assert store.load(policy, optimizer) == STATE
    store.save(20, policy, optimizer, STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000015", "step-000020"]


def test_a_checkpoint_is_never_overwritten(policy: Policy, tmp_path: Path) -> None:
    optimizer, store = optimizer_after_a_step(policy), CheckpointStore(tmp_path)
    path = store.save(1, policy, optimizer, STATE)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    store.save(1, policy, optimizer_after_a_step(policy), {"step": 2})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_recording_why_training_ended_does_not_change_the_checkpoint(
    policy: Policy, other_policy: Policy, tmp_path: Path
) -> None:
    optimizer, store = optimizer_after_a_step(policy), CheckpointStore(tmp_path)
    assert store.alarm() == ""
    store.save(1, policy, optimizer, STATE)
    assert store.alarm() == ""
    store.record_failure("the gradient is not finite")
    assert CheckpointStore(tmp_path).alarm() == "the gradient is not finite"
    assert_newest_loads(store, other_policy, 1, [*tiny.weights(policy), *moments(optimizer)])
    store.save(2, policy, optimizer, {**STATE, "alarm": "collapsed"})
    assert store.alarm() == "collapsed"


def counting(function: Callable[..., Any], calls: list[int], kill_at: int | None) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == kill_at:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


@contextmanager
def kill_at_call(point: int | None) -> Iterator[list[int]]:
    """Raise `Killed` just before the ``point``-th call of fsync, rename or torch.save."""
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename"):
            patch.setattr(os, name, counting(getattr(os, name), calls, point))
        patch.setattr(torch, "save", counting(torch.save, calls, point))
        yield calls


def test_a_kill_at_any_point_leaves_the_last_checkpoint(
    policy: Policy, other_policy: Policy, tmp_path: Path
) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    saved = [*tiny.weights(policy), *moments(optimizer)]
    store.save(1, policy, optimizer, STATE)
    optimizer = optimizer_after_a_step(policy)
    with kill_at_call(None) as calls:
        CheckpointStore(tmp_path / "count").save(2, policy, optimizer, {})
    assert len(calls) >= 8
    for point in range(len(calls) - 1):  # the last call is the fsync after the rename
        with pytest.raises(Killed), kill_at_call(point):
            store.save(2, policy, optimizer, {"step": 2})
        assert_newest_loads(store, other_policy, 1, saved)
    with pytest.raises(Killed), kill_at_call(len(calls) - 1):
        store.save(2, policy, optimizer, STATE)
    assert_newest_loads(store, other_policy, 2, [*tiny.weights(policy), *moments(optimizer)])
    # The leftovers of a killed save are removed when that step is saved again.
    (tmp_path / ".step-000003.0badc0de").mkdir()
    (tmp_path / ".step-000003.0badc0de" / "state.json").write_text("{")
    store.save(3, policy, optimizer, STATE)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "count") == ["step-000002", "step-000003"]


@contextmanager
def file_size_limit(file_bytes: int) -> Iterator[None]:
    """Limit the size of files to ``file_bytes``; longer writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("file_bytes", [0, 300, 20_000, 80_000])
def test_a_full_disk_raises_and_keeps_the_last_checkpoint(
    policy: Policy, other_policy: Policy, tmp_path: Path, file_bytes: int
) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    path = store.save(1, policy, optimizer, STATE)
    assert (path / "optimizer.pt").stat().st_size > 80_000
    with (
        pytest.raises(StoreError, match=r"cannot write .*step-000002: .*untouched"),
        file_size_limit(file_bytes),
    ):
        store.save(2, policy, optimizer_after_a_step(policy), {})
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]
    assert store.load(other_policy, torch.optim.AdamW(other_policy.trainable())) == STATE


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")]
)
def test_a_failed_rename_raises_and_keeps_the_last_checkpoint(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    store.save(1, policy, optimizer, STATE)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StoreError, match=str(error.strerror)):
        store.save(2, policy, optimizer, STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "state.json"]
)
@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_a_damaged_file_is_named(
    policy: Policy, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    damage(store.save(1, policy, optimizer, STATE) / name)
    before = tiny.weights(policy)
    with pytest.raises(StoreError, match=name):
        store.load(policy, optimizer)
    assert tiny.equal(before, tiny.weights(policy))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"base": "x"}', '{"base": "x", "files": 3}'])
def test_a_damaged_manifest_is_named(policy: Policy, tmp_path: Path, content: str) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    (store.save(1, policy, optimizer, STATE) / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="step-000001 cannot be read"):
        store.load(policy, optimizer)


def test_another_base_model_is_refused(policy: Policy, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, policy, optimizer_after_a_step(policy), STATE)
    other = tiny.policy(tiny.make(tmp_path / "model", "llama", rms_norm_eps=1e-3))
    file = tmp_path / "model" / "model.safetensors"
    with file.open("ab") as stream:
        stream.write(b" ")
    other.ref = ModelRef("other", other.ref.path, "0" * 64)
    with pytest.raises(StoreError, match=r"was trained on weights [0-9a-f]{12}, not other's"):
        store.load(other, torch.optim.AdamW(other.trainable()))


def test_a_checkpoint_without_its_manifest_is_refused_before_training(policy: Policy, tmp_path: Path) -> None:
    store, optimizer = CheckpointStore(tmp_path), optimizer_after_a_step(policy)
    store.save(1, policy, optimizer, STATE)
    (store.save(2, policy, optimizer, STATE) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"step-000002 has no manifest\.json, .*; delete it"):
        store.load(policy, optimizer)
    with pytest.raises(StoreError, match=r"step-000002 has no manifest\.json, .*; delete it"):
        store.save(2, policy, optimizer, STATE)


def test_a_changed_byte_in_a_saved_adapter_is_refused(
    policy: Policy, other_policy: Policy, tmp_path: Path
) -> None:
    folder = tmp_path / "sft"
    save_adapter(policy, folder)
    load_adapter(other_policy, folder)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"safetensors differs from its manifest: .*; restore it or delete"):
        load_adapter(other_policy, folder)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors differs from its manifest"):
        other_policy.add(folder, "damaged")


def test_a_checkpoint_without_its_optimizer_is_still_an_adapter(
    policy: Policy, other_policy: Policy, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(1, policy, optimizer_after_a_step(policy), STATE)
    (folder / "optimizer.pt").unlink()
    (folder / "README.md").write_text("A model card that its owner has written.")
    load_adapter(other_policy, folder)
    other_policy.add(folder, "trained")
    with pytest.raises(StoreError, match=r"optimizer\.pt"):
        store.load(other_policy, optimizer_after_a_step(other_policy))


def test_an_adapter_without_a_manifest_loads(policy: Policy, other_policy: Policy, tmp_path: Path) -> None:
    save_adapter(policy, tmp_path / "sft")
    (tmp_path / "sft" / "manifest.json").unlink()
    load_adapter(other_policy, tmp_path / "sft")
    assert tiny.equal(tiny.weights(policy), tiny.weights(other_policy))
