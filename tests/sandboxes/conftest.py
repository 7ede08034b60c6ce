"""Sandboxes of every backend that is available on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envkit.sandbox import Sandbox, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend


def skip_if_unavailable(backend: SandboxBackend) -> SandboxBackend:
    if missing := backend.available():
        pytest.skip(missing)
    return backend


@pytest.fixture(scope="session")
def bubblewrap() -> SandboxBackend:
    return skip_if_unavailable(BubblewrapBackend())


@pytest.fixture(scope="session")
def zygote() -> SandboxBackend:
    return skip_if_unavailable(ZygoteBackend())


@pytest.fixture(params=["bubblewrap", "docker", "process", "zygote"])
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    if request.param == "process":
        return ProcessBackend()
    return request.getfixturevalue(request.param)


@pytest.fixture
def sandbox(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.create() as made:
        yield made
