"""Forks and snapshots as overlay mounts: isolation between them, and cleanup after closing."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from polling import wait_until_stable

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Quota, Sandbox, SandboxBackend
from envkit.sandbox.check import CASES
from envkit.sandbox.check.context import CheckContext, attempt
from envkit.sandbox.check.suite import SandboxSuite
from envkit.sandboxes._linux import bwrap
from envkit.sandboxes._rootfs.rootfs import NOBODY
from envkit.sandboxes._workspace import mounted_sandbox
from envkit.sandboxes._workspace import mounts as workspace_mounts
from envkit.sandboxes._workspace.files import PAGE_BYTES
from envkit.sandboxes._workspace.mounted_sandbox import MountedSandbox

MIB = 2**20
USER = os.geteuid() or NOBODY
#: Cases that depend on how a snapshot gets into a workspace.
SNAPSHOT_CASES = [name for name in CASES if "fork" in name or "snapshot" in name]


class Forking(SandboxBackend):
    """Creates sandboxes only by forking, so that each workspace is an overlay."""

    isolated = True

    def __init__(self, backend: SandboxBackend) -> None:
        self.name, self.quota = backend.name, backend.quota
        self._backend = backend

    def available(self) -> str | None:
        return self._backend.available()

    def create(self) -> Sandbox:
        with self._backend.create() as first:
            return first.fork()


class TestForksOfZygote(SandboxSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, zygote: SandboxBackend) -> SandboxBackend:
        return Forking(zygote)


@pytest.mark.nightly  # the zygote's forks use the same mounts and run all cases
class TestForksOfBubblewrap(SandboxSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, bubblewrap: SandboxBackend) -> SandboxBackend:
        return Forking(bubblewrap)


@pytest.fixture(params=["bubblewrap", "zygote"])
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue(request.param)


@pytest.fixture
def own_mounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[workspace_mounts.WorkspaceMounts]:
    """A mount helper of this test alone, not yet started."""
    made = workspace_mounts.WorkspaceMounts(USER)
    monkeypatch.setattr(mounted_sandbox, "shared_mounts", lambda *_: made)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def require_overlays(bubblewrap: SandboxBackend) -> None:
    why = workspace_mounts.shared_mounts(os.getpid(), USER).copies()
    if why and bwrap._kernel() < (6, 6):
        pytest.skip(f"snapshots are copied here: {why}")


def program(sandbox: Sandbox, code: str) -> str:
    found = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code])
    return (found.stdout + found.stderr).decode()


def mounted(sandbox: Sandbox) -> list[str]:
    """Return type and options of the workspace's mount, as a program in the sandbox sees them."""
    code = "print([line for line in open('/proc/self/mountinfo') if ' /workspace ' in line][0])"
    _, _, about = program(sandbox, code).partition(" - ")
    return [about.split()[0], *about.split()[2].split(",")]


def count_mounts(spaces: workspace_mounts.WorkspaceMounts) -> int:
    """Return the number of file systems that the mount helper has mounted, without the shared root."""
    assert spaces._helper is not None
    table = Path(f"/proc/{spaces._helper.pid}/mounts").read_text()
    ours = [line for line in table.splitlines() if f" {spaces.lease.path}/" in line]
    return sum(f" {spaces.lease.path}/root-" not in line for line in ours)


def shared_memory() -> int:
    table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(table["Shmem"].split()[0]) * 1024


def test_a_fork_is_an_overlay_that_shows_no_host_path(
    backend: SandboxBackend, own_mounts: workspace_mounts.WorkspaceMounts
) -> None:
    with backend.create() as sandbox:
        sandbox.write("file", b"1")
        with sandbox.fork() as fork:
            kind, *options = mounted(fork)
            assert kind == "overlay"
            assert not [one for one in options if "/tmp" in one or own_mounts.lease.path.name in one]
            assert {"upperdir=changes/upper", "workdir=changes/work"} <= {*options}
        assert mounted(sandbox)[0] == "tmpfs"


