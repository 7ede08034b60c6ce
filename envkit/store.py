"""The run folder: JSON lines that only grow, and files that are replaced whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, final

from envkit.errors import StoreError
from envkit.files import read_regular_file
from envkit.types import JSON, EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn, Usage

#: Largest journal that is read. Real ones reach some hundred megabytes.
_MAX_JOURNAL_BYTES = 4 * 2**30
#: Largest manifest that is read. Real ones have some kilobytes.
_MAX_MANIFEST_BYTES = 16 * 2**20
#: Version of every record this module writes; readers refuse what they do not know.
SCHEMA = 1
#: Field of a manifest that tells whether it was edited later.
_DIGEST = "manifest_digest"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StoreError: the file system refused (full, read-only); names the path, and says which file is there.
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
def whole_folder(path: Path) -> Generator[Path]:
    """A new folder that appears under its name when all that is put into it is on the disk.

    Yields another path, to put it there. What a killed process left of the same name is removed.

    Raises:
        StoreError: the file system refused, or there is one of that name; names the path.
    """
    making = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
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
    """Make what a file holds survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, a torn last line left out.

    A last line without its newline is what a killed writer leaves; anything else that is not a
    JSON object of our schema is corruption and is refused.

    Raises:
        StoreError: unreadable, corrupt or of another schema; names file and line.
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
    """An append-only JSON-lines file. A torn last line is moved aside, never lost, when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _mend(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror or error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record and hand it to the operating system, whole or not at all.

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
            # Half a line followed by the next record would be corruption, not a torn end.
            self._file.truncate(whole)
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Make everything appended so far survive a power cut.

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
    if not path.exists():
        return
    data = read_regular_file(path, _MAX_JOURNAL_BYTES)
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        path.with_name(f"{path.name}.torn-{secrets.token_hex(4)}").write_bytes(data[whole:])
        os.truncate(path, whole)


@final
class RunFolder:
    """One run's folder: ``manifest.json``, journals, checkpoints, report.

    Args:
        path: the folder; `create` makes a new one, `open` reads an existing one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(root: Path, kind: str, manifest: Mapping[str, JSON]) -> RunFolder:
        """Make ``root/<kind>-<time>-<suffix>`` with its manifest.

        Raises:
            StoreError: the folder cannot be made.
        """
        with RunFolder.making(root, kind, manifest) as run:
            return run

    @staticmethod
    @contextmanager
    def making(root: Path, kind: str, manifest: Mapping[str, JSON]) -> Generator[RunFolder]:
        """The same, with all that is put into it meanwhile: it appears under its name when it is whole.

        Until then ``path`` is another, and a run that is killed leaves nothing that looks like one.

        Raises:
            StoreError: the folder cannot be made.
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
        """Make ``<name>/`` inside, a run folder with a manifest of its own.

        Its id is this one's, unless the manifest says another.

        Raises:
            StoreError: the folder cannot be made.
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
        """Open an existing run.

        Raises:
            StoreError: not a run folder, or of another schema.
        """
        run = RunFolder(path)
        if run.manifest.get("schema") != SCHEMA:
            raise StoreError(f"{path}: schema {run.manifest.get('schema')!r}; this version reads {SCHEMA}")
        return run

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes out while this one writes.

        Raises:
            StoreError: another one is at work in it.
        """
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.path}: another process is at work in it; wait for its end") from None
            yield
        finally:
            os.close(handle)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run began with.

        Raises:
            StoreError: it cannot be read.
        """
        file = self.path / "manifest.json"
        try:
            found: object = json.loads(read_regular_file(file, _MAX_MANIFEST_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{file}: not a run's manifest ({error})") from error
        if not isinstance(found, dict):
            raise StoreError(f"{file}: expected a JSON object, found {str(found)[:40]}")
        return cast("dict[str, Any]", found)

    def require_unedited(self) -> None:
        """Refuse to continue a run whose manifest was changed by hand: it would be another run.

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
        """The whole records of ``<name>.jsonl``; empty when there is none."""
        return read_lines(self.path / f"{name}.jsonl")

    def trajectories(self, name: str) -> Iterator[Trajectory]:
        """The trajectories in ``<name>.jsonl``, oldest first.

        Raises:
            StoreError: a record is no trajectory; names file, line and field.
        """
        for number, record in enumerate(self.records(name), start=1):
            try:
                yield trajectory_from_json(record)
            except (KeyError, TypeError, ValueError) as error:
                place = f"{self.path / name}.jsonl:{number}"
                raise StoreError(f"{place}: not a trajectory ({error!r})") from error


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's fields, the digest itself left out."""
    fields = {name: value for name, value in manifest.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its digest."""
    return {**manifest, _DIGEST: _digest_of(manifest)}


def trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain JSON data; `trajectory_from_json` is its inverse."""
    return asdict(trajectory)


def trajectory_from_json(data: Mapping[str, Any]) -> Trajectory:
    """A trajectory from what `trajectory_to_json` made."""

    def tokens(raw: Mapping[str, Any] | None) -> Tokens | None:
        if raw is None:
            return None
        ids, sampled, logprobs = raw["prompt_ids"], raw["completion_ids"], raw["logprobs"]
        return Tokens(tuple(ids), tuple(sampled), tuple(logprobs), raw.get("kept"))

    steps = tuple(
        StepRecord(
            step["observation"],
            Turn(
                step["turn"]["text"],
                tokens(step["turn"]["tokens"]),
                Usage(**step["turn"]["usage"]),
                step["turn"]["stop"],
            ),
            step["reward"],
        )
        for step in data["steps"]
    )
    key, outcome = EpisodeKey(**data["key"]), Outcome(data["outcome"])
    return Trajectory(key, data["env"], data["agent"], steps, outcome, data["scores"], data["info"])
