"""Time the sandbox operations of an episode with Docker in three ways, bubblewrap and the zygote.

    reset    from a used sandbox to a clean one in which a trivial Python program has run
    echo     a trivial command in a live sandbox
    oracle   in a live sandbox: write a module, import it, three calls, one at a time
    pytest   a suite of one test, run by pytest
    fork     a new sandbox with the 1,000 files of another: as an overlay, or written one by one

Docker's ways are a fresh container, `docker exec` in a live one, and envkit's worker in a live one. All have
the same limits. Sandboxes that run pytest have it in their image; the zygote has imported it already. Writes
``runs/bench/sandbox.json`` and ``.md``. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from side_by_side import Measures, Ratio, compare

from envkit.environments.code_editor.graders.suite import PYTEST, PYTEST_MODULES
from envkit.sandbox import PACKAGES, PYTHON_OPTIONS, Sandbox
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker import images
from envkit.sandboxes._rootfs import layers
from envkit.sandboxes._rootfs.rootfs import NOBODY, PYTHON, WORKSPACE
from envkit.sandboxes._workspace.mounts import shared_mounts
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.docker import DockerBackend
from envkit.sandboxes.zygote import ZygoteBackend

ROUNDS: Final = 30
RATIOS: Final = {
    "reset_vs_docker": Ratio("reset", "docker fresh", "zygote", 30.0),
    "oracle_vs_docker_exec": Ratio("oracle", "docker exec", "zygote", 12.0),
    "oracle_vs_docker_attached": Ratio("oracle", "docker attached", "zygote", 1.5),
    "pytest_vs_docker_fresh": Ratio("pytest", "docker fresh", "zygote", 10.0),
    "fork_vs_copy": Ratio("fork", "zygote copying", "zygote", 30.0),
    "echo_vs_docker_attached": Ratio("echo", "docker attached", "zygote", None),
    "reset_vs_bubblewrap": Ratio("reset", "bubblewrap", "zygote", None),
    "oracle_vs_bubblewrap": Ratio("oracle", "bubblewrap", "zygote", None),
}
TRIVIAL: Final = [PYTHON, *PYTHON_OPTIONS, "-c", "pass"]
NOTHING: Final = ["sh", "-c", ":"]
MODULE: Final = b"def double(items):\n    return [2 * item for item in items]\n"
#: The same program everywhere. Only the zygote has imported pytest before.
SUITE: Final = [
    PYTHON,
    *PYTHON_OPTIONS,
    "-c",
    f"""
import sys
sys.path += [{PACKAGES!r}, "."]
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_one.py"]))
""",
]
TEST: Final = b"def test_one():\n    assert 1 + 1 == 2\n"
WORKER: Final = resources.files("envkit.sandbox.programs").joinpath("worker.py").read_text()
#: A new module name each time, because some file systems wait for the disk when a file is overwritten.
NAMES: Final = (f"solution{number}.py" for number in itertools.count())
#: 8 MB of files at the start of an episode.
FILES: Final = {f"src/{number % 10}/{number}.py": bytes(8192) for number in range(1000)}
#: Requests to the worker: the import, then three calls.
LINES: Final = [
    b'{"id": "0"}',
    *(b'{"id": "%d", "calls": [[["[%d, 2]"], {}]]}' % (number, number) for number in (1, 2, 3)),
]


def oracle_of(name: str) -> list[str]:
    """Return the command that answers calls of a module's ``double``."""
    return [PYTHON, *PYTHON_OPTIONS, "-c", WORKER, name, "double", ""]


def check(answers: Sequence[bytes]) -> None:
    """Exit if the answers are wrong, whichever way gave them."""
    found = [json.loads(answer) for answer in answers]
    if [item["answers"][0].get("value") for item in found[1:]] != [[2, 4], [4, 4], [6, 4]]:
        raise SystemExit(f"wrong answers: {found}")


def own_operations(sandbox: Sandbox, tester: Sandbox) -> dict[str, Callable[[], None]]:
    """Return the operations on envkit's sandboxes: one without packages, and ``tester`` with pytest."""

    def succeed(argv: Sequence[str], where: Sandbox = sandbox) -> None:
        if not (found := where.run(argv)).ok:
            raise SystemExit(f"{argv[:2]} ended by {found}")

    def reset() -> None:
        sandbox.write("left.txt", b"left")
        sandbox.reset()
        succeed(TRIVIAL)

    def oracle() -> None:
        sandbox.write(name := next(NAMES), MODULE)
        peer = sandbox.open(oracle_of(name))
        check([peer.ask(line, 10.0) for line in LINES])
        peer.close()

    def suite() -> None:
        tester.write("test_one.py", TEST)
        succeed(SUITE, tester)

    return {"reset": reset, "echo": lambda: succeed(NOTHING), "oracle": oracle, "pytest": suite}


