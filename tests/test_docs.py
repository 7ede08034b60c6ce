"""Documentation: code blocks run or are checked, links have targets, and the site builds."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import pytest
import typer

from envkit.cli.main import app
from envkit.env.harness import Harness
from envkit.measure.spec import from_toml as bench_spec
from envkit.runtime.plain import decode
from envkit.training.config import from_mapping as train_settings

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/index.md")),
    *sorted((ROOT / "docs" / "results").rglob("README.md")),
    *sorted((ROOT / "docs").glob("[!r]*/*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    *sorted((ROOT / "environments").rglob("README.md")),
]
#: Languages of blocks that are neither run nor checked.
NOT_RUN = {"text"}
#: Pages whose Python blocks run from top to bottom. test_tutorial.py runs those of the tutorial, and
#: cli/test_new.py those of the guide to `envkit new --service`.
PROGRAMS = [
    pytest.param(page, marks=[pytest.mark.slow, pytest.mark.long] if page.name == "train.md" else ())
    for page in PAGES
    if "```python" in page.read_text() and page.name not in ("tutorial.md", "service.md")
]
#: Commands of the pages that take seconds and need nothing from earlier commands. Not here: `doctor`, which
#: `tests/cli/test_cli.py` runs, and `sandbox check`, which `.ci/run` runs as an ordinary user.
QUICK_COMMANDS = ("list", "models prices gpt-5", "new ticket-desk")


class Block(NamedTuple):
    """A fenced block: its language, its text, and its first line's number."""

    language: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Yield every fenced block of a page; nested fences belong to the outer block."""
    for found in re.finditer(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1$", page, re.M | re.S):
        yield Block(found[2], found[3], page.count("\n", 0, found.start()) + 1)


def commands(page: str) -> list[str]:
    """Return the envkit commands in a page's shell blocks and in its inline code."""
    shell = "".join(block.text for block in blocks(page) if block.language == "sh")
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    return [
        *re.findall(r"^(?:\S+/)?envkit (.*)$", shell, re.M),
        *(" ".join(span.split()) for span in re.findall(r"`envkit\s([^`]*)`", prose)),
    ]


def unknown_words(words: Sequence[str]) -> list[str]:
    """Return the words that the command does not accept, without running it or checking values."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("envkit", [], resilient_parsing=True)
    while hasattr(command, "commands") and words:  # without one, a group prints its help
        first, *words = words
        command = command.commands[first]
        context = command.make_context(first, [], parent=context, resilient_parsing=True)
    context.resilient_parsing = False  # an unknown option is an error
    _, unknown, _ = command.make_parser(context).parse_args([*words])
    return unknown


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as in Markdown's table of contents."""
    titles = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_exists(page: Path) -> None:
    for line in commands(page.read_text()):
        assert unknown_words(shlex.split(line.replace("<id>", "1"), comments=True)) == [], line


def test_a_wrong_command_is_found() -> None:
    page = "```sh\nenvkit play a b  # two\n.venv/bin/envkit bench --no-such 1\n```\nSee `envkit\nno-such x`."
    two, option, command = (shlex.split(line, comments=True) for line in commands(page))
    assert unknown_words(two) == ["b"]
    with pytest.raises(Exception, match="No such option"):
        unknown_words(option)
    with pytest.raises(KeyError):
        unknown_words(command)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_known_language(page: Path) -> None:
    known = {"python", "sh", "toml"} | NOT_RUN
    assert {block.language for block in blocks(page.read_text())} <= known


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_toml_block_is_read(page: Path, tmp_path: Path) -> None:
    """A benchmark's blocks are one specification; others are harnesses or settings of training."""
    found = [tomllib.loads(block.text) for block in blocks(page.read_text()) if block.language == "toml"]
    for values in found:
        if "agents" in values:
            (tmp_path / "bench.toml").write_text(
                next(block.text for block in blocks(page.read_text()) if "[[agents]]" in block.text)
            )
            assert bench_spec(tmp_path / "bench.toml").agents
        elif "command" in values:
            assert decode(Harness, {"name": "page", **values}, "the harness").command
        elif "project" not in values:
            train_settings(values, page_id(page))


@pytest.mark.usefixtures("one_probe")
@pytest.mark.parametrize("page", PROGRAMS, ids=page_id)
def test_every_program_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text()):
        if block.language == "python":
            source = "\n" * block.line + block.text  # so that a traceback names the page's own line
            exec(compile(source, str(page), "exec", dont_inherit=True), names)
    for each in names.values():
        if isinstance(each, gymnasium.Env):
            each.close()


@pytest.mark.parametrize("line", QUICK_COMMANDS)
def test_quick_commands_succeed(line: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "envkit.cli", *shlex.split(line, comments=True)]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("docs", "zensical.toml", "envkit", "agents", "environments", "sandboxes"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "build" / "site" / "tutorial" / "index.html").exists()
