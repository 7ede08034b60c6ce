"""The Docker backend: hardened containers, cleanup after dead owners, and an unreachable engine."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envkit.errors import SandboxError, SandboxUnavailable
from envkit.runtime.lease import Lease
from envkit.sandbox import Limits, PeerGone, Quota, Sandbox, SandboxBackend, StopReason
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes import docker as module
from envkit.sandboxes._docker import engine as docker_engine
from envkit.sandboxes._docker import volumes
from envkit.sandboxes._docker.cleanup import HOST, LEASE
from envkit.sandboxes._linux import bwrap
from envkit.sandboxes._zygote import host as zygote_host

TRAINER = """
import time
from envkit.sandboxes.docker import DockerBackend
sandbox = DockerBackend().create()
peer = sandbox.open([sandbox.python, "-uc", "print(input()); import time; time.sleep(600)"])
peer.ask(b"up", 30)
made, held = sandbox._made[0]._container.name, sandbox._volume
print(made, sandbox._lease.path, held._container._container.name, held.mount["Source"], flush=True)
time.sleep(600)
"""


@pytest.fixture
def sandbox(docker: SandboxBackend) -> Iterator[Sandbox]:
    with docker.create() as made:
        yield made


def labelled(lease: Path | None) -> dict[str, str]:
    """A filter for what belongs to the owner of a lease folder; by default to any owner."""
    return {"label": LEASE if lease is None else f"{LEASE}={lease}"}


def containers(lease: Path | None = None) -> set[str]:
    client = docker_engine.client(os.getpid())
    found = client.containers.list(all=True, filters=labelled(lease), ignore_removed=True)
    return {one.name for one in found}


def named_volumes(lease: Path | None = None) -> set[str]:
    return {one.name for one in docker_engine.client(os.getpid()).volumes.list(filters=labelled(lease))}


def python(sandbox: Sandbox, code: str, limits: Limits = Limits()):
    return sandbox.run([sandbox.python, "-ISc", code], limits=limits)


def test_a_container_is_hardened_and_removed(docker: SandboxBackend) -> None:
    with docker.create() as sandbox:
        assert python(sandbox, "pass").ok
        lease = sandbox._lease.path  # type: ignore[attr-defined]
        [made] = sandbox._made  # type: ignore[attr-defined]
        facts = made._container.attrs["HostConfig"]
        assert (facts["NetworkMode"], facts["ReadonlyRootfs"], facts["Privileged"]) == ("none", True, False)
        assert facts["CapDrop"] == ["ALL"]
        assert facts["SecurityOpt"][0] == "no-new-privileges"
        assert facts["LogConfig"]["Type"] == "none"
        assert containers(lease) == {made._container.name}
    assert not containers(lease)


def test_commands_reuse_a_container_without_files_of_earlier_commands(sandbox: Sandbox) -> None:
    leave = "open('/tmp/left', 'w'); import os; os.makedirs('/tmp/a/b'); open('/dev/shm/left', 'w')"
    assert python(sandbox, leave).ok
    seen = python(sandbox, "import os; print(os.listdir('/tmp'), os.listdir('/dev/shm'))")
    assert seen.stdout == b"[] []\n"
    assert len(sandbox._made) == 1  # type: ignore[attr-defined]
    # Two process trees in one container could not be killed separately.
    peer = sandbox.open([sandbox.python, "-uc", "while True: print(input())"])
    assert python(sandbox, "pass").ok
    assert peer.ask(b"alive", 10) == b"alive"
    assert len(sandbox._made) == 2  # type: ignore[attr-defined]


def test_a_command_can_neither_read_nor_kill_the_worker(sandbox: Sandbox) -> None:
    code = """
import os, signal, socket
found = []
for number in (signal.SIGTERM, signal.SIGKILL):
    try: os.kill(1, number)
    except PermissionError: found.append(number)
for path in ("/proc/1/mem", "/proc/1/environ"):
    try: open(path, "rb").read(1)
    except OSError: found.append(path)
try: sockets = os.listdir("/run/envkit")
except PermissionError: sockets = []
print(len(found), sockets, sorted(os.listdir("/proc/self/fd")))
"""
    assert python(sandbox, code).stdout == b"4 [] ['0', '1', '2', '3']\n"


def test_running_out_of_memory_is_reported(sandbox: Sandbox) -> None:
    limits = Limits(memory_bytes=64 * 2**20)
    found = python(sandbox, "data = bytearray()\nwhile True: data += bytes(2**20)", limits)
    assert found.stop is StopReason.MEMORY
    assert python(sandbox, "pass", limits).stop is StopReason.EXITED  # memory is counted per command


def test_a_command_that_starves_its_worker_of_memory_hits_its_own_limit(sandbox: Sandbox) -> None:
    starve = """