def test_closing_a_fork_unmounts_it_and_closing_the_last_fork_unmounts_the_layer(
    backend: SandboxBackend, own_mounts: workspace_mounts.WorkspaceMounts
) -> None:
    sandbox = backend.create()
    sandbox.write("file", b"1")
    first = sandbox.snapshot()
    assert count_mounts(own_mounts) == 2
    forks = [sandbox.fork(first) for _ in range(3)]
    assert count_mounts(own_mounts) == 5
    with sandbox.fork():
        assert count_mounts(own_mounts) == 6  # the layer of this fork alone is already unmounted
    for fork in forks:
        fork.reset(first)
        fork.reset()
    assert count_mounts(own_mounts) == 5
    sandbox.close()
    assert count_mounts(own_mounts) == 4
    forks.pop().close()
    forks[0].reset(first)
    assert forks[0].export(["*"], 1) == {"file": b"1"}
    for fork in forks:
        fork.close()
        fork.close()
    assert count_mounts(own_mounts) == 0


def test_hundreds_of_forks_leak_neither_descriptors_nor_memory(backend: SandboxBackend) -> None:
    def once() -> None:
        with backend.create() as sandbox:
            for name in "abcdefg":
                sandbox.write(name, bytes(4 * MIB))
            first = sandbox.snapshot()
            for _ in range(4):
                with sandbox.fork(first) as fork:
                    fork.write("a", bytes(4 * MIB))
                    fork.reset(first)
            assert program(sandbox, "print(len(open('a').read()))") == f"{4 * MIB}\n"

    once()
    held, memory = wait_until_stable(lambda: len(os.listdir("/proc/self/fd"))), shared_memory()
    for _ in range(25):
        once()
    assert wait_until_stable(lambda: len(os.listdir("/proc/self/fd"))) == held
    assert shared_memory() - memory < 350 * MIB  # the snapshots alone took 700 MiB


def test_forks_can_be_made_from_several_threads(backend: SandboxBackend) -> None:
    with backend.create() as sandbox:
        sandbox.write("file", b"1")
        forks = [sandbox.fork(sandbox.snapshot()) for _ in range(4)]

    def live(number: int) -> list[str]:
        seen: list[str] = []
        with forks[number] as fork:
            for _ in range(3):
                fork.reset("snapshot-0")
                with fork.fork() as child:
                    child.write("file", str(number).encode())
                    seen += [program(each, "print(open('file').read())").strip() for each in (fork, child)]
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(live, range(4))) == [["1", str(number)] * 3 for number in range(4)]


def test_a_snapshots_folder_cannot_be_renamed_but_can_be_moved_by_copying(backend: SandboxBackend) -> None:
    rename = "import os\ntry: os.rename('d', 'e')\nexcept OSError as error: print(error.strerror)"
    move = "import os, shutil; shutil.move('d', 'e'); os.mkdir('new'); os.rename('new', 'newer')"
    with backend.create() as sandbox:
        sandbox.write("d/file", b"1")
        with sandbox.fork() as fork:
            assert program(fork, rename) == "Invalid cross-device link\n"
            assert program(fork, move) == ""
            assert fork.export(["**"], 9) == {"e/file": b"1"}


