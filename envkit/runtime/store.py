"""Run folders: append-only JSON-lines journals, and files that are replaced atomically."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast, final

from envkit.errors import StoreError
from envkit.runtime.files import open_regular_file, read_json_object, read_regular_file
from envkit.runtime.plain import decode
from envkit.types import JSON, EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn, Usage

Record = TypeVar("Record")

#: Largest journal that is read. Real ones reach a few hundred megabytes.
_MAX_JOURNAL_BYTES = 4 * 2**30
#: Bytes that are searched at once for a journal's last newline.
_PIECE_BYTES = 2**16
#: Most tokens or seconds of a turn. More means that the file is damaged.
_MAX_COST = 2**53
#: Version of every record that this module writes. Readers refuse other versions.
SCHEMA = 1
#: Field of a manifest with its digest, which shows later edits.
_DIGEST = "manifest_digest"


def folder_name(environment_id: str) -> str:
    """Name an environment's folder in a run by its id, which has slashes if a harness's file is a path."""
    return environment_id.replace("/", "+")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StoreError: the file system refused (full, read-only); the message names the path and says if the old
            or the new file is there.
    """
    left = "the old file stays"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            left = "the new file is there, but may be lost with the power"
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; {left}") from error


@contextmanager
def locked_folder(path: Path) -> Generator[None]:
    """Lock a folder against other processes for the length of the block.

    Raises:
        StoreError: another process holds the lock.
    """
    with lock_if_free(path) as is_free:
        if not is_free:
            raise StoreError(f"{path}: another process is at work in it; wait for its end")
        yield


@contextmanager
def waiting_lock(folder: Path) -> Generator[None]:
    """Lock a folder for the length of the block, made if needed; waits for other threads and processes.

    Raises:
        StoreError: the folder cannot be made or locked.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"cannot lock {folder}: {error.strerror or error}") from error
        yield


@contextmanager
def lock_if_free(path: Path) -> Generator[bool]:
    """Lock a folder for the length of the block; yields False, without a lock, if another process has it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Create a folder atomically: it appears at ``path`` once all its contents are on the disk.

    Yields a temporary folder to fill. Temporary folders that killed processes left for the same path are
    removed.

    Raises:
        StoreError: the file system refused, or the folder exists; the message names the path.
    """
    making = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}." + "[0-9a-f]" * 8):
            shutil.rmtree(left, ignore_errors=True)
        making.mkdir()
        yield making
        for found in making.rglob("*"):
            (sync_folder if found.is_dir() else sync_file)(found)
        sync_folder(making)
        os.rename(making, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Make a file's contents survive a power cut (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (fsync)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the records of a JSON-lines file; empty if there is no file.

    A last line without a newline is skipped, because a killed writer leaves such a line. Any other line must
    be a JSON object of this schema.

    Raises:
        StoreError: unreadable, corrupt or of another schema; the message names file and line.
    """
    try:
        lines = read_regular_file(path, _MAX_JOURNAL_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: empty or torn
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}:{number}: not JSON ({error}); nothing was changed") from error
        if not isinstance(record, dict):
            raise StoreError(f"{path}:{number}: expected a JSON object, found {str(record)[:40]}")
        fields = cast("dict[str, Any]", record)
        if fields.get("schema") != SCHEMA:
            found = fields.get("schema")
            raise StoreError(f"{path}:{number}: schema is {found!r}; this version of envkit reads {SCHEMA}")
        records.append(fields)
    return records


@final
class Journal:
    """An append-only JSON-lines file. Opening it moves an incomplete last line to a file of its own.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _mend(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror or error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record completely or not at all. The operating system has it on return; see `sync`.

        Raises:
            StoreError: the disk refused; earlier records are intact.
            ValueError: a number in the record is not finite.
        """
        line = json.dumps({"schema": SCHEMA, **record}, separators=(",", ":"), allow_nan=False) + "\n"
        left = memoryview(line.encode())
        whole = self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            # Remove the incomplete line: followed by another record, it would make the journal corrupt.
            self._file.truncate(whole)
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Make all records so far survive a power cut (fsync).

        Raises:
            StoreError: the disk refused.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mend(path: Path) -> None:
    """Move an incomplete last line to a file of its own. The lines before it are not read."""
    if not path.exists():
        return
    with open_regular_file(path) as file:
        whole, size = _complete_bytes(file), file.seek(0, os.SEEK_END)
        if whole == size:
            return
        file.seek(whole)
        with path.with_name(f"{path.name}.torn-{secrets.token_hex(4)}").open("xb") as aside:
            shutil.copyfileobj(file, aside)
    os.truncate(path, whole)


