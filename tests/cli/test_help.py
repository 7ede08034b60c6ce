"""Help texts: one golden file of all of them, in words a reader knows, with completion of names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import pytest
import typer.main

from envkit.cli import main, options


def command_names(command: Any, name: str = "") -> Iterator[str]:
    yield name.strip()
    for child, inner in getattr(command, "commands", {}).items():
        yield from command_names(inner, f"{name} {child}")


@pytest.fixture(scope="module")
def names() -> list[str]:
    return list(command_names(typer.main.get_command(main.app)))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.run([*arguments]) == 0
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())


def test_help_golden(
    names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    assert "sandbox build" in names
    texts = [f"$ envkit {name} --help\n{printed(capsys, *name.split(), '--help')}\n" for name in names]
    golden.expect_text("help", "\n".join(texts))


def test_help_names_values_by_meaning(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        shown = printed(capsys, *name.split(), "--help")
        assert not re.search(r"<\w+>|range\]|x>=|\blist\[|\[\[", shown), name


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from envkit import __version__

    assert printed(capsys, "--version") == f"envkit {__version__}"


def test_completion_offers_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.complete_environments("sql") == ["sql-desk", "sql-desk-postgres"]
    assert "auto" in options.complete_sandboxes("")
    assert options.complete_sandboxes("zy") == ["zygote"]
    assert all(card.startswith("gpt") for card in options.complete_cards("gpt"))
    assert options.complete_cards("gpt")
    for run in ("runs/bench-1", "runs/train-2", "other/bench-3"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "manifest.json").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert options.complete_runs("") == ["runs/train-2", "runs/bench-1"]
    assert options.complete_runs("runs/b") == ["runs/bench-1"]
    assert options.complete_runs("other/") == ["other/bench-3"]


def test_a_shell_can_ask_for_completions(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("_ENVKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "envkit audit sql")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main.run([])
    assert capsys.readouterr().out.split() == ["sql-desk", "sql-desk-postgres"]
