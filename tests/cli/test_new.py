"""``envkit new``: the new package passes its audit and its tests unchanged, installed from a wheel."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from installed import install, run

from envkit import Env
from envkit.audit.certificate import certify
from envkit.env.scaffold import commands, create, render
from envkit.errors import StoreError, UsageError
from envkit.runtime.display import Silent
from envkit.sandbox.choice import sandbox_backend

NAME = "ticket-desk"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "service.md"


# Made.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new package, as the command leaves it."""
    folder = tmp_path_factory.mktemp("new")
    said = run(sys.executable, "-m", "envkit.cli", "new", NAME, "--into", ".", cwd=folder)
    lines = [line.strip() for line in said.splitlines()]
    then = commands(NAME, shlex.quote(sys.executable))
    assert lines == [f"{NAME}: a small environment that works. Next:", f"cd {NAME}", *then]
    assert [path.name for path in folder.iterdir()] == [NAME]
    return folder / NAME


def test_every_file_is_there_and_short(made: Path) -> None:
    found = {str(path.relative_to(made)): path.read_text() for path in made.rglob("*") if path.is_file()}
    assert found == render(NAME)
    package = [f"ticket_desk/{name}.py" for name in ("__init__", "app", "env", "program", "tasks")]
    assert sorted(found) == ["README.md", "pyproject.toml", "tests/test_env.py", *package]
    assert max(text.count("\n") for text in found.values()) < 130
    for name in ("app", "env", "program", "tasks"):
        assert "\nTo make it yours: " in found[f"ticket_desk/{name}.py"]
    for command in commands(NAME):
        assert f"\n{command}\n" in found["README.md"]


@pytest.mark.parametrize(
    ("name", "kind"), [("a", "AEnv"), ("wiki", "WikiEnv"), ("x2-tickets-v3", "X2TicketsV3Env")]
)
def test_every_file_has_the_new_names(tmp_path: Path, name: str, kind: str) -> None:
    folder = create(name, tmp_path)
    package = name.replace("-", "_")
    project: Any = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == name
    assert project["project"]["dependencies"] == ["envkit-rl"]
    assert project["project"]["entry-points"]["envkit.environments"] == {name: f"{package}:{kind}"}
    assert f'id: ClassVar[str] = "{name}"' in (folder / package / "env.py").read_text()
    rules = ("--isolated", "--line-length", "110")
    ruff = (sys.executable, "-m", "ruff")
    run(*ruff, "check", *rules, "--select", "B,E,F,I,PT,RUF,SIM,UP", "--no-cache", ".", cwd=folder)
    run(*ruff, "format", *rules, "--check", "--no-cache", ".", cwd=folder)


def test_a_service_has_its_own_files(tmp_path: Path) -> None:
    run(sys.executable, "-m", "envkit.cli", "new", "shop", "--service", cwd=tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in files}
    assert found == {f"shop/{path}": text for path, text in render("shop", "service").items()}
    project: Any = tomllib.loads(found["shop/pyproject.toml"])
    assert project["tool"]["setuptools"]["package-data"] == {"shop": ["service.py", "certificate.json"]}
    for name in ("env", "service"):
        assert "\nTo make it yours: " in found[f"shop/shop/{name}.py"]
    rules = ("--isolated", "--line-length", "110")
    run(sys.executable, "-m", "ruff", "format", *rules, "--check", "--no-cache", ".", cwd=tmp_path)


@pytest.fixture
def service_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Env]]:
    """The class of the new package, imported from its folder."""
    monkeypatch.syspath_prepend(str(create("web-shop", tmp_path, "service")))
    yield importlib.import_module("web_shop").WebShopEnv
    for module in [name for name in sys.modules if name.partition(".")[0] == "web_shop"]:
        del sys.modules[module]