import os
open("/proc/self/oom_score_adj", "w").write("0")
kept = []
while True:
    kept.append(os.memfd_create("hoard"))
    os.posix_fallocate(kept[-1], 0, 2**20)
"""
    limits = Limits(memory_bytes=48 * 2**20)
    assert python(sandbox, starve, limits).stop is StopReason.MEMORY
    peer = sandbox.open([sandbox.python, "-ISuc", "input()\n" + starve], limits=limits)
    with pytest.raises(PeerGone, match="memory limit"):
        peer.ask(b"", 20)
    assert python(sandbox, "pass", limits).ok


def test_a_container_with_undeletable_scratch_files_is_replaced(sandbox: Sandbox) -> None:
    leave = "import os; os.makedirs('/tmp/kept/secret'); os.chmod('/tmp/kept', 0)"
    assert python(sandbox, leave).ok
    assert python(sandbox, "import os; print(os.listdir('/tmp'))").stdout == b"[]\n"
    shared = "import ctypes; print(ctypes.CDLL(None).shmget(4711, 4096, 0o1600))"
    assert python(sandbox, shared).stdout == b"-1\n"


def test_a_socket_can_be_bound_below_a_path_longer_than_the_socket_limit(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    folder.mkdir(parents=True)
    with volumes.listening(folder):
        assert (folder / "socket").is_socket()
    assert [*folder.iterdir()] == []


def test_a_killed_container_raises_a_sandbox_error_and_the_sandbox_stays_usable(sandbox: Sandbox) -> None:
    peer = sandbox.open([sandbox.python, "-uc", "while True: print(input())"])
    assert peer.ask(b"up", 10) == b"up"
    sandbox._made[0]._container.kill()  # type: ignore[attr-defined]

    def ask_until_it_is_dead() -> None:
        while True:
            peer.ask(b"again", 10)

    with pytest.raises(SandboxError, match="container"):
        ask_until_it_is_dead()
    with pytest.raises(SandboxError):
        peer.close()
    assert python(sandbox, "pass").ok


def test_nothing_survives_a_killed_trainer(docker: SandboxBackend) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        try:
            name, lease, volume_container, volume = trainer.stdout.readline().split()
            assert volume in named_volumes()
            assert name in containers()
            assert name not in module.reap()  # its owner is alive
        finally:
            trainer.kill()
    # The worker ends when its socket is closed; the next process to reap removes the container.
    for each in (name, volume_container):
        ended = docker_engine.client(os.getpid()).containers.get(each).wait(timeout=30)
        assert ended["StatusCode"] == 0
    assert {name, volume_container} <= {*module.reap()}
    assert not {name, volume_container} & containers()
    assert volume not in named_volumes()
    assert Path(lease).exists()  # the lease stays until the next sandbox is made


def test_a_killed_volume_container_raises_a_sandbox_error(docker: SandboxBackend) -> None:
    sandbox = docker.create()
    sandbox.write("file", b"1")
    assert python(sandbox, "open('file')").ok
    sandbox._volume._container._container.kill()  # type: ignore[attr-defined]
    assert python(sandbox, "open('file')").ok  # its own container still mounts the workspace
    sandbox.reset()
    with pytest.raises(SandboxError, match="files are lost"):
        python(sandbox, "pass")
    with docker.create() as other:
        other.write("file", b"2")
        assert python(other, "print(open('file').read())").stdout == b"2\n"
    sandbox.close()


def test_workspaces_share_a_volume_container_and_are_removed_with_it(docker: SandboxBackend) -> None:
    made = module.DockerBackend(quota=Quota(2**20, 64))  # no volume has this quota yet
    sandboxes = [made.create() for _ in range(9)]
    pool = sandboxes[8]._pool  # type: ignore[attr-defined]
    lease = pool._lease.path
    # One more of each for the files that the containers of a pool share.
    assert len(containers(lease)) == 2 + 1
    assert len(named_volumes(lease)) == 16 + 1
    for sandbox in sandboxes[:8]:
        sandbox.close()
    assert len(containers(lease)) == 1 + 1
    assert len(named_volumes(lease)) == 8 + 1
    pool.close()
    assert len(containers(lease)) == 1  # one sandbox still uses it
    sandboxes[8].close()
    assert not containers(lease)
    assert not named_volumes(lease)


def test_a_container_whose_owner_is_dead_is_reaped(docker: SandboxBackend, tmp_path: Path) -> None:
    with docker.create() as sandbox:
        assert python(sandbox, "pass").ok
        [made] = sandbox._made  # type: ignore[attr-defined]
        tag = made._container.image.tags[0]
    labels = {LEASE: str(tmp_path / "gone"), HOST: platform.node()}
    left = docker_engine.client(os.getpid()).containers.run(
        tag, ["/usr/bin/python3", "-c", "import time; time.sleep(600)"], detach=True, labels=labels
    )
    for owner in (tmp_path / "gone", tmp_path):  # volumes without their container
        labels[LEASE] = str(owner)
        docker_engine.client(os.getpid()).volumes.create(f"left-{owner.name}", labels=labels)
    with contextlib.closing(Lease(tmp_path)) as lease:
        labels[LEASE] = str(lease.path)
        kept = docker_engine.client(os.getpid()).volumes.create(labels=labels)
        assert left.name in module.reap()
        assert left.name not in containers()
        assert not {"left-gone", f"left-{tmp_path.name}"} & named_volumes()
        assert kept.name in named_volumes()
    kept.remove()


def test_docker_is_chosen_if_bubblewrap_is_missing(
    docker: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bwrap, "_candidates", lambda: iter(()))
    monkeypatch.setattr(zygote_host, "_made", zygote_host._made.__wrapped__)  # not a zygote that runs already
    bwrap.find.cache_clear()
    try:
        assert sandbox_backend().name == "docker"
    finally:
        bwrap.find.cache_clear()


# docker-py leaves a socket open if it cannot connect.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unreachable_engine_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setattr(docker_engine, "_connected", functools.cache(docker_engine._connected.__wrapped__))
    message = str(module.DockerBackend().available())
    assert "cannot reach Docker" in message
    assert "is dockerd running" in message
    with pytest.raises(SandboxUnavailable):
        module.DockerBackend().create()
    gc.collect()


@contextlib.contextmanager
def engine(folder: Path, end: signal.Signals) -> Generator[None]:
    """A Docker engine of this test's own, until it is sent a signal."""
    places = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
    # In its own network namespace: an engine started without a bridge removes that of another engine.
    command = ["unshare", "--net", "dockerd", "--host", f"unix://{folder}/sock", "--bridge", "none"]
    command += ["--iptables=false"]
    command += [word for option, name in places.items() for word in (option, f"{folder}/{name}")]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.send_signal(end)
            process.wait()
            (folder / "pid").unlink(missing_ok=True)
            while os.path.ismount(data := folder / "data"):  # a killed engine does not unmount it
                subprocess.run(["umount", data], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
@pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine")
@pytest.mark.usefixtures("docker")
def test_after_a_restart_of_a_killed_engine_sandboxes_are_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="engine", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/sock")
        for where, cached in ((docker_engine, "_connected"), (module, "_reap_once")):
            monkeypatch.setattr(where, cached, functools.cache(getattr(where, cached).__wrapped__))
        backend = module.DockerBackend()
        with engine(folder, signal.SIGKILL):
            while missing := backend.available():
                assert "reach Docker" in missing
                time.sleep(0.1)
            sandbox = backend.create()
            peer = sandbox.open([sandbox.python, "-uc", "while True: print(input())"])
            assert peer.ask(b"up", 10) == b"up"
        with pytest.raises(SandboxError):  # the engine failed, not the command
            sandbox.run([sandbox.python, "-c", "pass"], limits=Limits(memory_bytes=2**27))
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(backend.create)
            time.sleep(0.5)
            assert not made.done()
            with engine(folder, signal.SIGTERM):
                with made.result() as other:
                    assert python(other, "print(1)").stdout == b"1\n"
                sandbox.close()
                owned = {"label": f"{HOST}={platform.node()}"}
                left = docker_engine.client(os.getpid()).containers.list(all=True, filters=owned)
                # Only the volume container that the next sandbox will use is left, and the shared files.
                assert sum(volumes.HOLDS in one.labels for one in left) == 1
                assert sum(volumes.SHARES in one.labels for one in left) == 1
                assert len(left) == 2
        gc.collect()  # collects unconnected sockets while their warning is ignored
