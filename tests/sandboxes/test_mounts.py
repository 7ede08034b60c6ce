"""Workspaces of a fixed size: mounting, cleanup, and the rights with which the host opens their files."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until_stable

from envkit.errors import SandboxError, TooLargeError, UnenforceableLimit, UsageError
from envkit.sandbox import PYTHON_OPTIONS, Quota, Sandbox, SandboxBackend
from envkit.sandboxes._linux import bwrap
from envkit.sandboxes._rootfs.rootfs import NOBODY
from envkit.sandboxes._workspace import mounted_sandbox
from envkit.sandboxes._workspace import mounts as workspace_mounts
from envkit.sandboxes._workspace.file_user import as_user
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend

USER = os.geteuid() or NOBODY
TRAINER = """
import os, time
from envkit.sandboxes.KIND import BACKEND
first = BACKEND().create()
first.write("file", b"1")
sandbox = first.fork()
assert sandbox.run([sandbox.python, "-P", "-S", "-c", "open('file')"]).ok
print(sandbox._mount.helper.pid, flush=True)
time.sleep(600)
"""
#: A forked process tries to use and to close its parent's sandbox.
FORK = """
import os, sys
from envkit.errors import SandboxError
from envkit.sandboxes.KIND import BACKEND
sandbox = BACKEND().create()
sandbox.write("file", b"1")
first = sandbox.snapshot()
if os.fork() == 0:
    run = lambda: sandbox.run([sandbox.python, "-c", "pass"])
    for use in (run, sandbox.fork, lambda: sandbox.reset(first)):
        try: use()
        except SandboxError as error: print("another" in str(error), flush=True)
    with BACKEND().create() as own: print(own.export(["*"], 9), flush=True)
    sandbox.close()
    sys.exit()
assert os.wait()[1] == 0
sandbox.reset(first)
print(sandbox.run([sandbox.python, "-P", "-S", "-c", "print(open('file').read())"]).stdout)
"""


@pytest.fixture(params=[BubblewrapBackend, ZygoteBackend])
def kind(request: pytest.FixtureRequest) -> type[BubblewrapBackend | ZygoteBackend]:
    if missing := request.param().available():
        pytest.skip(missing)
    return request.param


@pytest.fixture
def own_mounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[workspace_mounts.WorkspaceMounts]:
    """A mount helper of this test alone, not yet started."""
    made = workspace_mounts.WorkspaceMounts(USER)
    monkeypatch.setattr(mounted_sandbox, "shared_mounts", lambda *_: made)
    yield made
    made.close()


def program(sandbox: Sandbox, code: str):
    return sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code])


def source(text: str, kind: type) -> str:
    return text.replace("KIND", kind.name).replace("BACKEND", kind.__name__)


def mounts(spaces: workspace_mounts.WorkspaceMounts) -> list[str]:
    """Return the paths of the workspaces that the mount helper has mounted, without the shared root."""
    assert spaces._helper is not None
    paths = [path for path in mounts_seen_by(spaces._helper.pid, spaces) if path != str(spaces.lease.path)]
    return [path for path in paths if not Path(path).name.startswith("root-")]


def mounts_seen_by(process: int, spaces: workspace_mounts.WorkspaceMounts) -> list[str]:
    """Return the mount helper's folder and paths in it, on which a process sees something mounted."""
    table = Path(f"/proc/{process}/mounts").read_text()
    return [line.split()[1] for line in table.splitlines() if str(spaces.lease.path) in line]


@pytest.mark.parametrize("bounds", [(0, 10), (-1, 10), (2**20, 1), (2**20, 0)])
def test_a_quota_of_no_bytes_or_too_few_files_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="no room"):
        Quota(*bounds)


@pytest.mark.parametrize("name", ["bubblewrap", "docker", "zygote"])
def test_a_backend_enforces_the_quota_it_is_given(request: pytest.FixtureRequest, name: str) -> None:
    made = type(request.getfixturevalue(name))
    fill = "import os\nfor n in range(100): open(str(n), 'wb').write(bytes(2**16)); print(n, flush=True)"
    for quota, fit in ((Quota(2**20, 1000), 16), (Quota(2**22, 1000), 64), (Quota(2**24, 11), 10)):
        backend: SandboxBackend = made(quota=quota)
        assert backend.quota == quota
        with backend.create() as sandbox:
            found = program(sandbox, fill)
            assert (len(found.stdout.split()), b"No space left" in found.stderr) == (fit, True)
            with pytest.raises(TooLargeError, match=f"{quota.total_bytes} bytes in {quota.files} files"):
                sandbox.write("more", bytes(2**20))


def test_workspaces_are_never_mounted_on_the_host_and_are_unmounted_once(
    kind: type[BubblewrapBackend | ZygoteBackend], own_mounts: workspace_mounts.WorkspaceMounts
) -> None:
    first, second = kind().create(), kind().create()
    first.write("file", b"1")
    assert program(first, "open('file')").ok
    assert len(mounts(own_mounts)) == 2
    assert mounts_seen_by(os.getpid(), own_mounts) == []
    assert os.listdir(own_mounts.lease.path) == [".envkit-lease"]
    for _ in range(2):
        first.close()
        assert len(mounts(own_mounts)) == 1
    second.close()
    assert mounts(own_mounts) == []


def test_a_command_sees_no_other_workspace_among_its_mounts(
    kind: type[BubblewrapBackend | ZygoteBackend],
) -> None:
    code = "print([line.split()[4] for line in open('/proc/self/mountinfo') if ' - tmpfs ' in line])"
    with kind().create() as sandbox, kind().create():
        seen = program(sandbox, code).stdout.decode()
    assert seen.count("/workspace") == 1
    assert "lease" not in seen


