"""Fixture for tests of the API agent: an agent with its journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_playing import KEY, Playing


@pytest.fixture
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Playing:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    return Playing(tmp_path / "calls.jsonl")
