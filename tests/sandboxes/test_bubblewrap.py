"""The bubblewrap backend, also on machines that lack control groups or other features."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from control_groups import control_groups

from envkit.errors import SandboxError, SandboxUnavailable, UnenforceableLimit
from envkit.runtime.lease import reap
from envkit.sandbox import Limits, Sandbox, StopReason
from envkit.sandboxes._linux import bwrap, cgroup, procfs
from envkit.sandboxes.bubblewrap import BubblewrapBackend

MIB = 2**20
ALLOCATE_FOREVER = "data = bytearray()\nwhile True: data += bytes(2**20)"
COUNT_FORKS = """
import os, time
made = 0
try:
    for made in range(100):
        if os.fork() == 0: time.sleep(60)
except OSError: pass
os.write(1, b"%d" % made)
"""
TRAINER = """
import os, sys, time
from envkit.sandboxes.bubblewrap import BubblewrapBackend
sandbox = BubblewrapBackend().create()
peer = sandbox.open([sandbox.python, "-uc", "print(input()); import time; time.sleep(600)"])
peer.ask(b"up", 30)
print(sandbox._folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def sandbox(bubblewrap: BubblewrapBackend) -> Sandbox:
    made = bubblewrap.create()
    yield made
    made.close()


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "parents", lambda: ())


def python(sandbox: Sandbox, code: str, limits: Limits = Limits()):
    return sandbox.run([sandbox.python, "-ISc", code], limits=limits)


needs_cgroups = pytest.mark.skipif(not cgroup.parents(), reason="no writable control groups here")


@needs_cgroups
def test_running_out_of_memory_is_reported_from_the_kernels_counter(sandbox: Sandbox) -> None:
    result = python(sandbox, ALLOCATE_FOREVER, Limits(memory_bytes=64 * MIB))
    assert (result.stop, result.exit) == (StopReason.MEMORY, None)
    assert 32 * MIB < result.peak_memory_bytes <= 64 * MIB


@needs_cgroups
def test_a_program_that_kills_itself_is_not_out_of_memory(sandbox: Sandbox) -> None:
    assert python(sandbox, "import os; os.kill(os.getpid(), 9)").stop is StopReason.SIGNALED


@needs_cgroups
def test_memory_of_all_processes_and_of_scratch_files_counts(sandbox: Sandbox) -> None:
    shared = "import os\nfor _ in range(4): os.fork()\n" + ALLOCATE_FOREVER
    assert python(sandbox, shared, Limits(memory_bytes=128 * MIB)).stop is StopReason.MEMORY
    files = "for n in range(40): open(f'/tmp/{n}', 'wb').write(bytes(2**20))"
    assert python(sandbox, files, Limits(memory_bytes=32 * MIB)).stop is StopReason.MEMORY


@needs_cgroups
def test_control_groups_are_removed_after_their_command(sandbox: Sandbox) -> None:
    python(sandbox, "pass")
    python(sandbox, ALLOCATE_FOREVER, Limits(memory_bytes=64 * MIB))
    assert not control_groups(f"{sandbox._folder.name}-")  # type: ignore[attr-defined]


def test_a_fork_bomb_stops_at_the_process_limit(sandbox: Sandbox) -> None:
    assert int(python(sandbox, COUNT_FORKS, Limits(processes=8)).stdout) == 7


@pytest.mark.usefixtures("no_cgroups")
def test_without_control_groups_every_limit_still_holds(sandbox: Sandbox) -> None:
    assert int(python(sandbox, COUNT_FORKS, Limits(processes=8)).stdout) == 7
    assert b"MemoryError" in python(sandbox, ALLOCATE_FOREVER, Limits(memory_bytes=64 * MIB)).stderr
    assert python(sandbox, "while True: pass", Limits(cpu_s=0.2)).stop is StopReason.CPU


#: Looks for ways into bubblewrap's own process, and for the host in command lines and mounts.
LOOK_AT_INIT = """
import json, os
opened, lines = [], []
names = "mem maps root cwd exe environ cmdline status task fd ns/pid oom_score_adj".split()
for name in names:
    for flags in (os.O_RDONLY, os.O_RDWR):
        try: opened.append([name, os.open(f"/proc/1/{name}", flags)])
        except OSError: pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("cmdline", "environ", "mountinfo"):
        try: lines.append(open(f"/proc/{pid}/{name}").read())
        except OSError: pass
print(json.dumps([opened, lines]))
"""


