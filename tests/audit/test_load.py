"""Many candidates: hostile ones among honest ones, and so many in a row that every leak would show."""

from __future__ import annotations

import gc
import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attack_runner import run_attack
from attack_target import CALLS, FILES, REFERENCE, TARGET
from control_groups import control_groups
from polling import wait_until_stable

from envkit.env.grade import Grade
from envkit.environments.code_editor.attacks import ATTACKS, CORRECT, Attempt
from envkit.environments.code_editor.graders.oracle import Answer, Program, answers
from envkit.runtime import lease as leases
from envkit.sandbox import Contents, SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes._linux import cgroup
from envkit.sandboxes._rootfs.rootfs import NOBODY
from envkit.sandboxes._workspace.mounts import shared_mounts
from envkit.sandboxes._zygote import host as zygote_host
from envkit.sandboxes._zygote.host import shared_zygote
from envkit.types import Verdict

pytestmark = pytest.mark.slow  # hundreds of episodes

USER = os.geteuid() or NOBODY


@pytest.fixture(scope="module", params=["bubblewrap", "zygote"])
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    return sandbox_backend(request.param)


@pytest.fixture(scope="module")
def expected(backend: SandboxBackend) -> list[Answer]:
    return answers(backend, Program({"solution.py": REFERENCE.encode()}, "solution.py", "total"), CALLS)


def test_a_flood_and_a_fork_bomb_among_eight_spoil_no_other_verdict(
    backend: SandboxBackend, expected: list[Answer]
) -> None:
    bombs = [next(one for one in ATTACKS if one.number == number) for number in (33, 35)]
    attempts = [one.build(TARGET) for one in (*bombs, *CORRECT[:3])]
    attempts += [Attempt({"solution.py": f"def total(*args):\n    return {wrong}\n"}) for wrong in (1, 2, 3)]

    def judged(attempt: Attempt) -> Grade:
        return run_attack(backend, TARGET, attempt, CALLS, expected, files=FILES)

    with ThreadPoolExecutor(len(attempts)) as pool:
        found = [grade.verdict for grade in pool.map(judged, attempts)]
    assert found == [Verdict.FAIL] * 2 + [Verdict.PASS] * 3 + [Verdict.FAIL] * 3


def held(prefix: str, owner: str) -> dict[str, int]:
    """What leases of this prefix, and control groups of this owner, could leave behind."""
    gc.collect()
    folders = [*Path(tempfile.gettempdir()).glob(f"{prefix}*")]
    helper = shared_mounts(os.getpid(), USER)._helper
    assert helper is not None
    table = Path(f"/proc/{helper.pid}/mounts").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "mounts": Path("/proc/self/mounts").read_text().count("envkit-lease"),
        # The shared root stays.
        "workspaces": table.count(f" {helper.folder}/") - table.count(f" {helper.folder}/root-"),
        "control groups": len(control_groups(owner)),
        "folders": len(folders),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("cycles", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_nothing_grows_over_many_episodes(
    backend: SandboxBackend, expected: list[Answer], cycles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"envkit-lease-{secrets.token_hex(4)}-"  # others may be at work on this machine
    monkeypatch.setattr(leases, "_PREFIX", prefix)
    attempt = CORRECT[0].build(TARGET)

    def episodes(count: int) -> None:
        for _ in range(count):
            found = run_attack(backend, TARGET, attempt, CALLS, expected, files=FILES)
            assert found.verdict is Verdict.PASS, found

    episodes(50)
    # Control groups are named after a lease of all sandboxes; a zygote keeps some ready.
    is_zygote = backend.name == "zygote"
    lease = (
        shared_zygote(os.getpid(), Contents(), ()) if is_zygote else shared_mounts(os.getpid(), USER)
    ).lease
    owner = f"{lease.path.name}-"
    before, resident = wait_until_stable(lambda: held(prefix, owner)), resident_bytes()
    ready = zygote_host._PREFORKED * len(cgroup.parents()) if is_zygote else 0
    assert (before["control groups"], before["folders"], before["workspaces"]) == (ready, 0, 0)
    episodes(cycles)
    assert wait_until_stable(lambda: held(prefix, owner)) == before
    assert resident_bytes() < 1.05 * resident