def forks(parent: Sandbox, backend: ZygoteBackend) -> dict[tuple[str, str], Callable[[], None]]:
    """Return two ways to make a sandbox with the files of ``parent``."""
    for path, data in FILES.items():
        parent.write(path, data)
    beginning = parent.snapshot()

    def check_one(sandbox: Sandbox) -> None:
        if sandbox.read("src/7/77.py", 8192) != FILES["src/7/77.py"]:
            raise SystemExit("a fork has other files")

    def fork() -> None:
        with parent.fork(beginning) as made:
            check_one(made)

    def copy() -> None:
        with backend.create() as made:
            for path, data in FILES.items():
                made.write(path, data)
            check_one(made)

    return {("fork", "zygote"): fork, ("fork", "zygote copying"): copy}


class Containers:
    """Docker through `docker-py`, hardened like envkit's containers."""

    def __init__(self, folder: Path) -> None:
        self._client: Any = docker_engine.client(os.getpid())
        self._tag = images.get(self._client, "host", NOBODY).tag
        self._folder = folder
        self.live: Any = self._create([PYTHON, "-c", "import signal; signal.pause()"])
        self.live.start()

    def _create(self, argv: Sequence[str]) -> Any:
        return self._client.containers.create(
            self._tag,
            [*argv],
            user=str(NOBODY),
            working_dir=WORKSPACE,
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=32,
            mem_limit=2**29,
            tmpfs={"/tmp": "size=64m,mode=1777"},
            volumes={
                str(self._folder): {"bind": WORKSPACE, "mode": "rw"},
                str(layers.folders(NOBODY, PYTEST)[PACKAGES]): {"bind": PACKAGES, "mode": "ro"},
            },
            log_config={"type": "none"},
            init=False,
        )

    def suite(self) -> None:
        (self._folder / "test_one.py").write_bytes(TEST)
        self.fresh(SUITE)

    def fresh(self, argv: Sequence[str] = TRIVIAL) -> None:
        container = self._create(argv)
        try:
            container.start()
            if container.wait()["StatusCode"]:
                raise SystemExit(f"{argv} failed in a fresh container")
        finally:
            container.remove(force=True)

    def exec_suite(self) -> None:
        (self._folder / "test_one.py").write_bytes(TEST)
        if self.live.exec_run(SUITE).exit_code:
            raise SystemExit("pytest failed by docker exec")

    def echo(self) -> None:
        if self.live.exec_run(NOTHING).exit_code:
            raise SystemExit("a trivial command failed by docker exec")

    def oracle(self) -> None:
        name = next(NAMES)
        (self._folder / name).write_bytes(MODULE)
        api = self._client.api
        started = api.exec_create(self.live.id, oracle_of(name), stdin=True, workdir=WORKSPACE)["Id"]
        stream = api.exec_start(started, socket=True)
        connection: socket.socket = stream._sock
        answers: list[bytes] = []
        for line in LINES:
            connection.sendall(line + b"\n")
            answers.append(self._answer(connection))
        check(answers)
        connection.close()

    @staticmethod
    def _answer(connection: socket.socket) -> bytes:
        """Read one line. The engine sends it in frames, each after eight bytes of type and length."""
        line = b""
        while not line.endswith(b"\n"):
            _, length = struct.unpack(">BxxxL", _receive(connection, 8))
            line += _receive(connection, length)
        return line

    def close(self) -> None:
        self.live.remove(force=True)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (piece := connection.recv(count - len(data))):
            raise SystemExit("docker exec ended early")
        data += piece
    return data


@contextlib.contextmanager
def measures() -> Generator[Measures]:
    """Yield the functions to time, with their sandboxes open."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o777)
        containers = Containers(folder)
        stack.callback(containers.close)
        found: dict[tuple[str, str], Callable[[], None]] = {
            ("reset", "docker fresh"): containers.fresh,
            ("echo", "docker exec"): containers.echo,
            ("oracle", "docker exec"): containers.oracle,
            ("pytest", "docker fresh"): containers.suite,
            ("pytest", "docker exec"): containers.exec_suite,
        }
        for way, plain, tester in (
            ("docker attached", DockerBackend(), DockerBackend(PYTEST)),
            ("bubblewrap", BubblewrapBackend(), BubblewrapBackend(PYTEST)),
            ("zygote", ZygoteBackend(), ZygoteBackend(PYTEST, warm=PYTEST_MODULES)),
        ):
            for operation, measure in own_operations(
                *map(stack.enter_context, (plain.create(), tester.create()))
            ).items():
                found[operation, way] = measure
        found |= forks(stack.enter_context(ZygoteBackend().create()), ZygoteBackend())
        yield found


def main() -> None:
    with measures() as wanted:
        version = docker_engine.client(os.getpid()).version()["Version"]
        copies = shared_mounts(os.getpid(), os.geteuid() or NOBODY).copies()
        facts = {"docker": version, "snapshots": f"copied: {copies}" if copies else "laid beneath"}
        compare("sandbox", wanted, RATIOS, ROUNDS, facts)


if __name__ == "__main__":
    main()