def test_the_guide_shows_and_plays_it(
    service_env: type[Env], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, played = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown == render("shop", "service")["shop/env.py"]
    monkeypatch.setitem(sys.modules, "shop", SimpleNamespace(ShopEnv=service_env))
    exec(played, {})
    rewards = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "(" in line[:8]]
    assert rewards == ["0.5", "0.5", "0.0"]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_service_passes_its_audit(service_env: type[Env]) -> None:
    found = certify(service_env, sandbox_backend(), Silent())
    assert [finding for finding in found.findings if finding.ok is False] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "is no name for an environment") for name in ("", "Desk", "a_b", "-a", "a-", "a--b", "1a")),
        *((name, "is no name for an environment") for name in ("é", "../a", "a b", "a.b", "a\n")),
        ("code-editor", "environment code-editor is installed already"),
        ("class", "is a Python keyword"),
        ("json", "a module json is installed already"),
        ("numpy", "a module numpy is installed already"),
        ("tests", "the folder tests/ is needed"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        create(name, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "other").symlink_to("nowhere")
    for name in ("wiki", "other"):
        with pytest.raises(UsageError, match="exists; choose another name or folder"):
            create(name, tmp_path)
    with pytest.raises(UsageError, match="is no folder; make it first: mkdir -p"):
        create("wiki", tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "wiki"]
    assert [*(tmp_path / "wiki").iterdir()] == []


def test_it_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def fill(path: Path, text: str, **options: Any) -> int:
        if path.name == "app.py":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(StoreError, match=r"cannot make .*wiki: No space left on device; nothing was left"):
        create("wiki", tmp_path)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(StoreError, match="File name too long"):
        create("w" * 250, tmp_path)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "envkit.cli", "new", "Desk"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    found = json.loads(run(sys.executable, "-m", "envkit.cli", "new", "desk", "--json", cwd=tmp_path))
    assert found == {"folder": "desk", "next": ["cd desk", *commands("desk", shlex.quote(sys.executable))]}
    assert (tmp_path / "desk" / "pyproject.toml").exists()


# Installed.


@pytest.fixture(scope="module")
def bin_(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh virtual environment in which envkit and the new package are installed as wheels."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(made, folder / NAME)
    found = install(folder, f"{NAME}[test]", folder / NAME)
    files = run(str(found / "python"), "-c", "import ticket_desk as t; print(t.__file__)", cwd=folder)
    assert Path(files.strip()).is_relative_to(found.parent)
    return found


def envkit(bin_: Path, *command: str, said: str = "") -> str:
    return run(
        str(bin_ / "envkit"), *command, cwd=bin_, stdin=said, XDG_CACHE_HOME=str(bin_.parent / "cache")
    )


def test_its_own_tests_pass(bin_: Path, made: Path) -> None:
    # -P: the package is the installed one, not the folder beside the tests.
    said = run(str(bin_ / "python"), "-P", "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", cwd=made)
    assert re.search(r"=+ \d\d passed, 3 skipped in ", said), said


def test_it_is_listed_checked_and_audited(bin_: Path, made: Path) -> None:
    assert NAME in json.loads(envkit(bin_, "list", "--json"))["environment"]
    found = json.loads(envkit(bin_, "tasks", "check", "--env", NAME, "--json"))
    train, heldout = (each["tasks"] for each in found["sets"])
    assert found["ok"]
    assert f"{train} to train on and {heldout} held out" in (made / "README.md").read_text()
    found = json.loads(envkit(bin_, "audit", NAME, "--json"))
    assert [each for each in found["findings"] if each["ok"] is False] == []


def test_the_templates_are_installed_too(bin_: Path, tmp_path: Path) -> None:
    envkit(bin_, "new", "another", "--into", str(tmp_path))
    assert (tmp_path / "another" / "another" / "env.py").read_text() == render("another")["another/env.py"]


def test_a_task_can_be_solved_from_what_is_printed(bin_: Path) -> None:
    play = ("play", NAME, "--task", "train/office-take-0")
    seen = envkit(bin_, *play, said="done()\n")
    assert "FAIL, reward 0" in seen
    [(thing, person)] = re.findall(r"Give every open ticket about the (.+) to (\w+)\.", seen)
    tickets = re.findall(r"^ *(\d+)  open    \S+ +(.+?) *$", seen, re.MULTILINE)
    numbers = [number for number, title in tickets if title.startswith(thing)]
    seen = envkit(bin_, *play, said=f"assign([{', '.join(numbers)}], '{person}')\ndone()\n")
    assert "PASS, reward 1" in seen
