"""Cases about a sandbox's life: peers, snapshots, forks, reset, several sandboxes at once, and close."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from envkit.errors import ContractError
from envkit.sandbox import Limits, Peer, PeerGone
from envkit.sandbox.check.context import Case, CheckContext, refused, unless

#: Greatest depth of a workspace below the folder for temporary files, in folders.
_DEPTH: Final = 3
#: Creates entries other than files and folders, and the marks with which overlay file systems hide files
#: (whiteouts and extended attributes).
_MARKS: Final = """
import os, socket
os.mkdir("d")
for name in ("d/file", "plain"): open(name, "w").close()
os.symlink("/", "link")
os.mkfifo("fifo")
for number, name in enumerate(("opaque", "whiteout", "redirect", "metacopy", "origin", "impure")):
    for path in ("d", "d/file", "plain"):
        for kind in ("user.overlay", "trusted.overlay", "user.overlay.overlay"):
            for value in (b"y", b"x", b"/", b""):
                try: os.setxattr(path, f"{kind}.{name}", value)
                except OSError: pass
for name in ("white", "d/white", ".wh.plain", ".wh..wh..opq"):
    try: os.mknod(name, 0o20000, 0)
    except OSError: pass
"""
_SEEN: Final = """
import os
found = []
for place, folders, names in os.walk("."):
    for path in (os.path.join(place, name)[2:] for name in folders + names):
        found.append((path, os.listxattr(path)))
