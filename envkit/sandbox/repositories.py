"""Fetch the files of git repositories, each at one commit, into envkit's cache."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from envkit.errors import ConfigError, SandboxUnavailable
from envkit.runtime.cache import cache_folder

#: A repository among data files, written as for pip: ``git+URL@COMMIT``.
PREFIX: Final = "git+"
_COMMIT: Final = re.compile("[0-9a-f]{40}")
_URL: Final = re.compile(r"(https?|ssh|file)://.+")
_NAME: Final = re.compile(r"\w[\w.-]*")
#: The same files on every machine: its own line endings and hooks have no effect, and links become text.
_SETTINGS: Final = ("core.autocrlf=false", "core.symlinks=false", "core.hooksPath=/dev/null")
_NAMED: Final = ("+refs/heads/*:refs/fetched/*", "+refs/tags/*:refs/tags/*")
#: Variables that point into a repository that this process happens to run in, as a hook does.
_FOREIGN: Final = (
    *("GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR"),
    *("GIT_NAMESPACE", "GIT_PREFIX"),
)
_PATIENCE_S: Final = 600
_SHOWN: Final = 400


@final
@dataclass(frozen=True, slots=True)
class Repository:
    """The files of a git repository at one commit.

    Args:
        url: of the repository, or the path of one or of a git bundle.
        commit: the whole hash, which also tells that the files are the right ones.
    """

    url: str
    commit: str

    @property
    def name(self) -> str:
        """Last part of the URL, without ``.git`` or ``.bundle``."""
        return re.sub(r"\.(git|bundle)$", "", self.url.rstrip("/").rpartition("/")[2])

    @property
    def is_remote(self) -> bool:
        """False for a path."""
        return _URL.fullmatch(self.url) is not None


def parse_repository(line: str) -> Repository | None:
    """Read ``git+URL@COMMIT``; ``None`` for anything else, such as a branch, which may move.

    >>> parse_repository(f"git+https://example.org/ada/stock.git@{'0' * 40}").name
    'stock'
    """
    url, _, commit = line.removeprefix(PREFIX).rpartition("@")
    found = Repository(url, commit)
    is_one = line.startswith(PREFIX) and _COMMIT.fullmatch(commit) and _NAME.fullmatch(found.name)
    return found if is_one else None


def checkout(repository: Repository) -> Path:
    """Folder with a repository's files, without its history. They are fetched once per machine.

    Submodules and files of Git LFS are not fetched. A symbolic link is a text file with its target.

    Raises:
        ConfigError: git is not installed.
        SandboxUnavailable: git cannot fetch the commit; the message has its words.
    """
    folder = cache_folder("repositories").absolute() / repository.commit / repository.name
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parents[1]) as scratch:
        made = Path(scratch) / "files"
        made.mkdir()
        _fetch(repository, Path(scratch) / "history", made)
        folder.parent.mkdir(exist_ok=True)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _fetch(repository: Repository, history: Path, files: Path) -> None:
    """Put the files of a commit into an empty folder."""
    _git(history, files, "init", "--quiet", "--template=")
    # Hosts of repositories give one commit alone. Others, and bundles, give branches and tags.
    wanted = (("--depth=1", "--", repository.url, repository.commit), ("--", repository.url, *_NAMED))
    failure = ""
    for arguments in wanted:
        failure = _git(history, files, "fetch", "--quiet", *arguments)
        failure = failure or _git(history, files, "checkout", "--quiet", repository.commit)
        if not failure:
            return
    raise SandboxUnavailable(
        f"cannot fetch commit {repository.commit} of {repository.url}: {failure[-_SHOWN:]}"
    )


def _git(history: Path, files: Path, *command: str) -> str:
    """Run git; returns what went wrong in one line, or an empty text."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    environment |= {"GIT_DIR": str(history), "GIT_WORK_TREE": str(files)}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    try:
        ended = subprocess.run(
            ["git", *settings, *command],
            env=environment,
            cwd=files,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigError(
            "git is not installed, and an environment names a repository; apt install git"
        ) from None
    except subprocess.TimeoutExpired:
        return f"git {command[0]} did not end within {_PATIENCE_S} s"
    if ended.returncode == 0:
        return ""
    return " ".join(ended.stderr.split()) or f"git {command[0]} ended with status {ended.returncode}"
