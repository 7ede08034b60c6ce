"""A real sandbox for hostile candidates."""

from __future__ import annotations

import pytest

from envkit.sandboxes.bubblewrap import BubblewrapBackend


@pytest.fixture(scope="session")
def backend() -> BubblewrapBackend:
    found = BubblewrapBackend()
    if missing := found.available():
        pytest.skip(missing)
    return found
