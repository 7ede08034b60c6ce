"""The run folder: durable records, repair of torn lines, and refusal of corrupt ones."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit import EpisodeKey, Outcome, StepRecord, StoreError, Tokens, Trajectory, Turn, Usage
from envkit.runtime.store import (
    SCHEMA,
    Journal,
    RunFolder,
    read_lines,
    trajectory_from_json,
    trajectory_to_json,
    whole_folder,
    write_atomic,
)


def journal_of(path: Path, *records: object) -> Path:
    with Journal(path) as journal:
        for record in records:
            journal.append({"n": record})
    return path


def numbers(path: Path) -> list[object]:
    return [record["n"] for record in read_lines(path)]


# Journals.


def test_records_are_read_in_order(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1, "two\n\ud800", None)
    assert numbers(path) == [1, "two\n\ud800", None]
    assert {record["schema"] for record in read_lines(path)} == {SCHEMA}


def test_opening_again_appends(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1)
    assert numbers(journal_of(path, 2)) == [1, 2]


def test_a_synced_record_is_readable_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.append({"n": 1})
        journal.sync()
        assert numbers(journal.path) == [1]


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_moved_to_another_file(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1, 2)
    torn = b'{"schema":1,"n":"half a \xc3'
    with path.open("ab") as file:
        file.write(torn)
    assert numbers(path) == [1, 2]
    assert path.read_bytes().endswith(torn), "reading must not change the file"
    assert numbers(journal_of(path, 3)) == [1, 2, 3]
    (aside,) = tmp_path.glob("a.jsonl.torn-*")
    assert aside.read_bytes() == torn


@pytest.mark.parametrize("piece", [1, 7, 2**16])
def test_a_journal_that_is_too_long_to_be_read_can_be_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("envkit.runtime.store._MAX_JOURNAL_BYTES", 20)
    monkeypatch.setattr("envkit.runtime.store._PIECE_BYTES", piece)
    path = tmp_path / "a.jsonl"
    whole = b'{"schema":1,"n":1}\n' * 3
    for torn in (b"", b'{"schema"'):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            journal.append({"n": 1})
        assert path.read_bytes() == whole + b'{"schema":1,"n":1}\n'
    (aside,) = tmp_path.glob("a.jsonl.torn-*")
    assert aside.read_bytes() == b'{"schema"'
    with pytest.raises(StoreError, match="larger than 20 bytes"):
        read_lines(path)


def test_a_file_with_only_a_torn_line_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"schema"')
    assert read_lines(path) == []
    assert numbers(journal_of(path, 1)) == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"half a rec", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"schema":2,"n":1}', f"schema is 2; this version of envkit reads {SCHEMA}"),
        (b'{"n":1}', "schema is None"),
    ],
)
def test_a_corrupt_line_is_refused_with_its_line_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1, 2)
    whole = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([whole[0], line, *whole[1:]]))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"a\.jsonl:2: {message}"):
        read_lines(path)
    assert path.read_bytes() == before


def test_a_journal_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path)):
        read_lines(tmp_path)
    with pytest.raises(StoreError, match="nowhere"):
        Journal(tmp_path / "nowhere" / "a.jsonl")


def test_a_number_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1)
    with Journal(path) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.append({"n": float("nan")})
    assert numbers(path) == [1]


# A full disk.


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Limit the size of files, so that longer writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a mounted file system of 16 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "envkit-test", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs; the size limit is tested without it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_record_that_does_not_fit_is_removed(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.jsonl", 1)
    with Journal(path) as journal:
        for _ in range(2):
            with (
                file_size_limit(path.stat().st_size + 10),
                pytest.raises(StoreError, match=r"a\.jsonl: File"),
            ):
                journal.append({"n": "too long to fit"})
        journal.append({"n": 2})
    assert numbers(path) == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_journal_on_a_full_disk_raises_and_stays_usable(small_disk: Path) -> None:
    path = journal_of(small_disk / "a.jsonl", "x" * 5000, "y" * 5000)
    with Journal(path) as journal:
        with pytest.raises(StoreError, match=r"a\.jsonl: No space left"):
            journal.append({"n": "z" * 9000})
        journal.append({"n": "small"})
    assert numbers(path) == ["x" * 5000, "y" * 5000, "small"]


def test_an_atomic_write_on_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.bin"
    write_atomic(path, b"old")
    with pytest.raises(StoreError, match=r"a\.bin: No space left"):
        write_atomic(path, b"x" * 20_000)
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


# Atomic files.


@pytest.mark.parametrize(
    ("failing_call", "message", "content"),
    [
        ("os.replace", "the old file stays", b"old"),
        ("envkit.runtime.store.sync_folder", "the new file is there", b"new"),
    ],
)
def test_a_failed_write_says_whether_the_old_or_new_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: str, message: str, content: bytes
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr(failing_call, refuse)
    with pytest.raises(StoreError, match=rf"cannot write .*a\.bin: .*; {message}"):
        write_atomic(path, b"new")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_write_needs_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "a.bin", b"")


# Run folders.


def test_a_run_folder_can_be_opened_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "demo", {"seed": 3})
    again = RunFolder.open(run.path)
    fields = {name: value for name, value in again.manifest.items() if name != "manifest_digest"}
    assert fields == {"schema": SCHEMA, "id": run.id, "seed": 3}
    assert run.id.startswith("demo-")
    with run.journal("metrics") as journal:
        journal.append({"n": 1})
    assert numbers(run.path / "metrics.jsonl") == [1]
    assert [record["n"] for record in again.records("metrics")] == [1]
    assert again.records("other") == []


def test_runs_never_share_a_folder(tmp_path: Path) -> None:
    assert len({RunFolder.create(tmp_path, "demo", {}).path for _ in range(5)}) == 5


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make run folder"):
        RunFolder.create(tmp_path / "file", "demo", {})


def test_a_run_folder_appears_only_when_complete(tmp_path: Path) -> None:
    with RunFolder.making(tmp_path, "demo", {}) as run:
        run.part("inner", {})
        with run.journal("metrics") as journal:
            journal.append({"n": 1})
        assert not list(tmp_path.glob("demo-*"))
    assert [run.path] == list(tmp_path.iterdir())
    assert run.manifest["id"] == run.id == RunFolder.open(run.path / "inner").manifest["id"]
    assert numbers(run.path / "metrics.jsonl") == [1]


def test_a_run_folder_that_cannot_be_completed_is_removed(tmp_path: Path) -> None:
    def fill() -> None:
        with RunFolder.making(tmp_path, "demo", {}) as run:
            run.part("inner", {})
            run.part("inner", {})

    with pytest.raises(StoreError, match="cannot make"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "not a run's manifest"),
        (b"{", "not a run's manifest"),
        (b"[]", "expected a JSON object"),
        (b"{}", "schema None"),
        (b'{"schema": 9}', "schema 9; this version reads 1"),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, manifest: bytes | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(StoreError, match=message):
        RunFolder.open(tmp_path)


# Trajectories.

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
FINITE = st.floats(allow_nan=False, allow_infinity=False)
IDS = st.lists(st.integers(0, 2**20), max_size=4).map(tuple)
NUMBERS = st.integers(0, 2**70)
COSTS = st.integers(0, 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def _tokens(prompt_ids: tuple[int, ...], sampled: list[tuple[int, float]]) -> Tokens:
    ids, logprobs = tuple(token for token, _ in sampled), tuple(logprob for _, logprob in sampled)
    return Tokens(prompt_ids, ids, logprobs)


TURNS = st.builds(
    Turn,
    TEXTS,
    st.none() | st.builds(_tokens, IDS, st.lists(st.tuples(st.integers(0, 2**20), FINITE), max_size=4)),
    st.builds(Usage, COSTS, COSTS, st.floats(0, 2**53), COSTS),
    st.sampled_from(["stop", "length"]),
)
TRAJECTORIES = st.builds(
    Trajectory,
    key=st.builds(EpisodeKey, NUMBERS, NUMBERS, NUMBERS, NUMBERS, TEXTS),
    env=TEXTS,
    agent=TEXTS,
    steps=st.lists(st.builds(StepRecord, TEXTS, TURNS, FINITE), max_size=3).map(tuple),
    outcome=st.sampled_from(Outcome),
    scores=st.dictionaries(TEXTS, FINITE, max_size=2),
    info=st.dictionaries(TEXTS, JSON, max_size=2),
)


@given(TRAJECTORIES)
def test_trajectories_survive_json(trajectory: Trajectory) -> None:
    assert trajectory_from_json(json.loads(json.dumps(trajectory_to_json(trajectory)))) == trajectory


def example() -> Trajectory:
    key = EpisodeKey(0, 1, 2, 3, "task")
    step = StepRecord("seen", Turn("said", Tokens((1,), (2,), (-0.5,))), 1.0)
    return Trajectory(key, "guess", "agent", (step,), Outcome.SOLVED, {"right": 1.0}, {"verdict": "PASS"})


def test_trajectories_of_a_run_are_read(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", {})
    with run.journal("episodes") as journal:
        journal.append({"phase": "rl", **trajectory_to_json(example())})
    assert list(run.trajectories("episodes")) == [example()]


@pytest.mark.parametrize("field", ["steps", "outcome", "key"])
def test_a_record_that_is_not_a_trajectory_is_named(tmp_path: Path, field: str) -> None:
    run = RunFolder.create(tmp_path, "demo", {})
    whole = trajectory_to_json(example())
    with run.journal("episodes") as journal:
        journal.append(whole)
        journal.append({name: value for name, value in whole.items() if name != field})
    with pytest.raises(StoreError, match=rf"episodes\.jsonl:2: not a trajectory \(KeyError\('{field}'\)\)"):
        list(run.trajectories("episodes"))


def test_a_field_with_an_invalid_value_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", {})
    with run.journal("episodes") as journal:
        journal.append({**trajectory_to_json(example()), "outcome": "maybe"})
        journal.append({**trajectory_to_json(example()), "steps": 3})
    with pytest.raises(StoreError, match=r"episodes\.jsonl:1: not a trajectory .*maybe"):
        list(run.trajectories("episodes"))


@pytest.mark.parametrize(
    ("tokens", "fault"),
    [
        ({"completion_ids": [-1]}, "no whole number >= 0"),
        ({"completion_ids": ["q"]}, "no whole number >= 0"),
        ({"prompt_ids": [True]}, "no whole number >= 0"),
        ({"kept": -1}, "no whole number >= 0"),
        ({"logprobs": [math.nan]}, "expected a finite number"),
        ({"logprobs": []}, "1 sampled tokens and 0 log-probabilities"),
    ],
)
def test_tokens_that_are_none_are_no_trajectory(tokens: dict[str, Any], fault: str) -> None:
    record = json.loads(json.dumps(trajectory_to_json(example())))
    record["steps"][0]["turn"]["tokens"].update(tokens)
    with pytest.raises(ValueError, match=fault):
        trajectory_from_json(record)


def test_an_edited_manifest_is_noticed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", {"plan": {"seed": 3}})
    run.require_unedited()
    file = run.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))  # the same fields
    run.require_unedited()
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(StoreError, match=r"manifest\.json was edited after the run began"):
        run.require_unedited()


def test_a_pipe_in_a_journals_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "eval-base.jsonl")
    with pytest.raises(StoreError, match="expected a file"):
        RunFolder(tmp_path).records("eval-base")
    with pytest.raises(StoreError, match="expected a file"):
        RunFolder(tmp_path).journal("eval-base")


def test_making_a_folder_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    left, other = tmp_path / ".adapter.0123abcd", tmp_path / ".adapter.old"
    left.mkdir()
    other.mkdir()
    with whole_folder(tmp_path / "adapter") as making:
        (making / "file").touch()
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "adapter"]
