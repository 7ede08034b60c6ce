"""Host-side access to a workspace whose files come from hostile code."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from envkit.errors import UsageError
from envkit.runtime.lease import empty
from envkit.sandboxes._workspace import files as workspace_files
from envkit.sandboxes._workspace.files import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def workspace(folder: Path) -> Iterator[Workspace]:
    made = Workspace(os.open(folder, os.O_RDONLY), None)
    yield made
    made.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    made = tmp_path / "secret"
    made.write_bytes(b"host only")
    return made


def test_files_come_back_in_path_order(workspace: Workspace) -> None:
    for path in ("b/c.txt", "a.txt", "b/a/z.py"):
        workspace.write(path, path.encode())
    assert list(workspace.export(["**"], 100).items()) == [
        ("a.txt", b"a.txt"),
        ("b/a/z.py", b"b/a/z.py"),
        ("b/c.txt", b"b/c.txt"),
    ]


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["*.py"], ["a.py"]),
        (["**/*.py"], ["a.py", "src/b.py", "src/deep/c.py"]),
        (["src/*"], ["src/b.py"]),
        (["src/**"], ["src/b.py", "src/deep/c.py"]),
        (["?.py", "src/b.py"], ["a.py", "src/b.py"]),
        (["[a].py"], []),
        ([], []),
    ],
)
def test_globs_select_the_exported_files(workspace: Workspace, globs: list[str], expected: list[str]) -> None:
    for path in ("a.py", "src/b.py", "src/deep/c.py", "note.pyc"):
        workspace.write(path, b"")
    assert list(workspace.export(globs, 0)) == expected


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "a\0b", "a/./b", "\ud800", "n" * 256],
)
def test_paths_outside_the_workspace_are_refused(workspace: Workspace, path: str) -> None:
    with pytest.raises(UsageError):
        workspace.write(path, b"")
    with pytest.raises(UsageError):
        workspace.read(path, 10)


def test_no_symlink_is_read_through_written_through_or_listed(
    workspace: Workspace, folder: Path, secret: Path
) -> None:
    (folder / "file").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    for path in ("file", "folder/secret"):
        with pytest.raises(UsageError, match="symlink"):
            workspace.read(path, 100)
        with pytest.raises(UsageError):
            workspace.write(path, b"changed")
    assert workspace.export(["**"], 100) == {}
    assert secret.read_bytes() == b"host only"


def test_a_symlink_swapped_in_during_export_is_not_followed(
    workspace: Workspace, folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write("a", b"mine")
    look = os.stat

    def swap_after_looking(path: str, **options: object) -> os.stat_result:
        found = look(path, **options)  # type: ignore[arg-type]
        if path == "a":
            (folder / "a").unlink()
            (folder / "a").symlink_to(secret)
        return found

    monkeypatch.setattr(workspace_files.os, "stat", swap_after_looking)
    assert workspace.export(["**"], 100) == {}


def test_special_files_are_neither_opened_nor_overwritten(workspace: Workspace, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        for name in ("fifo", "socket"):
            with pytest.raises(FileNotFoundError):
                workspace.read(name, 10)
            with pytest.raises(UsageError, match="not a regular file"):
                workspace.write(name, b"")
        assert workspace.export(["**"], 10) == {}


def test_a_hard_link_is_replaced_rather_than_written_through(
    workspace: Workspace, folder: Path, secret: Path
) -> None:
    os.link(secret, folder / "link")
    workspace.write("link", b"changed")
    assert secret.read_bytes() == b"host only"


def test_a_missing_file_and_a_path_through_a_file_raise_file_not_found(workspace: Workspace) -> None:
    workspace.write("a", b"")
    for path in ("nothing", "nothing/b", "a/b"):
        with pytest.raises(FileNotFoundError):
            workspace.read(path, 10)
    with pytest.raises(UsageError):
        workspace.write("a/b", b"")


def test_size_caps_hold_for_one_file_for_the_total_and_for_sparse_files(
    workspace: Workspace, folder: Path
) -> None:
    workspace.write("a", b"12345")
    workspace.write("b", b"12345")
    assert workspace.read("a", 5) == b"12345"
    assert len(workspace.export(["*"], 10)) == 2
    with pytest.raises(UsageError, match="larger"):
        workspace.read("a", 4)
    with pytest.raises(UsageError, match="larger"):
        workspace.export(["*"], 9)
    with open(folder / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match="larger"):
        workspace.read("sparse", 1000)


def test_too_many_files_and_too_deep_folders_are_refused(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_files, "MAX_ENTRIES", 10)
    for number in range(11):
        workspace.write(str(number), b"")
    with pytest.raises(UsageError, match="entries"):
        workspace.export(["0"], 10)
    fill_with_nested_folders(folder, 70)
    with pytest.raises(UsageError, match="levels"):
        workspace.export(["**"], 10)


def test_names_that_are_not_text_are_left_out(workspace: Workspace, folder: Path) -> None:
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    workspace.write("ä", b"")
    assert list(workspace.export(["**"], 10)) == ["ä"]


def test_removed_permissions_are_restored_on_access(workspace: Workspace, folder: Path) -> None:
    workspace.write("a/b", b"1")
    (folder / "a/b").chmod(0)
    (folder / "a").chmod(0)
    folder.chmod(0)
    assert workspace.read("a/b", 10) == b"1"
    assert workspace.export(["**"], 10) == {"a/b": b"1"}
    workspace.write("a/c", b"2")
    assert workspace.read("a/c", 10) == b"2"


def test_restore_resets_files_and_modes_and_removes_other_files(workspace: Workspace, folder: Path) -> None:
    workspace.write("tool", b"#!", mode=0o755)
    kept = workspace.keep()
    workspace.write("tool", b"broken")
    workspace.write("new/file", b"")
    workspace.restore(kept)
    assert workspace.export(["**"], 100) == {"tool": b"#!"}
    assert (folder / "tool").stat().st_mode & 0o777 == 0o755
    assert not (folder / "new").exists()


def test_empty_removes_a_tree_deeper_than_the_path_length_limit(workspace: Workspace, folder: Path) -> None:
    fill_with_nested_folders(folder, 1100)
    (folder / "link").symlink_to(folder.parent)
    (folder.parent / "outside").write_bytes(b"")
    workspace.restore({})
    assert os.listdir(folder) == []
    assert (folder.parent / "outside").exists()


def test_empty_works_if_its_temporary_names_already_exist(workspace: Workspace, folder: Path) -> None:
    """Nested folders are moved up under temporary names, which may be taken."""
    for number in range(1, 4):
        (folder / f"envkit-lease-{number}").mkdir()
        (folder / f"envkit-lease-{number}" / "file").write_bytes(b"")
    for name in "abc":
        (folder / name / "below").mkdir(parents=True)
    workspace.restore({})
    assert os.listdir(folder) == []


def fill_with_nested_folders(folder: Path, levels: int) -> None:
    """Empty ``folder`` and create nested folders with a file in each; only the outermost is writable."""
    here = os.open(folder, os.O_RDONLY)
    empty(here)
    for level in range(levels):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=below))
        if level:
            os.fchmod(here, 0o500)
        os.close(here)
        here = below
    os.close(here)


def test_listing_many_deep_folders_opens_each_once(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / "/".join("d" * 40)
    deep.mkdir(parents=True)
    for number in range(50):
        (deep / str(number)).mkdir()
    (deep / "49/found").write_bytes(b"1")
    opened: list[str] = []
    real = workspace_files.open_entry

    def counting(name: str, parent: int, flags: int) -> int:
        opened.append(name)
        return real(name, parent, flags)

    monkeypatch.setattr(workspace_files, "open_entry", counting)
    assert [*workspace.export(["**"], 10)] == [f"{'d/' * 40}49/found"]
    assert len(opened) < 40 + 50 + 10