def _complete_bytes(file: BinaryIO) -> int:
    """Return the length of a file up to its last newline. It is searched from the end, piece by piece."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - _PIECE_BYTES, 0)
        file.seek(start)
        if (place := file.read(end - start).rfind(b"\n")) >= 0:
            return start + place + 1
        end = start
    return 0


@final
class RunFolder:
    """One run's folder: ``manifest.json``, journals, checkpoints, report.

    Args:
        path: the folder; use `create` or `making` for a new run, `open` for an existing one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(root: Path, kind: str, manifest: Mapping[str, JSON]) -> RunFolder:
        """Create ``root/<kind>-<time>-<suffix>`` with its manifest.

        Raises:
            StoreError: the folder cannot be created.
        """
        with RunFolder.making(root, kind, manifest) as run:
            return run

    @staticmethod
    @contextmanager
    def making(root: Path, kind: str, manifest: Mapping[str, JSON]) -> Generator[RunFolder]:
        """Create a run folder as `create` does, but let the block fill it before it appears under its name.

        Inside the block, ``path`` is a hidden temporary folder. So a killed process leaves no half-made run.

        Raises:
            StoreError: the folder cannot be created.
        """
        name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        hidden = root / f".{name}.tmp"
        run = RunFolder(hidden / name)
        data = _sealed({"schema": SCHEMA, "id": name, **manifest})
        try:
            try:
                run.path.mkdir(parents=True)
            except OSError as error:
                raise StoreError(
                    f"cannot make run folder {root / name}: {error.strerror or error}"
                ) from error
            write_atomic(run.path / "manifest.json", json.dumps(data, indent=1).encode())
            yield run
            try:
                run.path = run.path.rename(root / name)
                sync_folder(root)
            except OSError as error:
                raise StoreError(
                    f"cannot make run folder {root / name}: {error.strerror or error}"
                ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def part(self, name: str, manifest: Mapping[str, JSON]) -> RunFolder:
        """Create a run folder ``<name>/`` inside this one, with its own manifest.

        It has this run's id unless the manifest sets another.

        Raises:
            StoreError: the folder cannot be created.
        """
        path = self.path / name
        try:
            path.mkdir()
        except OSError as error:
            raise StoreError(f"cannot make {path}: {error.strerror or error}") from error
        data = _sealed({"schema": SCHEMA, "id": self.manifest.get("id", self.id), **manifest})
        write_atomic(path / "manifest.json", json.dumps(data, indent=1).encode())
        return RunFolder(path)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            StoreError: not a run folder, or one of another schema.
        """
        run = RunFolder(path)
        if run.manifest.get("schema") != SCHEMA:
            raise StoreError(f"{path}: schema {run.manifest.get('schema')!r}; this version reads {SCHEMA}")
        return run

    @staticmethod
    def holding(path: Path) -> RunFolder | None:
        """Open the run folder that a path lies in, such as an adapter's; ``None`` if it is in none.

        Raises:
            StoreError: see `open`.
        """
        for folder in path.resolve().parents:
            if (folder / "manifest.json").exists() and (folder / "phases.jsonl").exists():
                return RunFolder.open(folder)
        return None

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against other processes; see `locked_folder`."""
        return locked_folder(self.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """Contents of ``manifest.json``: the facts that the run began with.

        Raises:
            StoreError: the manifest cannot be read.
        """
        file = self.path / "manifest.json"
        try:
            return read_json_object(file)
        except (OSError, ValueError) as error:
            raise StoreError(f"{file}: not a run's manifest ({error})") from error

    def require_unedited(self) -> None:
        """Raise if the manifest was edited after the run began, because it would then be another run.

        Manifests of older versions have no digest and pass.

        Raises:
            StoreError: the manifest does not match the digest that was stored at the start.
        """
        manifest = self.manifest
        if manifest.get(_DIGEST) not in (None, _digest_of(manifest)):
            raise StoreError(
                f"{self.path / 'manifest.json'} was edited after the run began; a run resumes only with the "
                "settings it began with: restore the file, or start a new run with the new settings"
            )

    def journal(self, name: str) -> Journal:
        """Open ``<name>.jsonl`` for appending; the caller closes it."""
        return Journal(self.path / f"{name}.jsonl")

    def records(self, name: str) -> list[dict[str, Any]]:
        """Read the complete records of ``<name>.jsonl``; empty if there is no such file."""
        return read_lines(self.path / f"{name}.jsonl")

    def read(self, name: str, kind: type[Record]) -> list[Record]:
        """Read the complete records of ``<name>.jsonl`` as dataclasses, oldest first.

        Fields that ``kind`` does not have are left out: other versions of envkit may write more of them.

        Raises:
            StoreError: a record lacks a field or has one of the wrong type; the message names file and line.
        """
        return self._parsed(name, lambda record: decode(kind, record, "record", ignore_unknown=True))

    def trajectories(self, name: str) -> list[Trajectory]:
        """Read the trajectories in ``<name>.jsonl``, oldest first.

        Raises:
            StoreError: a record is not a trajectory; the message names file, line and field.
        """
        return self._parsed(name, trajectory_from_json)

    def _parsed(self, name: str, parse: Callable[[Mapping[str, Any]], Record]) -> list[Record]:
        found: list[Record] = []
        for number, record in enumerate(self.records(name), start=1):
            try:
                found.append(parse(record))
            except ValueError as error:
                place = f"{self.path / name}.jsonl:{number}"
                raise StoreError(f"{place}: {error}; the line is damaged") from error
        return found


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's fields, without the digest itself."""
    fields = {name: value for name, value in manifest.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with its digest added."""
    return {**manifest, _DIGEST: _digest_of(manifest)}


def trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    """Convert a trajectory to plain JSON data; `trajectory_from_json` is the inverse."""
    return asdict(trajectory)


def trajectory_from_json(data: Mapping[str, Any]) -> Trajectory:
    """Rebuild a trajectory from the data of `trajectory_to_json`.

    Raises:
        ValueError: a field is missing or has a wrong type or value.
    """
    try:
        return Trajectory(
            decode(EpisodeKey, data["key"], "key"),
            _text(data["env"]),
            _text(data["agent"]),
            tuple(map(_step, data["steps"])),
            Outcome(data["outcome"]),
            {name: _finite(score) for name, score in data["scores"].items()},
            {**data["info"]},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a trajectory ({error!r})") from error


def _step(data: Mapping[str, Any]) -> StepRecord:
    turn = data["turn"]
    usage = decode(Usage, turn["usage"], "usage")
    if not all(0 <= cost <= _MAX_COST for cost in asdict(usage).values()):
        raise ValueError(f"found {usage}; expected numbers from 0 to 2**53")
    spoken = Turn(_text(turn["text"]), _tokens(turn["tokens"]), usage, _text(turn["stop"]))
    return StepRecord(_text(data["observation"]), spoken, _finite(data["reward"]))


def _tokens(data: Mapping[str, Any] | None) -> Tokens | None:
    if data is None:
        return None
    prompt, sampled, kept = tuple(data["prompt_ids"]), tuple(data["completion_ids"]), data.get("kept")
    logprobs = tuple(map(_finite, data["logprobs"]))
    numbers = (*prompt, *sampled, *(() if kept is None else (kept,)))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("found a token id that is no whole number >= 0")
    if len(sampled) != len(logprobs):
        raise ValueError(f"found {len(sampled)} sampled tokens and {len(logprobs)} log-probabilities")
    return Tokens(prompt, sampled, logprobs, kept)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.40}; expected a text")
    return value


def _finite(value: Any) -> Any:
    """A number as it is: an integer stays one, so that a record copied to another run stays equal."""
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"found {value!r}; expected a finite number")
    return value