print(sorted(found))
"""


def _open(context: CheckContext, code: str) -> Peer:
    return context.sandbox.open([context.sandbox.python, "-ISuc", code], limits=Limits(wall_s=30))


def _gone(peer: Peer, line: bytes = b"", timeout_s: float = 10.0) -> PeerGone | None:
    """Ask a peer once and close it. Returns the `PeerGone` that it raised; ``None`` if it answered."""
    try:
        peer.ask(line, timeout_s)
    except PeerGone as gone:
        return gone
    finally:
        peer.close()
    return None


def _peer(context: CheckContext) -> str:
    peer = _open(context, "while True: print(input()[::-1])")
    answers = [peer.ask(line, 5.0) for line in (b"abc", b"", "ä".encode())]
    ended = peer.close()
    return unless(answers[:2] == [b"cba", b""] and not ended.ok, (answers, ended))


def _long_lines(context: CheckContext) -> str:
    peer = _open(context, "while True: print(input())")
    line = b"x" * 200_000
    try:
        return unless(peer.ask(line, 10.0) == line, "another line")
    finally:
        peer.close()


def _one_line(context: CheckContext) -> str:
    peer = _open(context, "while True: print(input())")
    try:
        return f"asked two lines at once: {peer.ask(b'a' + bytes([10]) + b'b', 5.0)!r}"
    except ContractError:
        return ""
    finally:
        peer.close()


def _peer_ends(context: CheckContext) -> str:
    gone = _gone(_open(context, "raise SystemExit(3)"))
    return unless(gone is not None and not gone.tampered and "3" in gone.reason, gone)


def _peer_silent(context: CheckContext) -> str:
    gone = _gone(_open(context, "import time; time.sleep(60)"), timeout_s=0.3)
    return unless(gone is not None and not gone.tampered, gone)


def _forged(context: CheckContext) -> str:
    gone = _gone(_open(context, "input(); print('one\\ntwo')"))
    return unless(gone is not None and gone.tampered, gone)


def _unasked(context: CheckContext) -> str:
    peer = _open(context, "print('unasked'); open('said', 'w'); input(); print('asked')")
    for _ in range(1000):
        if "said" in context.sandbox.export(["said"], 0):
            break
        time.sleep(0.01)
    gone = _gone(peer)
    return unless(gone is not None and gone.tampered, gone)


def _peer_closes(context: CheckContext) -> str:
    peer = _open(context, "while True: print(input())")
    first, second = peer.close(), peer.close()
    return unless(first == second and _gone(peer) is not None, (first, second))


def _snapshot(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.write("kept", b"1")
        name = sandbox.snapshot()
        peer = sandbox.open([sandbox.python, "-c", "input(); input()"])
        sandbox.write("kept", b"2")
        sandbox.write("new", b"")
        sandbox.reset(name)
        restored = sandbox.export(["**"], 100)
        sandbox.reset()
        empty = sandbox.export(["**"], 100)
        try:
            return f"a program lived through reset: {peer.ask(b'', 1.0)!r}"
        except PeerGone:
            return unless(restored == {"kept": b"1"} and not empty, (restored, empty))


def _modes(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", "import os; open('tool', 'w'); os.chmod('tool', 0o750)"])
        name = sandbox.snapshot()
        sandbox.reset()
        sandbox.reset(name)
        result = sandbox.run([sandbox.python, "-c", "import os; print(oct(os.stat('tool').st_mode))"])
    return unless(result.stdout == b"0o100750\n", result)


def _fork(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.write("a/b", b"1")
        peer = sandbox.open([sandbox.python, "-ISuc", "while True: print(input())"])
        with sandbox.fork() as fork:
            output = fork.run([fork.python, "-c", "print(open('a/b').read())"]).stdout
            found = fork.export(["**"], 100)
        return unless(
            (output, found, peer.ask(b"on", 5.0)) == (b"1\n", {"a/b": b"1"}, b"on"), (output, found)
        )


def _forks_apart(context: CheckContext) -> str:
    code = "import os; os.unlink('gone'); open('kept', 'a').write('x'); open('new', 'w').write('y')"
    with context.backend.create() as sandbox:
        for name in ("kept", "gone", "d/deep"):
            sandbox.write(name, b"1")
        first = sandbox.snapshot()
        with sandbox.fork(first) as one, sandbox.fork(first) as other:
            one.run([one.python, "-c", code])
            one.write("d/deep", b"2")
            sandbox.write("kept", b"3")
            found = [each.export(["**"], 100) for each in (one, other, sandbox)]
    began = {"kept": b"1", "gone": b"1", "d/deep": b"1"}
    expected = [{"kept": b"1x", "new": b"y", "d/deep": b"2"}, began, {**began, "kept": b"3"}]
    return unless(found == expected, found)


def _forks_of_the_past(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.write("file", b"1")
        first = sandbox.snapshot()
        sandbox.write("file", b"2")
        sandbox.write("later", b"")
        with sandbox.fork(first) as past, sandbox.fork() as present:
            found = [past.export(["**"], 9), present.export(["**"], 9)]
    return unless(found == [{"file": b"1"}, {"file": b"2", "later": b""}], found)


def _forks_live_on(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.write("file", b"1")
        first = sandbox.snapshot()
        fork = sandbox.fork(first)
    with fork:
        fork.write("file", b"2")
        output = fork.run([fork.python, "-c", "print(open('file').read())"]).stdout
        with fork.fork(first) as child:
            fork.reset(first)
            found = [fork.export(["**"], 9), child.export(["**"], 9)]
    return unless((output, found) == (b"2\n", [{"file": b"1"}] * 2), (output, found))


def _parents_live_on(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.write("file", b"1")
        first = sandbox.snapshot()
        for change in (sandbox.reset, lambda: None):
            with sandbox.fork(first) as fork:
                fork.reset()
                fork.write("file", b"2")
                change()
        sandbox.reset(first)
        output = sandbox.run([sandbox.python, "-c", "print(open('file').read())"]).stdout
    return unless(output == b"1\n", output)


def _deleted_comes_back(context: CheckContext) -> str:
    code = "import os, shutil; shutil.rmtree('d'); os.mkdir('d'); open('d/other', 'w'); os.unlink('file')"
    with context.backend.create() as sandbox:
        for name in ("file", "d/a", "d/e/b"):
            sandbox.write(name, b"1")
        first = sandbox.snapshot()
        with sandbox.fork(first) as fork:
            for _ in range(2):
                fork.run([fork.python, "-c", code])
                left = fork.export(["**"], 9)
                fork.reset(first)
                found = fork.export(["**"], 9)
                if (list(left), list(found)) != (["d/other"], ["d/a", "d/e/b", "file"]):
                    return f"found {left}, then {found}"
    return ""


def _modes_in_a_fork(context: CheckContext) -> str:
    code = "import os; os.mkdir('d'); open('d/tool', 'w'); os.chmod('d/tool', 0o750)"
    with context.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", code])
        with sandbox.fork() as fork:
            result = fork.run([fork.python, "-c", "import os; print(oct(os.stat('d/tool').st_mode))"])
    return unless(result.stdout == b"0o100750\n", result)


def _only_files_in_a_fork(context: CheckContext) -> str:
    with context.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", _MARKS])
        first = sandbox.snapshot()
        with sandbox.fork(first) as fork, fork.fork() as child:
            sandbox.reset(first)
            found = [each.run([each.python, "-c", _SEEN]).stdout for each in (sandbox, fork, child)]
    return unless(found == [b"[('d', []), ('d/file', []), ('plain', [])]\n"] * 3, found)


def _empties(context: CheckContext) -> str:
    code = "import os; os.makedirs('.a/b'); os.mkfifo('f'); os.symlink('/', 's'); os.chmod('.a', 0)"
    with context.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", code])
        sandbox.reset()
        result = sandbox.run([sandbox.python, "-c", "import os; print(os.listdir())"])
    return unless(result.stdout == b"[]\n", result)


def _unknown_snapshot(context: CheckContext) -> str:
    if not refused(lambda: context.sandbox.fork("no-such-snapshot").close()):
        return "a fork of nothing"
    return unless(refused(lambda: context.sandbox.reset("no-such-snapshot")), "a reset to nothing")


def _scratch_is_swept(context: CheckContext) -> str:
    name = f"left-{secrets.token_hex(8)}"
    context.python(f"open('/tmp/{name}', 'w')")
    result = context.python(f"import os; print(os.path.exists('/tmp/{name}'))")
    Path(tempfile.gettempdir(), name).unlink(missing_ok=True)
    return unless(result.stdout == b"False\n", result)


def _side_by_side(context: CheckContext) -> str:
    def one(number: int) -> bytes:
        with context.backend.create() as sandbox:
            sandbox.write("number", str(number).encode())
            return sandbox.run([sandbox.python, "-c", "print(open('number').read())"]).stdout

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    return unless(found == [f"{number}\n".encode() for number in range(4)], found)


def _threads_may_end(context: CheckContext) -> str:
    with ThreadPoolExecutor(1) as pool:
        sandbox = pool.submit(context.backend.create).result()
        peer = pool.submit(sandbox.open, [sandbox.python, "-ISuc", "while True: print(input())"]).result()
    with sandbox:
        return unless(peer.ask(b"a", 5.0) == b"a", "another answer")


def _two_at_once(context: CheckContext) -> str:
    peer = _open(context, "while True: print(input())")
    try:
        first = peer.ask(b"a", 5.0)
        result = context.python("print(1)")
        return unless((first, result.stdout, peer.ask(b"b", 5.0)) == (b"a", b"1\n", b"b"), result)
    finally:
        peer.close()


def _no_traces(context: CheckContext) -> str:
    name = f"trace-{secrets.token_hex(8)}"
    with context.backend.create() as sandbox:
        sandbox.write(name, b"")
        sandbox.run([sandbox.python, "-c", "import os; os.makedirs('/'.join('d' * 200)); os.chmod('d', 0)"])
    sandbox.close()
    folder = Path(tempfile.gettempdir())
    left: list[str] = []
    for place, below, names in os.walk(
        folder
    ):  # unlike glob, it ignores folders that others remove meanwhile
        if len(Path(place).relative_to(folder).parts) == _DEPTH:
            below.clear()
        if name in names:
            left.append(place)
    return unless(not left, left)


def _closes_while_running(context: CheckContext) -> str:
    sandbox = context.backend.create()
    peer = sandbox.open([sandbox.python, "-c", "input(); import time; time.sleep(60)"])
    sandbox.close()
    with contextlib.suppress(PeerGone):
        return f"a program lived on: {peer.ask(b'', 1.0)!r}"
    return ""


LIFE: Final[dict[str, Case]] = {
    "answers line by line": _peer,
    "passes long lines": _long_lines,
    "asks one line at a time": _one_line,
    "reports how a peer ended": _peer_ends,
    "stops a silent peer": _peer_silent,
    "notices a forged answer": _forged,
    "notices an unasked answer": _unasked,
    "closes a peer idempotently": _peer_closes,
    "resets to a snapshot": _snapshot,
    "keeps modes in a snapshot": _modes,
    "forks the present files and no process": _fork,
    "keeps forks apart": _forks_apart,
    "forks a snapshot after later changes": _forks_of_the_past,
    "lets a fork outlive its parent": _forks_live_on,
    "lets a parent outlive its forks": _parents_live_on,
    "restores files that a fork deleted": _deleted_comes_back,
    "keeps modes in a fork": _modes_in_a_fork,
    "forks only files and folders": _only_files_in_a_fork,
    "resets any kind of leftover": _empties,
    "refuses an unknown snapshot": _unknown_snapshot,
    "empties scratch folders between commands": _scratch_is_swept,
    "runs a command beside a peer": _two_at_once,
    "runs sandboxes side by side": _side_by_side,
    "outlives the thread that created it": _threads_may_end,
    "leaves no trace": _no_traces,
    "closes while a program runs": _closes_while_running,
}