@pytest.mark.parametrize("grouped", [True, False])
def test_a_command_finds_neither_a_way_into_bubblewraps_process_nor_a_path_of_the_host(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    if not grouped:
        monkeypatch.setattr(cgroup, "parents", lambda: ())
    opened, lines = json.loads(python(sandbox, LOOK_AT_INIT).stdout)
    assert opened == []
    assert len(lines) >= 3
    hosts = (str(Path(tempfile.gettempdir())) + "/", "envkit", ".cache", str(Path.home()) + "/", "/var")
    assert [path for path in hosts if any(path in line for line in lines)] == []


@pytest.mark.usefixtures("no_cgroups")
def test_without_control_groups_bubblewraps_process_has_the_commands_limits(sandbox: Sandbox) -> None:
    limits = Limits(memory_bytes=96 * MIB, processes=8, cpu_s=3, disk_bytes=MIB)
    peer = sandbox.open([sandbox.python, "-uc", "while True: print(input())"], limits=limits)
    assert peer.ask(b"up", 10) == b"up"
    init = peer._tree._init  # type: ignore[attr-defined]
    bounds = {"address space": 96 * MIB, "processes": 9, "cpu time": 7, "file size": MIB}
    for pid in procfs.family(init):
        table = Path(f"/proc/{pid}/limits").read_text().splitlines()
        for name, bound in bounds.items():
            [line] = [line for line in table if line.startswith(f"Max {name} ")]
            assert line.removeprefix(f"Max {name} ").split()[:2] == [str(bound)] * 2
    peer.close()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGSYS])
def test_a_command_that_ends_by_a_signal_is_reported_so(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, grouped: bool, number: int
) -> None:
    if not grouped:
        monkeypatch.setattr(cgroup, "parents", lambda: ())
    lonely = f"import os; os.kill(os.getpid(), {number})"
    beside = f"import os, time\nif os.fork() == 0: time.sleep(60)\nos.kill(os.getpid(), {number})"
    from_child = f"import os, time\nif os.fork() == 0: os.kill(os.getppid(), {number})\nelse: time.sleep(60)"
    from_thread = (
        f"import os, threading, time\n"
        f"threading.Thread(target=lambda: os.kill(os.getpid(), {number})).start()\ntime.sleep(60)"
    )
    for code in (lonely, beside, from_child, from_thread):
        found = python(sandbox, code)
        assert (found.stop, found.exit) == (StopReason.SIGNALED, None), (code, found)
    shell = sandbox.run(["sh", "-c", f"kill -{number:d} $$"])
    assert shell.stop is StopReason.SIGNALED


@pytest.mark.usefixtures("no_cgroups")
def test_a_limit_that_cannot_be_enforced_is_refused_by_name(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bwrap.platform, "release", lambda: "5.10.0-28-amd64")
    with pytest.raises(UnenforceableLimit, match="processes"):
        python(sandbox, "pass")


def test_a_kernel_that_hides_child_processes_is_refused(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "family", lambda pid: [pid])
    with pytest.raises(UnenforceableLimit, match="CONFIG_PROC_CHILDREN"):
        python(sandbox, "pass")


def test_a_killed_bwrap_raises_a_sandbox_error_and_the_sandbox_stays_usable(sandbox: Sandbox) -> None:
    peer = sandbox.open([sandbox.python, "-uc", "while True: print(input())"])
    assert peer.ask(b"up", 10) == b"up"
    os.kill(peer._tree._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    def ask_until_it_is_dead() -> None:
        while True:
            peer.ask(b"again", 10)

    with pytest.raises(SandboxError, match="died"):
        ask_until_it_is_dead()
    with pytest.raises(SandboxError):
        peer.close()
    assert python(sandbox, "pass").ok


def test_a_failing_setup_raises_a_sandbox_error_that_quotes_bubblewrap(sandbox: Sandbox) -> None:
    sandbox._options += ["--ro-bind", "/nowhere", "/nowhere"]  # type: ignore[attr-defined]
    with pytest.raises(SandboxError, match="nowhere"):
        python(sandbox, "pass")
    assert not control_groups(f"{sandbox._folder.name}-")  # type: ignore[attr-defined]


def test_a_program_cannot_forge_bubblewraps_reports(sandbox: Sandbox) -> None:
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    # 0 to 2, and the descriptor of the listed folder: no descriptor of the host is left open.
    assert python(sandbox, code).stdout == b"['0', '1', '2', '3']\n"


def test_nothing_survives_a_killed_trainer(bubblewrap: BubblewrapBackend) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        try:
            name = trainer.stdout.readline().strip()
            running = [os.pidfd_open(pid) for pid in procfs.family(trainer.pid)[1:]]
        finally:
            trainer.kill()
    assert running
    for pidfd in running:
        assert bwrap.readable(pidfd)
        os.close(pidfd)
    folder = Path(tempfile.gettempdir())
    os.utime(folder / name, (0, 0))
    assert name in reap(folder)  # as the next trainer does when it starts
    cgroup.remove_leftovers(name)
    assert not control_groups(f"{name}-")


def test_a_missing_bwrap_is_reported_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bwrap, "_candidates", lambda: iter(()))
    bwrap.find.cache_clear()
    assert "apt install bubblewrap" in str(BubblewrapBackend().available())
    with pytest.raises(SandboxUnavailable):
        BubblewrapBackend().create()
    bwrap.find.cache_clear()


def test_an_old_bwrap_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    old.chmod(0o755)
    monkeypatch.setattr(bwrap, "_candidates", lambda: iter([old]))
    bwrap.find.cache_clear()
    with pytest.raises(SandboxUnavailable, match=r"version 0\.6"):
        bwrap.find(os.geteuid())
    bwrap.find.cache_clear()
