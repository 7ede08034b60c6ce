"""The folder of the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envkit.runtime.cache import cache_dir, cache_folder


def test_other_users_cannot_write_to_it_whatever_the_umask_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENVKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o002)
    try:
        assert cache_folder("models") == tmp_path / "cache/envkit/models"
    finally:
        os.umask(before)
    # Sandboxes' files lie in it, too.
    assert (tmp_path / "cache/envkit").stat().st_mode & 0o777 == 0o755


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/envkit"
