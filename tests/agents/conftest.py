"""What tests of the API agent share: a real server, and the journal of an agent that asks it."""

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
    """Says how the server answers; what never ends, ends with the test."""
    yield server.begin
    server.end()


@pytest.fixture
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Playing:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    return Playing(tmp_path / "calls.jsonl")
