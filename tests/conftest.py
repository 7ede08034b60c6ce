"""Fixtures shared by all tests: isolated sandboxes, the starter tasks, and the path to helper modules."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from envkit.environments.code_editor.starter import starter_tasks
from envkit.sandbox import SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes.docker import DockerBackend
from envkit.types import Task

if TYPE_CHECKING:
    from api_server import Api, Say

_HELPERS = Path(__file__).parent / "helpers"  # tiny.py, polling.py ...
sys.path += [str(_HELPERS), str(_HELPERS / "environments"), str(_HELPERS / "servers")]

settings.register_profile("untimed", deadline=None)  # examples are slow on a busy machine
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Pin each parallel worker to one core: spinning threads of two workers slow both tenfold.

    A job in the background of a script ignores SIGINT, and so would the programs that tests interrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


#: Fixtures that start an engine. Tests that use one are marked as slow.
ENGINES = {"docker", "dsn", "chromium"}
#: Backends other than the default one, as they appear in test parameters.
OTHER_BACKENDS = {"docker", "bubblewrap"}


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of other engines and backends as slow: `make test` runs the default backend only.

    Long tests come first.
    """
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        others = [value for value in params if isinstance(value, str) and value in OTHER_BACKENDS]
        if others or not ENGINES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def backend() -> SandboxBackend:
    """The default isolated backend. On a machine without one, the error names the remedy."""
    return sandbox_backend()


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    """A real HTTP server that stands for a provider of models."""
    from api_server import Api

    with Api() as api:
        yield api


@pytest.fixture
def serve(server: Api) -> Iterator[Callable[[Say], Api]]:
    """Set how the server answers; answers that never end are cut off after the test."""
    yield server.begin
    server.end()


@pytest.fixture(scope="session")
def docker() -> SandboxBackend:
    """A real Docker engine. Tests are skipped without one, except in CI, where they fail."""
    found = DockerBackend()
    if missing := found.available():
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def one_probe() -> Generator[None]:
    """Plans of runs measure the machine once. Parallel tests keep it busy, so it would be measured thrice."""
    from envkit.runs.before_after import probe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_MAX_PROBES", 1)
        yield


@pytest.fixture(scope="session")
def starters() -> dict[str, Task]:
    """The starter tasks by function name."""
    return {str(task.metadata["function"]): task for task in starter_tasks()}
