"""Cases about files: reads and writes of the host in a workspace, allowed and refused."""

from __future__ import annotations

import contextlib
import functools
import secrets
from typing import Final

from envkit.errors import TooLargeError
from envkit.sandbox.check.context import MIB, Case, CheckContext, refused, unless


def _workspace(context: CheckContext) -> str:
    context.sandbox.write("sub/in.txt", b"given")
    result = context.python("open('sub/out.txt', 'w').write(open('sub/in.txt').read().upper())")
    found = context.sandbox.export(["sub/**"], 1000)
    expected = {"sub/in.txt": b"given", "sub/out.txt": b"GIVEN"}
    return unless(found == expected and context.sandbox.read("sub/out.txt", 5) == b"GIVEN", (result, found))


def _private(context: CheckContext) -> str:
    context.sandbox.write("mine", b"")
    with context.backend.create() as other:
        result = other.run([other.python, "-c", "import os; print(os.listdir())"])
    return unless(result.stdout == b"[]\n", result)


def _binary(context: CheckContext) -> str:
    data = bytes(range(256)) * 8
    context.sandbox.write("binary", data)
    context.python("data = open('binary', 'rb').read(); open('copy', 'wb').write(data)")
    return unless(context.sandbox.read("copy", 4096) == data, "other bytes")


def _empty(context: CheckContext) -> str:
    context.sandbox.write("empty", b"")
    return unless(context.sandbox.read("empty", 0) == b"", "something in an empty file")


def _names(context: CheckContext) -> str:
    names = ["with space", "quote'\"", "-dash", "ünï/cödé", "new\nline", "n" * 255]
    for name in names:
        context.sandbox.write(name, name.encode())
    found = context.sandbox.export(["*", "ünï/*"], MIB)
    return unless(all(found.get(name) == name.encode() for name in names), sorted(found))


def _replaced(context: CheckContext) -> str:
    context.sandbox.write("twice", b"a longer first text")
    context.sandbox.write("twice", b"second")
    return unless(context.sandbox.read("twice", 100) == b"second", context.sandbox.read("twice", 100))


def _replaced_link(context: CheckContext) -> str:
    context.sandbox.write("kept", b"1")
    context.python("import os; os.link('kept', 'hard')")
    context.sandbox.write("hard", b"2")
    return unless(context.sandbox.read("kept", 10) == b"1", "a hard link written through")


def _read_cap(context: CheckContext) -> str:
    context.sandbox.write("five", b"12345")
    with contextlib.suppress(TooLargeError):
        return f"read {context.sandbox.read('five', 4)!r} of at most 4 bytes"
    return unless(context.sandbox.read("five", 5) == b"12345", "not the whole file")


def _export_cap(context: CheckContext) -> str:
    for name in ("cap/a", "cap/b"):
        context.sandbox.write(name, b"12345")
    with contextlib.suppress(TooLargeError):
        return f"exported {context.sandbox.export(['cap/*'], 9)} of at most 9 bytes"
    return unless(len(context.sandbox.export(["cap/*"], 10)) == 2, "not both files")


def _sparse(context: CheckContext) -> str:
    context.python("open('sparse', 'wb').truncate(2**20)")
    with contextlib.suppress(TooLargeError):
        return f"read {len(context.sandbox.read('sparse', MIB - 1))} bytes"
    return ""


def _globs(context: CheckContext) -> str:
    for name in ("g/a.py", "g/b.txt", "g/sub/c.py", "g/sub/deep/d.py"):
        context.sandbox.write(name, b"")
    found = [
        list(context.sandbox.export([glob], 10)) for glob in ("g/*.py", "g/**/*.py", "g/?.txt", "nothing")
    ]
    expected = [["g/a.py"], ["g/a.py", "g/sub/c.py", "g/sub/deep/d.py"], ["g/b.txt"], []]
    return unless(found == expected, found)


def _missing(context: CheckContext) -> str:
    context.sandbox.write("folder/file", b"")
    for path in ("nowhere", "nowhere/at/all", "folder", "folder/file/below"):
        with contextlib.suppress(FileNotFoundError):
            return f"read {context.sandbox.read(path, 10)!r} from {path}"
    return ""


def _no_symlinks(context: CheckContext) -> str:
    (context.outside / "file").write_text("outside")
    links = {"link": str(context.outside / "file"), "root": str(context.outside)}
    context.python(f"import os\nfor name, to in {links}.items(): os.symlink(to, name)")
    paths = ("link", "root/file")
    through = [path for path in paths if not refused(functools.partial(context.sandbox.read, path, 1000))]
    through += [path for path in paths if not refused(functools.partial(context.sandbox.write, path, b"x"))]
    through += [
        path for path in context.sandbox.export(["**"], 64 * MIB) if path.startswith(("link", "root"))
    ]
    return unless(not through, f"followed {through}")


def _no_traversal(context: CheckContext) -> str:
    up = f"../up-{secrets.token_hex(8)}"
    paths = (up, str(context.outside / "file"), f"a/../{up}", "", ".", "a//b", "a\0b", "n" * 256)
    through = [path for path in paths if not refused(functools.partial(context.sandbox.read, path, 1000))]
    through += [path for path in paths if not refused(functools.partial(context.sandbox.write, path, b"x"))]
    return unless(not through, f"accepted {through}")


def _no_pipes(context: CheckContext) -> str:
    context.python("import os; os.mkfifo('fifo')")
    with contextlib.suppress(FileNotFoundError):
        return f"read {context.sandbox.read('fifo', 10)!r} from a FIFO"
    return unless("fifo" not in context.sandbox.export(["**"], 64 * MIB), "listed a FIFO")


def _closed(context: CheckContext) -> str:
    context.sandbox.write("shut/file", b"1")
    context.python("import os; os.chmod('shut/file', 0); os.chmod('shut', 0)")
    found = context.sandbox.read("shut/file", 10)
    context.sandbox.write("shut/other", b"2")
    return unless(found == b"1", found)


def _no_other_bytes(context: CheckContext) -> str:
    context.python("import os; open(b'\\xff', 'w').close(); open('text', 'w').close()")
    found = context.sandbox.export(["*"], 64 * MIB)
    return unless("text" in found and all(name.isprintable() or "\n" in name for name in found), list(found))


FILES: Final[dict[str, Case]] = {
    "shares the workspace with the host": _workspace,
    "keeps workspaces private": _private,
    "keeps every byte": _binary,
    "keeps empty files": _empty,
    "accepts any UTF-8 file name": _names,
    "replaces a file that is written twice": _replaced,
    "replaces a hard link": _replaced_link,
    "reads no more than the limit": _read_cap,
    "exports no more than the limit": _export_cap,
    "counts the size of sparse files": _sparse,
    "exports by pattern, in order": _globs,
    "reports missing files": _missing,
    "follows no symlink": _no_symlinks,
    "refuses paths out of the workspace": _no_traversal,
    "opens no FIFO": _no_pipes,
    "restores permissions that were removed": _closed,
    "leaves out names that are not UTF-8": _no_other_bytes,
}
