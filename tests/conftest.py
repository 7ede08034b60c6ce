"""What tests of several parts share: real isolation, the starter tasks, and the folder of helpers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from envkit.environments.code_editor.starter import starter_tasks
from envkit.registry import sandbox_backend
from envkit.sandbox import SandboxBackend
from envkit.sandboxes.docker import DockerBackend
from envkit.types import Task

sys.path.append(str(Path(__file__).parent))  # for the helpers beside it: tiny.py, settle.py ...

settings.register_profile("untimed", deadline=None)  # the machine may be busy with something else
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Pin each parallel worker to one core: spinning threads of two workers slow both tenfold."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


#: Fixtures of engines that a change rarely touches. Their tests are slow by what they ask for.
ENGINES = {"docker", "dsn", "chromium"}
#: Backends beside the default one, as test parameters and as classes of tests name them.
OTHER_BACKENDS = {"docker", "bubblewrap"}


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of other engines and backends as slow: `make test` tries the default backend only."""
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        others = [value for value in params if isinstance(value, str) and value in OTHER_BACKENDS]
        if others or not ENGINES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def backend() -> SandboxBackend:
    """Real isolation; a machine without any cannot run these tests, and the error says what mends it."""
    return sandbox_backend()


@pytest.fixture(scope="session")
def docker() -> SandboxBackend:
    """A real Docker engine. People may have none; the project's own checks always have."""
    found = DockerBackend()
    if missing := found.available():
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def starters() -> dict[str, Task]:
    """The starter tasks by function name."""
    return {str(task.metadata["function"]): task for task in starter_tasks()}