def test_a_snapshot_of_more_than_a_quarter_of_the_quota_is_copied(backend: SandboxBackend) -> None:
    quota = Quota(4 * MIB, 400)
    for count, size, kind in (
        (4, MIB // 4, "overlay"),
        (5, MIB // 4, "tmpfs"),
        (99, 0, "overlay"),
        (100, 0, "tmpfs"),
    ):
        with type(backend)(quota=quota).create() as sandbox:  # type: ignore[call-arg]
            for number in range(count):
                sandbox.write(str(number), bytes(size))
            first = sandbox.snapshot()
            with sandbox.fork(first) as fork:
                assert mounted(fork)[0] == kind
                assert len(fork.export(["*"], 4 * MIB)) == count
            sandbox.reset(first)
            assert mounted(sandbox)[0] == kind


@pytest.mark.parametrize("files", [2, 3, 7, 8, 9, 12, 16])
def test_a_quota_of_a_few_files_is_enforced(backend: SandboxBackend, files: int) -> None:
    fill = "try:\n for n in range(99): open(str(n), 'w').close()\nexcept OSError: print(n)"
    with type(backend)(quota=Quota(MIB, files)).create() as sandbox:  # type: ignore[call-arg]
        sandbox.write("file", b"1")
        first = sandbox.snapshot()
        sandbox.reset(first)
        assert sandbox.export(["*"], 1) == {"file": b"1"}
        # The root folder and the file count too, and so may the overlay's extended attributes.
        assert files - 3 <= int(program(sandbox, fill)) <= files - 2
        with sandbox.fork(first) as fork:
            assert program(fork, "import os; os.unlink('file'); print(os.listdir())") == "[]\n"


@pytest.mark.parametrize("total_bytes", [1, 4095, 4096, 8192, 16383, 16384, 16385, 20000])
def test_a_quota_of_a_few_bytes_is_enforced(backend: SandboxBackend, total_bytes: int) -> None:
    max_bytes = -(-total_bytes // PAGE_BYTES) * PAGE_BYTES
    fill = "for n in range(9): print(os.write(os.open(str(n), os.O_WRONLY | os.O_CREAT), bytes(4096)))"
    with type(backend)(quota=Quota(total_bytes, 99)).create() as sandbox:  # type: ignore[call-arg]
        sandbox.write("file", b"1")
        sandbox.reset(sandbox.snapshot())
        found = program(sandbox, f"import os\n{fill}")
        assert "No space left" in found
        assert PAGE_BYTES + found.count("4096\n") * 4096 <= max_bytes


@pytest.mark.parametrize("case", SNAPSHOT_CASES)
def test_without_overlays_snapshots_are_copied(
    backend: SandboxBackend,
    own_mounts: workspace_mounts.WorkspaceMounts,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr(workspace_mounts.MountHelper, "copies", "it is forbidden here")
    assert own_mounts.copies() == "it is forbidden here"
    with CheckContext.open(backend) as context:
        assert attempt(case, CASES[case], context).detail == ""
        with context.sandbox.fork() as fork:
            assert mounted(fork)[0] == "tmpfs"


def test_a_kernel_without_overlays_is_detected(
    own_mounts: workspace_mounts.WorkspaceMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = (
        workspace_mounts.resources.files("envkit.sandboxes._workspace")
        .joinpath("guest_mount_helper.py")
        .read_text()
    )
    assert "userxattr" in read
    source = Source(read.replace("userxattr", "no-such-option"))
    monkeypatch.setattr(workspace_mounts.resources, "files", lambda _: source)
    assert "mount overlay on over: Invalid argument" in str(own_mounts.copies())
    assert count_mounts(own_mounts) == 0  # the attempt left no mount behind


class Source:
    """Stands in for a package with one file."""

    def __init__(self, text: str) -> None:
        self._text = text

    def joinpath(self, name: str) -> Source:
        assert name == "guest_mount_helper.py"
        return self

    def read_text(self) -> str:
        return self._text


def test_snapshots_of_a_dead_mount_helper_raise_and_are_not_mistaken_for_new_ones(
    backend: SandboxBackend, own_mounts: workspace_mounts.WorkspaceMounts
) -> None:
    sandbox = backend.create()
    sandbox.write("file", b"1")
    first = sandbox.snapshot()
    dying = os.pidfd_open(own_mounts._helper.pid)  # type: ignore[union-attr]
    signal.pidfd_send_signal(dying, signal.SIGKILL)
    assert bwrap.readable(dying)
    os.close(dying)
    with (
        backend.create() as other,
        backend.create() as another,
    ):  # their mounts get the names of the lost ones
        for each in (other, another):
            each.write("secret", b"1")
        for action in (
            lambda: sandbox.fork(first),
            sandbox.fork,
            lambda: sandbox.reset(first),
            sandbox.reset,
        ):
            with pytest.raises(SandboxError, match="lost"):
                action()
        sandbox.close()
        assert count_mounts(own_mounts) == 2


def test_a_failed_fork_leaks_neither_mounts_nor_descriptors(
    backend: SandboxBackend, own_mounts: workspace_mounts.WorkspaceMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend.create() as sandbox:
        sandbox.write("file", b"1")
        first = sandbox.snapshot()
        before, held = count_mounts(own_mounts), wait_until_stable(lambda: len(os.listdir("/proc/self/fd")))
        for broken in itertools.product((MountedSandbox._restore, MountedSandbox._new), (first, None)):
            with monkeypatch.context() as patched:
                patched.setattr(type(sandbox), broken[0].__name__, fail)
                with pytest.raises(SandboxError, match="on purpose"):
                    sandbox.fork(broken[1])
        assert (count_mounts(own_mounts), wait_until_stable(lambda: len(os.listdir("/proc/self/fd")))) == (
            before,
            held,
        )


def fail(*_: object) -> None:
    raise SandboxError("on purpose")
