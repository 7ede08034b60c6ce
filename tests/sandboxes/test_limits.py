"""Commands under limits in every kind of sandbox, beyond the cases of `envkit.sandbox_check`."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from settle import settled

from envkit.sandbox import ExecResult, Limits, Sandbox, SandboxBackend, StopReason

MIB = 2**20
#: Leaves the tree and its session, and never ends by itself.
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


def test_a_command_gets_stdin_and_gives_stdout_stderr_and_status(sandbox: Sandbox) -> None:
    code = "import sys; data = sys.stdin.read(); print(len(data)); print('no', file=sys.stderr); sys.exit(3)"
    result = python(sandbox, code, stdin=b"x" * MIB)
    assert (result.stop, result.exit) == (StopReason.EXITED, 3)
    assert (result.stdout, result.stderr, result.truncated) == (b"1048576\n", b"no\n", False)
    assert 0 < result.cpu_s < 5
    assert 0 < result.wall_s < 20
    assert not result.ok


def test_death_by_signal_is_told_from_exit(sandbox: Sandbox) -> None:
    result = python(sandbox, "import os; os.kill(os.getpid(), 11)")
    assert (result.stop, result.exit) == (StopReason.SIGNALED, None)
    assert python(sandbox, "import sys; sys.exit(255)").exit == 255


def test_commands_start_in_the_workspace_with_a_bare_environment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    sandbox.write("in.txt", b"given")
    code = "import os; assert os.environ['HOME'] == os.getcwd(); print(open('in.txt').read(), *os.environ)"
    result = python(sandbox, code)
    assert result.stdout.startswith(b"given ")
    assert b"SOME_TOKEN" not in result.stdout


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_stops_at_the_cap_without_filling_the_host(sandbox: Sandbox, stream: int) -> None:
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


def test_a_workspace_that_was_shut_is_opened_for_the_next_command(sandbox: Sandbox) -> None:
    assert python(sandbox, "import os; os.chmod('.', 0)").ok
    assert python(sandbox, "open('file', 'w')").ok


def test_orphans_that_have_ended_count_no_more(sandbox: Sandbox) -> None:
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
def test_killing_everything_in_reach_kills_only_the_sandbox(
    request: pytest.FixtureRequest, name: str
) -> None:
    backend: SandboxBackend = request.getfixturevalue(name)
    with backend.create() as sandbox, backend.create() as other:
        peer = other.open([other.python, "-uc", "while True: print(input())"])
        for target in ("-1", "0", "os.getppid()"):
            result = python(sandbox, f"import os\nos.kill({target}, 9)")
            assert result.stop in (StopReason.SIGNALED, StopReason.EXITED)
        assert peer.ask(b"still here", 5) == b"still here"


def test_nothing_grows_over_many_sandboxes(backend: SandboxBackend) -> None:
    def once() -> None:
        with backend.create() as sandbox:
            assert python(sandbox, "pass").ok
            sandbox.open([sandbox.python, "-c", "input()"])

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    once()
    before = settled(held)
    for _ in range(8):  # as many as Docker makes workspaces at a time
        once()
    assert settled(held) == before


def test_a_clock_that_jumps_ends_nothing(backend: SandboxBackend, tmp_path: Path) -> None:
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    if not libraries:
        if os.environ.get("CI"):
            pytest.fail("libfaketime is not installed; apt install faketime")
        pytest.skip("libfaketime is not installed")
    stamp = tmp_path / "time"
    stamp.write_text("+0")
    code = f"""
import os, threading, time
from envkit.registry import load
from envkit.sandbox import Limits
before = time.time()
with load("sandbox", {backend.name!r})().create() as sandbox:
    def jump():
        open({str(stamp)!r} + ".new", "w").write("+2d")
        os.replace({str(stamp)!r} + ".new", {str(stamp)!r})  # half a file would be no time
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
