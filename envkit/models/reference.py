"""Resolve a model's name to a folder of safetensors with a digest.

A known id names exact weights: ``qwen2.5-coder-0.5b-q4`` is Qwen's own quantised file, and needs no model
hub. The hub's other files differ slightly and have other ids. PyTorch is imported only when a model must be
converted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from envkit.errors import EnvkitError, MissingExtraError, ModelError, StoreError, UsageError
from envkit.models.convert import convert
from envkit.models.fetch import fetch_file
from envkit.models.known import KNOWN, KnownModel
from envkit.runtime.cache import cache_dir, cache_folder
from envkit.runtime.display import Display, Silent
from envkit.runtime.files import file_digest, read_json_object
from envkit.runtime.store import whole_folder

#: Files to fetch from the hub. Newer models keep the chat template in a ``*.jinja`` file.
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_SILENT = Silent()
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


def resolve(name: str, display: Display = _SILENT) -> ModelRef:
    """Find or fetch a model.

    Args:
        name: a known id, a local folder, or a hub id ``owner/name``.
        display: shows sizes before anything large is downloaded or converted, and the progress.

    Raises:
        ModelError: there is no such model, or the folder is not one.
        UsageError: the cache cannot be written to, or the disk is full.
        MissingExtraError: a package that fetching or converting the model needs is not installed.
    """
    if name in KNOWN:
        path = _cached(name)
        if not is_fetched(name):
            cache_folder("models")
            with _locked(path):
                if not is_fetched(name):
                    _make(KNOWN[name], path, display)
        return ModelRef(name, path, _cached_digest(path))
    if os.path.isdir(name):  # False for an impossible file name, where Path.is_dir raises
        path = Path(name)
        _require_model(path)
        return ModelRef(path.resolve().name, path, weights_digest(path))
    exists = os.path.exists(name)
    if not exists and _HUB_ID.fullmatch(name):
        return _from_hub(name, display)
    found = "a file" if exists else "nothing"
    raise ModelError(
        f"model {name!r}: found {found}; expected {', '.join(KNOWN)}, a folder with config.json and "
        "*.safetensors, or a hub id owner/name"
    )


def is_fetched(name: str) -> bool:
    """True if a known model is in the cache."""
    return (_cached(name) / "digest.json").exists()


def _cached(name: str) -> Path:
    return cache_dir() / "models" / name


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


def _make(model: KnownModel, path: Path, display: Display) -> None:
    """Fetch and convert a model. Call it with the model's lock held.

    An interrupted download goes on where it was. Afterwards only the converted model is left.
    """
    # Before anything is downloaded.
    _require_installed("gguf", "huggingface_hub", "safetensors", "torch", "transformers")
    from safetensors import SafetensorError

    fetched = path.with_name(f".fetched-{path.name}")
    try:
        fetched.mkdir(exist_ok=True)
        _require_space(model, fetched)
        file = fetch_file(model, fetched, display)
        display.say(f"converting to safetensors ({model.dtype}, {_gb(model.disk_bytes)} on disk), once")
        with whole_folder(path) as made:  # never converted again
            convert(model, file, made)
            (made / "digest.json").write_text(json.dumps({"sha256": weights_digest(made)}))
        shutil.rmtree(fetched)
    except (OSError, StoreError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"cannot make the model in {path.parent}: {reason}; free {_gb(_needed_bytes(model))} there, "
            "or set ENVKIT_CACHE to another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            fetched.rmdir()  # if nothing came


def _require_space(model: KnownModel, folder: Path) -> None:
    """Refuse to begin a download that the disk cannot hold; what the folder has already counts.

    Raises:
        OSError: too little space.
    """
    free = shutil.disk_usage(folder).free
    there = sum(file.stat().st_size for file in folder.iterdir())
    if free + there < _needed_bytes(model):
        raise OSError(f"{_gb(free)} are free")


def _needed_bytes(model: KnownModel) -> int:
    """Return the space that is needed: for the file twice while it is joined, then for file and model."""
    return model.file_bytes + max(model.file_bytes, model.disk_bytes)


def _gb(size: float) -> str:
    return f"{size / 10**9:.1f} GB"


def _from_hub(name: str, display: Display) -> ModelRef:
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    display.say(f"looking up {name} on the model hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=_MODEL_FILES))
    except Exception as error:  # the hub's, and those of its HTTP library, which are of no common kind
        raise ModelError(f"model {name!r}: the hub could not give it: {str(error)[:200]}") from error
    _require_model(folder)
    return ModelRef(name, folder, weights_digest(folder))
