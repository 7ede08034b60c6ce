"""Limits of commands on every backend, beyond the cases of `envkit.sandbox.check`."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polling import wait_until_stable

from envkit.sandbox import ExecResult, Limits, Sandbox, SandboxBackend, StopReason

MIB = 2**20
#: A daemon that leaves its process tree and session and never ends by itself.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            open("beat", "ab").write(b".")
            time.sleep(0.002)
    os._exit(0)
while not os.path.exists("beat"):
    time.sleep(0.001)
"""


def python(sandbox: Sandbox, code: str, limits: Limits = Limits(), stdin: bytes = b"") -> ExecResult:
    return sandbox.run([sandbox.python, "-ISc", code], limits=limits, stdin=stdin)


def test_a_command_reads_stdin_and_returns_stdout_stderr_and_status(sandbox: Sandbox) -> None:
    code = "import sys; data = sys.stdin.read(); print(len(data)); print('no', file=sys.stderr); sys.exit(3)"
    result = python(sandbox, code, stdin=b"x" * MIB)
    assert (result.stop, result.exit) == (StopReason.EXITED, 3)
    assert (result.stdout, result.stderr, result.truncated) == (b"1048576\n", b"no\n", False)
    assert 0 < result.cpu_s < 5
    assert 0 < result.wall_s < 20
    assert not result.ok


def test_death_by_signal_is_distinguished_from_exit(sandbox: Sandbox) -> None:
    result = python(sandbox, "import os; os.kill(os.getpid(), 11)")
    assert (result.stop, result.exit) == (StopReason.SIGNALED, None)
    assert python(sandbox, "import sys; sys.exit(255)").exit == 255


def test_commands_start_in_the_workspace_without_the_hosts_environment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    sandbox.write("in.txt", b"given")
    code = "import os; assert os.environ['HOME'] == os.getcwd(); print(open('in.txt').read(), *os.environ)"
    result = python(sandbox, code)
    assert result.stdout.startswith(b"given ")
    assert b"SOME_TOKEN" not in result.stdout


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_of_output_stops_at_the_limit_without_filling_host_memory(
    sandbox: Sandbox, stream: int
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = f"import os\nchunk = b'x' * 65536\nfor _ in range(16384): os.write({stream}, chunk)"
    result = python(sandbox, code, Limits(output_bytes=100_000))
    assert (result.stop, result.truncated) == (StopReason.OUTPUT, True)
    assert len(result.stdout if stream == 1 else result.stderr) == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_daemon_dies_with_its_command(sandbox: Sandbox) -> None:
    assert python(sandbox, DAEMON).ok
    beats = sandbox.read("beat", MIB)
    time.sleep(0.05)
    assert sandbox.read("beat", MIB) == beats


def test_a_file_stops_growing_at_its_limit(sandbox: Sandbox) -> None:
    result = python(sandbox, "open('big', 'wb').write(bytes(2**21))", Limits(disk_bytes=MIB))
    assert b"File too large" in result.stderr
    assert len(sandbox.read("big", 4 * MIB)) == MIB


def test_permissions_of_the_workspace_are_restored_before_the_next_command(sandbox: Sandbox) -> None:
    assert python(sandbox, "import os; os.chmod('.', 0)").ok
    assert python(sandbox, "open('file', 'w')").ok


def test_ended_orphans_do_not_count_towards_the_process_limit(sandbox: Sandbox) -> None:
    code = """
import os, time
for _ in range(40):
    child = os.fork()
    if child == 0:
        if os.fork() == 0: time.sleep(0.001)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.02)
print("done")
"""
    result = python(sandbox, code, Limits(processes=16))
    assert result.stdout == b"done\n", result


@pytest.mark.parametrize("name", ["bubblewrap", "docker", "zygote"])
def test_a_command_that_kills_every_process_kills_only_its_own_sandbox(
    request: pytest.FixtureRequest, name: str
) -> None:
    backend: SandboxBackend = request.getfixturevalue(name)
    with backend.create() as sandbox, backend.create() as other:
        peer = other.open([other.python, "-uc", "while True: print(input())"])
        for target in ("-1", "0", "os.getppid()"):
            result = python(sandbox, f"import os\nos.kill({target}, 9)")
            assert result.stop in (StopReason.SIGNALED, StopReason.EXITED)
        assert peer.ask(b"still here", 5) == b"still here"


def test_many_sandboxes_leak_no_descriptors(backend: SandboxBackend) -> None:
    def once() -> None:
        with backend.create() as sandbox:
            assert python(sandbox, "pass").ok
            sandbox.open([sandbox.python, "-c", "input()"])

    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    once()
    before = wait_until_stable(open_descriptors)
    for _ in range(8):  # Docker makes eight workspaces at a time
        once()
    assert wait_until_stable(open_descriptors) == before


def test_a_clock_jump_does_not_trigger_the_wall_limit(backend: SandboxBackend, tmp_path: Path) -> None:
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    if not libraries:
        if os.environ.get("CI"):
            pytest.fail("libfaketime is not installed; apt install faketime")
        pytest.skip("libfaketime is not installed")
    stamp = tmp_path / "time"
    stamp.write_text("+0")
    code = f"""
import os, threading, time
from envkit.env.registry import load
from envkit.sandbox import Limits
before = time.time()
with load("sandbox", {backend.name!r})().create() as sandbox:
    def jump():
        open({str(stamp)!r} + ".new", "w").write("+2d")
        os.replace({str(stamp)!r} + ".new", {str(stamp)!r})  # atomic: a half-written file could not be parsed
    threading.Timer(0.3, jump).start()
    found = sandbox.run([sandbox.python, "-ISc", "import time; time.sleep(1)"], limits=Limits(wall_s=20))
print(found.stop, found.wall_s < 15, time.time() - before > 86400)
"""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "exited True True\n", done
