"""Looks for texts in all that a program in a sandbox can reach; standard library only.

    python -c SOURCE NAME ARGV...

runs ARGV, whose input, output and end are its own. When a file NAME appears in the workspace, one text in
hexadecimal a line, it takes that away and looks for them in every process but itself (command line,
environment, memory, open files) and in every file but the interpreter's own. For each that is there it writes
a line, its number and where, into a file NAME.found.

What it looks into are its own children or strangers, never its parents: some kernels let a process see the
memory of nobody else.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 2**20
#: Of one file, or the memory of one process; more is no honest program's under the limits of a sandbox.
MOST_BYTES = 2**30
EVERY_S = 0.02
#: Systems of files that show the kernel, not what anybody has written.
KERNEL = {"/proc", "/sys", "/dev"}
#: What the interpreter consists of is everybody's, and large.
OWN = {os.path.dirname(os.__file__), "/usr/share/zoneinfo"}


def pieces(file: int, start: int, end: int, overlap: int) -> Iterator[bytes]:
    """What lies there, as far as it can be read, in pieces that overlap."""
    tail = b""
    while start < end:
        try:
            piece = os.pread(file, min(CHUNK_BYTES, end - start), start)
        except (OSError, OverflowError):
            return
        if not piece:
            return
        yield tail + piece
        start += len(piece)
        tail = (tail + piece)[-overlap:]


def processes() -> Iterator[tuple[str, str]]:
    """Folders of all processes but this one, and what to call them."""
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        if int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm", errors="replace") as file:
                yield f"/proc/{name}", f"process {name}, {file.read().strip()}"


def regions(folder: str) -> Iterator[tuple[int, int]]:
    """Where the memory of a process is, as far as it may be read."""
    with contextlib.suppress(OSError), open(f"{folder}/maps", errors="replace") as file:
        for line in file:
            span, rights, _, _, _, *rest = line.split(maxsplit=5)
            if rights[0] == "r" and rest[:1] != ["[vvar]\n"]:
                start, end = (int(part, 16) for part in span.split("-"))
                yield start, end


def files() -> Iterator[str]:
    """All files that anybody may have put here."""
    for folder, below, names in os.walk("/"):
        if folder == "/":
            below[:] = [name for name in below if f"/{name}" not in KERNEL]
            below.append("dev/shm")
        below[:] = [name for name in below if os.path.join(folder, name) not in OWN]
        for name in names:
            if not (folder == "/usr/lib" and ".so" in name):
                yield os.path.join(folder, name)


def places(overlap: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """What can be read: where it is, and the bytes there."""

    def content(path: str) -> Iterator[bytes]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            yield from pieces(file, 0, MOST_BYTES, overlap)
        finally:
            os.close(file)

    def memory(folder: str) -> Iterator[bytes]:
        try:
            file = os.open(f"{folder}/mem", os.O_RDONLY)
        except OSError:
            return
        left = MOST_BYTES
        try:
            for start, end in regions(folder):
                yield from pieces(file, start, min(end, start + left), overlap)
                left -= min(left, end - start)
        finally:
            os.close(file)

    for folder, called in processes():
        yield f"the command line of {called}", content(f"{folder}/cmdline")
        yield f"the environment of {called}", content(f"{folder}/environ")
        yield f"the memory of {called}", memory(folder)
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{folder}/fd"):
                yield f"an open file of {called}", content(f"{folder}/fd/{name}")
    for path in files():
        yield "the name of a file", iter([os.fsencode(path)])
        yield f"the file {path}", content(path)


def look(texts: list[bytes]) -> dict[int, str]:
    """Numbers of the texts that can be found, and where, the first place of each."""
    found: dict[int, str] = {}
    overlap = max(map(len, texts), default=1)
    for place, parts in places(overlap):
        for part in parts:
            for number, text in enumerate(texts):
                if number not in found and text in part:
                    found[number] = place
    return found


def main(name: str, argv: list[str]) -> None:
    """Run the program; look whenever that is asked for; end as the program does."""
    child = os.fork()
    if child == 0:
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        os._exit(127)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if os.path.exists(name):
            with open(name) as file:
                texts = [bytes.fromhex(line) for line in file]
            os.unlink(name)
            found = look(texts)
            with open(f"{name}.part", "w", errors="replace") as file:
                file.writelines(
                    f"{number} {re.sub('[^ -~]', '?', place)}\n" for number, place in found.items()
                )
            os.rename(f"{name}.part", f"{name}.found")
        time.sleep(EVERY_S)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # for two of them nothing can be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
