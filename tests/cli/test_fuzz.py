"""Several hundred bad command lines over all commands: each ends in success or in one line with exit code 2.

Everything that would begin real work is replaced by a refusal, so that only the reading of input is tried.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer.main

from envkit.cli import main
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import starter_tasks
from envkit.errors import UsageError

pytestmark = pytest.mark.slow  # hundreds of command lines

LINES_PER_COMMAND = 25

#: Files that the values of options and arguments name; see `folder`.
FILES = (
    "good.jsonl",
    "empty.jsonl",
    "torn.jsonl",
    "deep.json",
    "binary",
    "config.toml",
    "spec.toml",
    "a-folder",
    "run",
    "hollow-run",
    "missing",
)
WORDS = (
    "",
    " ",
    "-1",
    "0",
    "1",
    "3",
    "1e309",
    "nan",
    "-inf",
    "9" * 40,
    "abc",
    "a/b",
    "..",
    "\0",
    "\udcff",
    "é",
)
NAMES = (
    "code-editor",
    "sql-desk",
    "auto",
    "process",
    "no-op",
    "model",
    "train",
    "heldout",
    "trl",
    "[red]x[/",
)
VALUES = (*FILES, *WORDS, *NAMES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of all kinds, good and bad."""
    write_tasks(tmp_path / "good.jsonl", starter_tasks()[:1], seed=0)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "torn.jsonl").write_text((tmp_path / "good.jsonl").read_text()[:-40])
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "config.toml").write_text('lora_r = "many"\n')
    (tmp_path / "spec.toml").write_text("samples = 1\n[[environments]]\nname = 3\n")
    (tmp_path / "a-folder").mkdir()
    for name, manifest in (("run", {"schema": 1, "kind": "bench"}), ("hollow-run", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse everything that takes long, once the input has been read."""

    def begin(*_: object, **__: object) -> NoReturn:
        raise UsageError("work began")

    for place in (
        "envkit.sandbox.choice.sandbox_backend",
        "envkit.env.registry.sandbox_backend",
        "envkit.environments.code_editor.tasksets.fetch_packages",  # downloads
        "envkit.measure.viewer.server.serve",
        "envkit.models.reference._from_hub",
        "envkit.models.reference._make",  # downloads a known model
        "envkit.sandboxes.docker.build",
        "envkit.sandboxes.docker.reap",
        "envkit.sandboxes.docker.DockerBackend",
    ):
        monkeypatch.setattr(place, begin)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, child in inner.items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(main.app)))


def command_line(command: Any, path: tuple[str, ...], draw: random.Random) -> list[str]:
    """A random command line: some options with random values, some arguments, sometimes a wrong option."""
    words = [*path]
    for option in (param for param in command.params if param.param_type_name == "option"):
        if draw.random() < 0.35:
            for _ in range(draw.choice((1, 1, 2))):
                words.append(draw.choice(option.opts))
                if not option.is_flag:
                    words.append(draw.choice(VALUES))
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words += [draw.choice(VALUES) for _ in arguments if draw.random() < 0.9]
    if draw.random() < 0.05:
        words.insert(draw.randrange(len(words) + 1), draw.choice(("--nonsense", "--", "-x", "surplus")))
    return words


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_bad_command_line_is_refused_in_one_line(
    path: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(" ".join(path))
    for _ in range(LINES_PER_COMMAND):
        words = command_line(COMMANDS[path], path, draw)
        code = main.run(words)
        said = capsys.readouterr().err
        assert code in (0, 2) or (code == 1 and path in REPORTS_FAILURE), (words, said)
        assert "Traceback" not in said, words
        assert (said.count("error:") == said.count("\n") == 1) == (code == 2), (words, said)


#: Commands whose exit code 1 says that what they checked is not well.
REPORTS_FAILURE = {("doctor",)}
