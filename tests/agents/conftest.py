"""Fixtures for tests of the API agent: a real HTTP server, and an agent with its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_playing import KEY, Playing
from api_server import Api, Say


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def serve(server: Api) -> Iterator[Callable[[Say], Api]]:
    """Set how the server answers; answers that never end are cut off after the test."""
    yield server.begin
    server.end()


@pytest.fixture
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Playing:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    return Playing(tmp_path / "calls.jsonl")