def test_a_killed_mount_helper_raises_a_sandbox_error_and_is_replaced(
    kind: type[BubblewrapBackend | ZygoteBackend], own_mounts: workspace_mounts.WorkspaceMounts
) -> None:
    sandbox = kind().create()
    sandbox.write("file", b"1")
    held = wait_until_stable(lambda: len(os.listdir("/proc/self/fd")))
    dying = os.pidfd_open(own_mounts._helper.pid)  # type: ignore[union-attr]
    signal.pidfd_send_signal(dying, signal.SIGKILL)
    assert bwrap.readable(dying)
    os.close(dying)
    for _ in range(2):
        with pytest.raises(SandboxError, match="lost"):
            program(sandbox, "pass")
    with kind().create() as other:
        assert program(other, "open('file', 'w')").ok
        assert sandbox.read("file", 1) == b"1"  # as long as a descriptor is open
        sandbox.close()
    # Only the closed sandbox's folder descriptor is gone.
    assert wait_until_stable(lambda: len(os.listdir("/proc/self/fd"))) == held - 1


def test_the_mount_helper_dies_with_a_killed_trainer(kind: type[BubblewrapBackend | ZygoteBackend]) -> None:
    code = source(TRAINER, kind)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        try:
            helper = os.pidfd_open(int(trainer.stdout.readline()))
        finally:
            trainer.kill()
    assert bwrap.readable(helper)
    os.close(helper)


def test_a_forked_process_can_neither_use_nor_close_its_parents_workspace(
    kind: type[BubblewrapBackend | ZygoteBackend],
) -> None:
    # Since Python 3.12, a fork beside threads is warned of.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source(FORK, kind)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n" * 3 + "{}\nb'1\\n'\n", "")


def test_a_machine_that_cannot_mount_raises_unenforceable_limit(
    kind: type[BubblewrapBackend | ZygoteBackend],
    own_mounts: workspace_mounts.WorkspaceMounts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(workspace_mounts.sys, "executable", "/bin/false")
        with pytest.raises(UnenforceableLimit, match="quota: no file system of a fixed size"):
            kind().create()
        assert "quota: " in str(kind().available())
    assert kind().available() is None


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, bubblewrap: SandboxBackend) -> None:
    monkeypatch.setattr(workspace_mounts.shutil, "which", lambda _: None)
    workspace_mounts.nsenter.cache_clear()
    with bubblewrap.create() as sandbox, pytest.raises(SandboxError, match="apt install util-linux"):
        program(sandbox, "pass")
    workspace_mounts.nsenter.cache_clear()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as somebody else")
def test_the_host_opens_sandbox_files_without_root_rights(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"1")
    secret.chmod(0o600)

    def rights() -> tuple[str, int]:
        status = dict(line.split(":\t") for line in Path("/proc/thread-self/status").read_text().splitlines())
        return status["Uid"].split()[-1], threading.get_ident()

    seen, where = as_user(NOBODY, rights)
    assert (seen, where != threading.get_ident()) == (str(NOBODY), True)
    with pytest.raises(PermissionError):
        as_user(NOBODY, secret.read_bytes)
    # The calling thread and the process keep their user.
    assert (rights()[0], secret.read_bytes()) == ("0", b"1")
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
def test_concurrent_user_changes_in_threads_do_not_change_the_process() -> None:
    code = """if True:
        import ctypes, threading
        from concurrent.futures import ThreadPoolExecutor
        from envkit.sandboxes._workspace import file_user
        start = threading.Barrier(8)
        for _ in range(40):  # new threads that all change user at the same time
            file_user._here = threading.local()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: (start.wait(), file_user._become(65534)), range(8)))
            assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="starts as root")
def test_acting_as_another_user_without_the_right_raises() -> None:
    code = "from envkit.sandboxes._workspace.file_user import as_user\nas_user(65533, lambda: 1)"
    other = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        sys.executable,
        "-c",
        code,
    ]
    done = subprocess.run(other, capture_output=True, text=True, timeout=60)
    assert "may not act as user 65533" in done.stderr


def guest(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Change the mount helper's own program."""
    text = Path(str(workspace_mounts.__file__)).with_name("guest_mount_helper.py").read_text()
    assert old in text

    class Changed:
        joinpath = read_text = lambda self, *_: self if _ else text.replace(old, new)

    monkeypatch.setattr(workspace_mounts.resources, "files", lambda _: Changed())


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of two files that the helper can read."""
    lease = workspace_mounts.Lease(workspace_mounts.temporary())
    folder = lease.path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    for name in ("a", "b"):
        (folder / name).write_text(name)
    yield folder
    lease.close()


def test_a_folder_that_fills_the_last_batch_of_open_files_can_be_copied(
    own_mounts: workspace_mounts.WorkspaceMounts, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    guest(monkeypatch, "len(held) > most // 2", "len(held) > 2")
    own_mounts.root(shared)  # three with the folder itself
    own_mounts.mount(Quota(2**20, 100)).close()


def test_a_copy_that_takes_too_long_is_told_as_such(
    own_mounts: workspace_mounts.WorkspaceMounts, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    guest(
        monkeypatch,
        "    held: list[int] = []\n",
        "    __import__('time').sleep(9)\n    held: list[int] = []\n",
    )
    monkeypatch.setattr(workspace_mounts, "_COPY_PATIENCE_S", 0.3)
    with pytest.raises(SandboxError, match="does not answer: timed out"):
        own_mounts.root(shared)
