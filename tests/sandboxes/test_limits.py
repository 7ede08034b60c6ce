"""Commands under limits, in every kind of sandbox."""

from __future__ import annotations

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from envkit.errors import UsageError
from envkit.sandbox import ExecResult, Limits, PeerGone, Sandbox, SandboxBackend, StopReason

MIB = 2**20
#: Leaves the tree and its session, and never ends by itself.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("alive", "w") as file:
            file.write("x")
        while True:
            open("beat", "ab").write(b".")
            time.sleep(0.002)
    os._exit(0)
while not os.path.exists("alive"):
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


def test_stdin_that_nobody_reads_does_no_harm(sandbox: Sandbox) -> None:
    assert python(sandbox, "pass", stdin=b"x" * MIB).ok


def test_a_missing_command_is_the_commands_failure(sandbox: Sandbox) -> None:
    result = sandbox.run(["no-such-command"])
    assert (result.stop, result.exit) == (StopReason.EXITED, 127)
    assert b"no-such-command" in result.stderr


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


def test_output_of_exactly_the_cap_is_whole_and_one_byte_more_is_not(sandbox: Sandbox) -> None:
    exact = python(sandbox, "print('x' * 999)", Limits(output_bytes=1000))
    assert (exact.stop, len(exact.stdout), exact.truncated) == (StopReason.EXITED, 1000, False)
    more = python(sandbox, "print('x' * 1000)", Limits(output_bytes=1000))
    assert (more.stop, len(more.stdout), more.truncated) == (StopReason.OUTPUT, 1000, True)


def test_the_cpu_limit_counts_the_whole_tree(sandbox: Sandbox) -> None:
    code = "import os\nos.fork()\nwhile True: pass"
    result = python(sandbox, code, Limits(cpu_s=0.3))
    assert (result.stop, result.exit) == (StopReason.CPU, None)
    assert result.cpu_s < 2


def test_the_wall_limit_ends_a_program_that_sleeps_and_ignores_sigterm(sandbox: Sandbox) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    result = python(sandbox, code, Limits(wall_s=0.5))
    assert (result.stop, result.stdout) == (StopReason.WALL, b"up\n")


def test_a_daemon_dies_with_its_command(sandbox: Sandbox) -> None:
    assert python(sandbox, DAEMON).ok
    beats = sandbox.read("beat", MIB)
    time.sleep(0.05)
    assert sandbox.read("beat", MIB) == beats


def test_a_file_stops_growing_at_its_limit(sandbox: Sandbox) -> None:
    result = python(sandbox, "open('big', 'wb').write(bytes(2**21))", Limits(disk_bytes=MIB))
    assert b"File too large" in result.stderr
    assert len(sandbox.read("big", 4 * MIB)) == MIB


def test_killing_everything_in_reach_kills_only_the_sandbox(bubblewrap: SandboxBackend) -> None:
    with bubblewrap.create() as sandbox, bubblewrap.create() as other:
        peer = other.open([other.python, "-uc", "while True: print(input())"])
        for target in ("-1", "0", "os.getppid()"):
            result = python(sandbox, f"import os\nos.kill({target}, 9)")
            assert result.stop in (StopReason.SIGNALED, StopReason.EXITED)
        assert peer.ask(b"still here", 5) == b"still here"


def test_reset_kills_programs_and_restores_a_snapshot(sandbox: Sandbox) -> None:
    sandbox.write("a", b"1")
    name = sandbox.snapshot()
    peer = sandbox.open([sandbox.python, "-c", "while True: open('a', 'w').write('2')"])
    sandbox.reset(name)
    assert sandbox.export(["**"], 10) == {"a": b"1"}
    with pytest.raises(PeerGone):
        peer.ask(b"", 1)
    sandbox.reset()
    assert sandbox.export(["**"], 10) == {}
    with pytest.raises(UsageError, match="snapshot-0"):
        sandbox.reset("other")


def test_nothing_grows_over_many_sandboxes(backend: SandboxBackend) -> None:
    def once() -> None:
        with backend.create() as sandbox:
            assert python(sandbox, "pass").ok
            sandbox.open([sandbox.python, "-c", "input()"])

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        once()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sandboxes_run_side_by_side_in_threads_that_end(backend: SandboxBackend) -> None:
    with backend.create() as sandbox:
        opened = ThreadPoolExecutor(1)
        peer = opened.submit(sandbox.open, [sandbox.python, "-uc", "while True: print(input())"]).result()
        opened.shutdown()  # its thread is gone, the peer must not be
        assert peer.ask(b"alive", 5) == b"alive"

    barrier = threading.Barrier(3)

    def work(number: int) -> bytes:
        with backend.create() as sandbox:
            barrier.wait()
            return python(sandbox, f"print({number})").stdout

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [b"0\n", b"1\n", b"2\n"]
