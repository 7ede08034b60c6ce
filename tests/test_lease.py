"""Leased folders are kept while their owner lives, and removed by others when it is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from envkit.lease import Lease, reap

OWNER = """
import sys, time
from pathlib import Path
from envkit.lease import Lease
lease = Lease(Path(sys.argv[1]))
(lease.path / "file").write_text("x")
print(lease.path, flush=True)
time.sleep(60)
"""


def grow_old(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_a_lease_is_removed_with_its_content_once(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    (lease.path / "sub").mkdir()
    lease.close()
    lease.close()
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_dead_owners_are_reaped(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    grow_old(folder)
    assert reap(tmp_path) == []
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert reap(tmp_path) == [folder.name]
    assert not folder.exists()


def test_what_is_young_foreign_or_a_symlink_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "envkit-lease-young").mkdir()
    for own in ("envkit-clone", "envkit-lease-clone"):  # named by a person, by accident
        (tmp_path / own).mkdir()
        (tmp_path / own / "work.py").write_text("x")
        grow_old(tmp_path / own)
    (tmp_path / "other").mkdir()
    grow_old(tmp_path / "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    grow_old(outside)
    (tmp_path / "envkit-lease-link").symlink_to(outside)
    assert reap(tmp_path) == []
    assert (outside / "file").exists()
    assert (tmp_path / "envkit-clone" / "work.py").exists()
    assert (tmp_path / "envkit-lease-clone" / "work.py").exists()
