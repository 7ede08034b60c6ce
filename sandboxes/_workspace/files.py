"""Reads and writes workspace files from the host without trusting anything that hostile code left there."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envkit.errors import SandboxError, TooLargeError, UsageError
from envkit.runtime.lease import empty, open_entry
from envkit.sandbox import Quota
from envkit.sandboxes._workspace.file_user import as_user

MAX_ENTRIES = 20_000
MAX_DEPTH = 64
MAX_SNAPSHOT_BYTES = 256 * 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class File:
    """Content and permission bits of one file in a snapshot."""

    data: bytes
    mode: int


@final
class Workspace:
    """A folder whose paths are walked from its descriptor, one component at a time.

    Follows no symlink, opens only regular files and folders, and leaves names that are not UTF-8 out of
    listings.

    Args:
        root: descriptor of an existing empty folder; `close` closes it.
        owner: host user and group id that owns all files and for whom they are opened; ``None`` for this
            process's user.
        quota: limit of the folder; ``None`` if it has none.
    """

    def __init__(self, root: int, owner: int | None, quota: Quota | None = None) -> None:
        self._root, self._owner, self._quota = root, owner, quota

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """See `envkit.sandbox.Sandbox.write`."""
        parts = _parts(path)
        as_user(self._owner, lambda: self._write(path, parts, data, mode))

    def read(self, path: str, limit_bytes: int) -> bytes:
        """See `envkit.sandbox.Sandbox.read`."""
        *folders, name = _parts(path)

        def read() -> bytes:
            folder = self._walk(path, folders)
            try:
                return _read(path, name, folder, limit_bytes).data
            finally:
                os.close(folder)

        return as_user(self._owner, read)

    def export(self, globs: Sequence[str], limit_bytes: int) -> Mapping[str, bytes]:
        """See `envkit.sandbox.Sandbox.export`."""
        wanted = re.compile("|".join(_expression(glob) for glob in globs) or r"(?!)", re.DOTALL)
        found = as_user(self._owner, lambda: self._files(wanted, limit_bytes))
        return {path: file.data for path, file in found.items()}

    def keep(self) -> Mapping[str, File]:
        """All regular files, for `restore`.

        Raises:
            TooLargeError: they need more space than a workspace has. Copies of sparse files and hard links
                take more than the originals.
        """
        limit_bytes = (
            MAX_SNAPSHOT_BYTES if self._quota is None else min(MAX_SNAPSHOT_BYTES, self._quota.total_bytes)
        )
        every = re.compile("", re.DOTALL)
        return as_user(self._owner, lambda: self._files(every, limit_bytes, PAGE_BYTES))

    def restore(self, files: Mapping[str, File]) -> None:
        """Replace the content with ``files``."""
        as_user(self._owner, lambda: empty(self._root))
        self.fill(files)

    def fill(self, files: Mapping[str, File]) -> None:
        """Write ``files`` into an empty workspace, in path order.

        Raises:
            TooLargeError: the workspace is too small for them.
        """

        def fill() -> None:
            for folders, group in itertools.groupby(files, lambda path: _parts(path)[:-1]):
                here = self._walk("/".join(folders), folders, make=True)
                try:
                    for path in group:
                        self._make(path, here, files[path])
                finally:
                    os.close(here)

        as_user(self._owner, fill)

    def admit(self) -> None:
        """Restore the owner's permissions on the folder, because hostile code may have removed them."""
        os.fchmod(self._root, 0o700)

    def close(self) -> None:
        """Close the descriptor; the folder's creator removes the folder. Idempotent."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _write(self, path: str, parts: Sequence[str], data: bytes, mode: int) -> None:
        *folders, name = parts
        folder = self._walk(path, folders, make=True)
        fresh = f".envkit-{os.urandom(8).hex()}"
        try:
            if _kind(name, folder) not in (None, stat.S_IFREG):
                raise UsageError(f"cannot write {path!r}: what lies there is not a regular file")
            # A new file, then a rename, so that an existing file is replaced and never opened.
            with open(os.open(fresh, _CREATE, 0o600, dir_fd=folder), "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
            os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with contextlib.suppress(OSError):  # a partial file takes space too
                os.unlink(fresh, dir_fd=folder)
            raise self._refusal(path, error) from error
        finally:
            os.close(folder)

    def _make(self, path: str, folder: int, kept: File) -> None:
        try:
            with open(os.open(_parts(path)[-1], _CREATE, 0o600, dir_fd=folder), "wb") as file:
                file.write(kept.data)
                os.fchmod(file.fileno(), kept.mode)
        except OSError as error:
            raise self._refusal(path, error) from error

    def _files(self, wanted: re.Pattern[str], limit_bytes: int, block_bytes: int = 1) -> dict[str, File]:
        """The files that match. Each counts as whole blocks against the limit."""
        found: dict[str, File] = {}
        left = limit_bytes
        for path, name, folder in self._scan():
            if wanted.match(path):
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found[path] = _read(path, name, folder, max(left, 0))
                    left -= -(-len(found[path].data) // block_bytes) * block_bytes
        return dict(sorted(found.items()))

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        """Yield path, name and folder of each regular file; the descriptor is valid until the next one."""
        seen = itertools.count(1)

        def below(here: int, folders: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
            inner: list[str] = []
            with os.scandir(here) as entries:
                for entry in entries:
                    if next(seen) > MAX_ENTRIES or len(folders) > MAX_DEPTH:
                        raise UsageError(
                            f"the workspace holds more than {MAX_ENTRIES} entries or {MAX_DEPTH} levels"
                        )
                    if not _is_text(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        yield "/".join((*folders, entry.name)), entry.name, here
            # Opened from here and not from the root, which would cost the depth of every folder.
            for name in inner:
                path = (*folders, name)
                try:
                    folder = _open_folder("/".join(path), name, here)
                except OSError:  # removed since it was listed
                    continue
                try:
                    yield from below(folder, path)
                finally:
                    os.close(folder)

        top = self._walk("", ())
        try:
            yield from below(top, ())
        finally:
            os.close(top)

    def _walk(self, path: str, folders: Sequence[str], *, make: bool = False) -> int:
        """Descriptor of a folder below the root; the caller closes it."""
        self.admit()
        here = open_entry(".", self._root, _FOLDER)
        try:
            for name in folders:
                if make and _kind(name, here) is None:
                    os.mkdir(name, 0o755, dir_fd=here)
                below = _open_folder(path, name, here)
                os.close(here)
                here = below
        except OSError as error:
            os.close(here)
            if make:
                raise self._refusal(path, error) from error
            raise FileNotFoundError(errno.ENOENT, "no such file in the workspace", path) from error
        except UsageError:
            os.close(here)
            raise
        return here

    def _refusal(self, path: str, error: OSError) -> UsageError | SandboxError:
        """The error for a failed write: `UsageError` for an impossible name, else broken machinery."""
        if error.errno == errno.ENOSPC and self._quota is not None:
            return TooLargeError(
                f"cannot write {path!r}: the workspace may hold {self._quota.total_bytes} bytes in "
                f"{self._quota.files} files and folders, and is full; delete files or reset the sandbox"
            )
        impossible_names = {
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENAMETOOLONG,
            errno.ELOOP,
        }
        kind = UsageError if error.errno is None or error.errno in impossible_names else SandboxError
        return kind(f"cannot write {path!r} into the workspace: {error}")


def _open_folder(path: str, name: str, parent: int) -> int:
    """Descriptor of a folder in another; the caller closes it.

    Raises:
        UsageError: it is a symlink.
        OSError: it is no folder.
    """
    if _kind(name, parent) == stat.S_IFLNK:
        raise UsageError(f"{path!r} runs through a symlink, {name!r}; only real folders are allowed")
    return open_entry(name, parent, _FOLDER)


def _read(path: str, name: str, folder: int, limit_bytes: int) -> File:
    if _kind(name, folder) == stat.S_IFLNK:
        raise UsageError(f"cannot read {path!r}: it is a symlink")
    try:
        descriptor = open_entry(name, folder, os.O_RDONLY)
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, "no such regular file in the workspace", path) from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        # Checked again after reading, because a program may still be writing to the file.
        data = file.read(limit_bytes + 1) if found.st_size <= limit_bytes else None
    if data is None or len(data) > limit_bytes:
        raise TooLargeError(
            f"cannot read {path!r}: it is larger than the {limit_bytes} bytes that are left for it"
        )
    return File(data, stat.S_IMODE(found.st_mode))


def _kind(name: str, folder: int) -> int | None:
    """File type bits of an entry, ``None`` if it does not exist."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    bad = {"", ".", ".."} & set(parts) or "\0" in path or not _is_text(path)
    if bad or len(parts) > MAX_DEPTH or any(len(part.encode()) > 255 for part in parts):
        raise UsageError(
            f"{path[:200]!r} is not a path inside the workspace; expected a relative one such as 'src/a.py', "
            f"without '.', '..' or empty parts, of at most {MAX_DEPTH} parts of 255 bytes"
        )
    return parts


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 arrive as lone surrogates
        return False
    return True


def _expression(glob: str) -> str:
    """A regular expression for one pattern: ``*`` and ``?`` stay in a folder, ``**`` crosses folders.

    >>> bool(re.fullmatch(_expression("src/**/*.py"), "src/a/b.py"))
    True
    >>> bool(re.fullmatch(_expression("*.py"), "src/b.py"))
    False
    """
    wild = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return "".join(wild.get(piece, re.escape(piece)) for piece in pieces) + r"\Z"
