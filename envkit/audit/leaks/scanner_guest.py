"""Searches everything that a program in a sandbox can read for texts. Standard library only.

    python -c SOURCE NAME ARGV...

runs ARGV with the same input, output and exit status. When a file NAME appears in the workspace, with one
text in hexadecimal a line, it removes that file and searches for the texts: in every process but itself
(command line, environment, memory, open files) and in every file but those of the interpreter. For each text
that it finds, it writes the text's number and place as one line of a file NAME.found.

It searches its own children and unrelated processes, never its parents, because some kernels let a process
read the memory of its children only.
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
#: Limit for one file, or for the memory of one process. Sandboxes allow honest programs less.
MAX_BYTES = 2**30
POLL_INTERVAL_S = 0.02
#: Kernel file systems, which hold nothing that a program wrote.
KERNEL_FOLDERS = {"/proc", "/sys", "/dev"}
#: The files of the interpreter and of packages: large, and the same for everybody.
INTERPRETER_FOLDERS = {os.path.dirname(os.__file__), "/usr/share/zoneinfo", "/usr/lib/packages"}


def chunks(file: int, start: int, end: int, overlap: int) -> Iterator[bytes]:
    """Read a range of an open file in overlapping chunks, as far as it can be read."""
    tail = b""
    while start < end:
        try:
            chunk = os.pread(file, min(CHUNK_BYTES, end - start), start)
        except (OSError, OverflowError):
            return
        if not chunk:
            return
        yield tail + chunk
        start += len(chunk)
        tail = (tail + chunk)[-overlap:]


def processes() -> Iterator[tuple[str, str]]:
    """Folder in ``/proc`` and label of every process but this one."""
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        if int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm", errors="replace") as file:
                yield f"/proc/{name}", f"process {name}, {file.read().strip()}"


def memory_regions(folder: str) -> Iterator[tuple[int, int]]:
    """Start and end of each readable memory region of a process."""
    with contextlib.suppress(OSError), open(f"{folder}/maps", errors="replace") as file:
        for line in file:
            span, rights, _, _, _, *rest = line.split(maxsplit=5)
            if rights[0] == "r" and rest[:1] != ["[vvar]\n"]:
                start, end = (int(part, 16) for part in span.split("-"))
                yield start, end


def files() -> Iterator[str]:
    """Paths of all files that do not belong to the interpreter."""
    for folder, subfolders, names in os.walk("/"):
        if folder == "/":
            subfolders[:] = [name for name in subfolders if f"/{name}" not in KERNEL_FOLDERS]
            subfolders.append("dev/shm")
        subfolders[:] = [name for name in subfolders if os.path.join(folder, name) not in INTERPRETER_FOLDERS]
        for name in names:
            if not (folder == "/usr/lib" and ".so" in name):
                yield os.path.join(folder, name)


def places(overlap: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Label and content of everything that this process can read."""

    def content(path: str) -> Iterator[bytes]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            yield from chunks(file, 0, MAX_BYTES, overlap)
        finally:
            os.close(file)

    def memory(folder: str) -> Iterator[bytes]:
        try:
            file = os.open(f"{folder}/mem", os.O_RDONLY)
        except OSError:
            return
        remaining = MAX_BYTES
        try:
            for start, end in memory_regions(folder):
                yield from chunks(file, start, min(end, start + remaining), overlap)
                remaining -= min(remaining, end - start)
        finally:
            os.close(file)

    for folder, label in processes():
        yield f"the command line of {label}", content(f"{folder}/cmdline")
        yield f"the environment of {label}", content(f"{folder}/environ")
        yield f"the memory of {label}", memory(folder)
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{folder}/fd"):
                yield f"an open file of {label}", content(f"{folder}/fd/{name}")
    for path in files():
        yield "the name of a file", iter([os.fsencode(path)])
        yield f"the file {path}", content(path)


def scan(texts: list[bytes]) -> dict[int, str]:
    """Number and first place of each text that can be found."""
    found: dict[int, str] = {}
    overlap = max(map(len, texts), default=1)
    for place, parts in places(overlap):
        for part in parts:
            for number, text in enumerate(texts):
                if number not in found and text in part:
                    found[number] = place
    return found


def main(name: str, argv: list[str]) -> None:
    """Run the program, scan when asked to, and exit as the program does."""
    child = os.fork()
    if child == 0:
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        os._exit(127)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if os.path.exists(name):
            with open(name) as file:
                texts = [bytes.fromhex(line) for line in file]
            os.unlink(name)
            found = scan(texts)
            with open(f"{name}.part", "w", errors="replace") as file:
                file.writelines(
                    f"{number} {re.sub('[^ -~]', '?', place)}\n" for number, place in found.items()
                )
            os.rename(f"{name}.part", f"{name}.found")
        time.sleep(POLL_INTERVAL_S)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP have no handlers
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
