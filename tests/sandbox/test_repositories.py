"""Git repositories as data of sandboxes: what is fetched, from where, and what an author is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from git_repository import commit, git

from envkit import CommandEnv, ContractError, SandboxBackend, SandboxUnavailable, Task, check
from envkit.audit.code_digest import content_digest
from envkit.errors import ConfigError
from envkit.sandbox import contents
from envkit.sandbox.contents import repositories
from envkit.sandbox.repositories import Repository, checkout, parse_repository

COMMIT = "0123456789" * 4
GREETING = "import sys; print('hello', *sys.argv[1:])\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def greeter(tmp_path: Path) -> tuple[Path, str]:
    """A repository and a commit that is not its last."""
    folder = tmp_path / "greeter"
    pinned = commit(folder, {"greet.py": GREETING})
    commit(folder, {"greet.py": "print('changed')\n", "more.py": ""})
    return folder, pinned


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["file://{}", "{}", "{}/"])
def test_the_files_at_the_commit_are_fetched_once(greeter: tuple[Path, str], form: str, cache: Path) -> None:
    folder, pinned = greeter
    repository = Repository(form.format(folder), pinned)
    found = checkout(repository)
    assert read(found) == {"greet.py": GREETING}
    assert found == cache / "repositories" / pinned / repository.name
    git(folder, "update-ref", "-d", "HEAD")
    (folder / ".git" / "HEAD").unlink()
    assert checkout(repository) == found
    assert [path.name for path in (cache / "repositories").iterdir()] == [pinned]


def test_the_cache_may_be_a_relative_folder(
    greeter: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVKIT_CACHE", "here")
    folder, pinned = greeter
    assert checkout(Repository(str(folder), pinned)) == tmp_path / "here/repositories" / pinned / "greeter"


def test_a_bundle_is_a_repository(greeter: tuple[Path, str], tmp_path: Path) -> None:
    folder, pinned = greeter
    git(folder, "bundle", "create", "--quiet", str(tmp_path / "all.bundle"), "main")
    repository = Repository(str(tmp_path / "all.bundle"), pinned)
    assert repository.name == "all"
    assert read(checkout(repository)) == {"greet.py": GREETING}


def test_nothing_of_the_repository_runs_and_links_become_text(tmp_path: Path) -> None:
    folder = tmp_path / "sly"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    pinned = commit(folder, {"a.txt": "one\ntwo\n", ".gitattributes": "*.txt filter=mark eol=lf\n"})
    for name in ("post-checkout", "reference-transaction"):
        hook = folder / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        hook.chmod(0o755)
    found = checkout(Repository(f"file://{folder}", pinned))
    assert read(found) == {
        "a.txt": "one\ntwo\n",
        "link": "/etc/passwd",
        ".gitattributes": "*.txt filter=mark eol=lf\n",
    }
    assert not (found / "link").is_symlink()
    assert not (tmp_path / "ran").exists()


def test_a_repository_that_this_process_runs_in_is_left_alone(
    greeter: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hook, which git starts with such variables."""
    commit(tmp_path / "ours", {"ours.txt": "ours"})
    for name, path in (("GIT_DIR", ".git"), ("GIT_INDEX_FILE", ".git/index"), ("GIT_WORK_TREE", "")):
        monkeypatch.setenv(name, str(tmp_path / "ours" / path))
    folder, pinned = greeter
    assert read(checkout(Repository(str(folder), pinned))) == {"greet.py": GREETING}
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name)
    assert git(tmp_path / "ours", "status", "--porcelain") == ""


def test_what_cannot_be_fetched_is_said_in_gits_words(
    greeter: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pinned = greeter
    for url, words in (
        (str(folder), COMMIT),
        (f"file://{folder}-no", "does not appear to be a git repository"),
    ):
        with pytest.raises(
            SandboxUnavailable, match=f"cannot fetch commit {COMMIT} of {url}: fatal: .*{words}"
        ):
            checkout(Repository(url, COMMIT))
    assert [*(cache / "repositories").iterdir()] == []
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(ConfigError, match=r"git is not installed.*apt install git"):
        checkout(Repository(str(folder), pinned))


@pytest.mark.parametrize(
    ("url", "name", "is_remote"),
    [
        ("https://example.org/ada/stock.git", "stock", True),
        ("https://example.org/ada/stock/", "stock", True),
        ("ssh://git@example.org/ada/stock.py.git", "stock.py", True),
        ("stock.bundle", "stock", False),
        ("repositories/stock", "stock", False),
    ],
)
def test_a_line_names_url_and_commit(url: str, name: str, is_remote: bool) -> None:
    found = parse_repository(f"git+{url}@{COMMIT}")
    assert found == Repository(url, COMMIT)
    assert (found.name, found.is_remote) == (name, is_remote)


class Greeter(CommandEnv):
    """Runs a program of a repository."""

    id: ClassVar[str] = "greeter"
    command = ("python3", "/data/greeter/greet.py")

    @check()
    def good(self) -> bool:
        return False


def holding(*data: str) -> type[Greeter]:
    return type("Holding", (Greeter,), {"data": data, "__module__": __name__})


def test_a_sandbox_holds_the_repository_read_only(greeter: tuple[Path, str], backend: SandboxBackend) -> None:
    folder, pinned = greeter
    env = holding(f"git+file://{folder}@{pinned}")(tasks=[Task("t", "train", "", {})], sandbox=backend)
    env.reset(seed=0)
    assert env.step("run(['world'])")[0] == "hello world"
    assert env.sandbox.run(["sh", "-c", "touch /data/greeter/new"]).exit
    assert env.backend.lock.data
    env.close()


@pytest.mark.parametrize(
    "line",
    [
        "git+https://example.org/a.git",
        "git+https://example.org/a@main",
        "git+@" + COMMIT,
        f"git+https://example.org/a@{'0' * 64}",  # a repository of another kind, which git init does not make
    ],
)
def test_a_line_without_a_whole_commit_is_refused(line: str) -> None:
    assert parse_repository(line) is None
    with pytest.raises(
        ContractError, match=r"Holding.data names 'git\+.*; expected git\+URL@COMMIT with the"
    ):
        repositories(holding(line))


@pytest.mark.parametrize("path", ["nowhere.bundle", "../pyproject.toml", "/etc/passwd"])
def test_a_path_begins_beside_the_module(path: str) -> None:
    with pytest.raises(ContractError, match=f"Holding.data names '{path}'; expected a file or folder below"):
        repositories(holding(f"git+{path}@{COMMIT}"))


def test_the_commit_is_part_of_what_a_certificate_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(url: str, commit: str) -> str:
        return content_digest(holding(f"git+{url}@{commit}"))

    def forbidden(*_: Any) -> Any:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(contents, "checkout", forbidden)
    one = digest("https://example.org/greeter.git", COMMIT)
    assert one == digest("ssh://mirror.example.org/greeter", COMMIT), "the files are the same"
    assert len({one, digest("https://example.org/greeter", COMMIT[::-1]), content_digest(Greeter)}) == 3
