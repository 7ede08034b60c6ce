"""Files that users name are read within bounds: no pipe, no device, no file that fills memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from envkit.agents.cards import load_card
from envkit.agents.recorded import read_recorded
from envkit.env.taskfile import MAX_BYTES, read_tasks
from envkit.errors import UsageError
from envkit.measure import spec
from envkit.runtime.files import MAX_SETTINGS_BYTES, read_regular_file
from envkit.runtime.prices import load_prices
from envkit.training import config

READERS: dict[str, Callable[[Path], object]] = {
    "prices": load_prices,
    "card": lambda path: load_card(str(path)),
    "recorded": read_recorded,
    "spec": spec.from_toml,
    "config": config.from_toml,
    "tasks": read_tasks,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_readers_refuse_pipes_devices_and_huge_files(
    tmp_path: Path, reader: Callable[[Path], object]
) -> None:
    pipe, huge = tmp_path / "pipe.toml", tmp_path / "huge.toml"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(2**42)
    for path, reason in (
        (pipe, "found a pipe or device, expected a file"),
        (Path("/dev/zero"), "found a pipe or device, expected a file"),
        (huge, rf"larger than ({MAX_SETTINGS_BYTES:,}|{MAX_BYTES:,}) bytes; use a smaller file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(UsageError, match=f"{path}:? cannot be read.*{reason}"):
            reader(path)


def test_limit_is_the_largest_size_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"12345")
    assert read_regular_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular_file(path, 4)


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"{}\n")
    tracemalloc.start()
    try:
        assert read_regular_file(path, 2**32) == b"{}\n"
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
