"""Control groups of both versions, tested on plain folders because few machines mount both."""

from __future__ import annotations

from pathlib import Path

import pytest

from envkit.sandbox import Limits
from envkit.sandboxes._linux import cgroup
from envkit.sandboxes._linux.cgroup import Cgroup


def test_version_2_uses_the_nearest_group_that_delegates_controllers(tmp_path: Path) -> None:
    (tmp_path / "user/session").mkdir(parents=True)
    for folder, delegated in (("user/session", ""), ("user", "cpu memory pids"), ("", "cpu memory pids")):
        (tmp_path / folder / "cgroup.subtree_control").write_text(delegated)
    found = list(cgroup._places("0::/user/session\n", tmp_path))
    assert found == [(tmp_path / "user",), (tmp_path,)]


def test_version_1_needs_all_three_controllers(tmp_path: Path) -> None:
    three = "4:memory:/a\n3:cpu,cpuacct:/\n2:pids:/b\n0::/\n"
    assert list(cgroup._places(three, tmp_path)) == [
        (tmp_path / "memory/a", tmp_path / "pids/b", tmp_path / "cpuacct")
    ]
    assert list(cgroup._places("4:memory:/a\n", tmp_path)) == []


def test_version_2_files_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Cgroup((tmp_path,), "g", Limits(memory_bytes=1000, processes=4))
    folder = tmp_path / "g"
    assert (folder / "memory.max").read_text() == "1000"
    assert (folder / "pids.max").read_text() == "5"
    assert (folder / "memory.swap.max").read_text() == "0"
    (folder / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\noom_group_kill 0\n")
    assert group.cpu_s() == 1.5
    assert not group.out_of_memory()
    assert group.peak_memory_bytes() == 0
    (folder / "memory.events").write_text("oom 1\noom_kill 2\n")
    (folder / "memory.peak").write_text("999\n")
    assert group.out_of_memory()
    assert group.peak_memory_bytes() == 999


@pytest.mark.parametrize("found", [(), (Path("/proc/nowhere"),)])
def test_a_folder_in_which_no_group_can_be_created_is_not_used(
    found: tuple[Path, ...], tmp_path: Path
) -> None:
    places = found or (tmp_path / "file",)
    (tmp_path / "file").write_text("")
    assert not cgroup._usable(places)
