"""Leased folders are kept while their owner is alive and reaped after its death."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from envkit.runtime.lease import Lease, reap

OWNER = """
import sys, time
from pathlib import Path
from envkit.runtime.lease import Lease
lease = Lease(Path(sys.argv[1]))
(lease.path / "file").write_text("x")
print(lease.path, flush=True)
time.sleep(60)
"""


def make_old(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_closing_a_lease_twice_removes_its_folder_once(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    (lease.path / "sub").mkdir()
    lease.close()
    lease.close()
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_dead_owners_are_reaped(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    make_old(folder)
    assert reap(tmp_path) == []
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert reap(tmp_path) == [folder.name]
    assert not folder.exists()


def test_young_foreign_and_symlinked_folders_are_not_reaped(tmp_path: Path) -> None:
    (tmp_path / "envkit-lease-young").mkdir()
    for name in ("envkit-clone", "envkit-lease-clone"):  # folders of a user with similar names
        (tmp_path / name).mkdir()
        (tmp_path / name / "work.py").write_text("x")
        make_old(tmp_path / name)
    (tmp_path / "other").mkdir()
    make_old(tmp_path / "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    make_old(outside)
    (tmp_path / "envkit-lease-link").symlink_to(outside)
    assert reap(tmp_path) == []
    assert (outside / "file").exists()
    assert (tmp_path / "envkit-clone" / "work.py").exists()
    assert (tmp_path / "envkit-lease-clone" / "work.py").exists()
