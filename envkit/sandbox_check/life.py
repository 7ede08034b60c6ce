"""Cases of a sandbox's life: peers, snapshots, reset, sandboxes side by side, and the end."""

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
from envkit.sandbox_check.lab import Case, Lab, refused, unless

#: A workspace lies no deeper than this among temporary files.
_DEPTH: Final = 3


def _open(lab: Lab, code: str) -> Peer:
    return lab.sandbox.open([lab.sandbox.python, "-ISuc", code], limits=Limits(wall_s=30))


def _gone(peer: Peer, line: bytes = b"", timeout_s: float = 10.0) -> PeerGone | None:
    """How a peer says that it is gone; ``None`` if it answers."""
    try:
        peer.ask(line, timeout_s)
    except PeerGone as gone:
        return gone
    finally:
        peer.close()
    return None


def _peer(lab: Lab) -> str:
    peer = _open(lab, "while True: print(input()[::-1])")
    answers = [peer.ask(line, 5.0) for line in (b"abc", b"", "ä".encode())]
    ended = peer.close()
    return unless(answers[:2] == [b"cba", b""] and not ended.ok, (answers, ended))


def _long_lines(lab: Lab) -> str:
    peer = _open(lab, "while True: print(input())")
    line = b"x" * 200_000
    try:
        return unless(peer.ask(line, 10.0) == line, "another line")
    finally:
        peer.close()


def _one_line(lab: Lab) -> str:
    peer = _open(lab, "while True: print(input())")
    try:
        return f"asked two lines at once: {peer.ask(b'a' + bytes([10]) + b'b', 5.0)!r}"
    except ContractError:
        return ""
    finally:
        peer.close()


def _peer_ends(lab: Lab) -> str:
    gone = _gone(_open(lab, "raise SystemExit(3)"))
    return unless(gone is not None and not gone.tampered and "3" in gone.reason, gone)


def _peer_silent(lab: Lab) -> str:
    gone = _gone(_open(lab, "import time; time.sleep(60)"), timeout_s=0.3)
    return unless(gone is not None and not gone.tampered, gone)


def _forged(lab: Lab) -> str:
    gone = _gone(_open(lab, "input(); print('one\\ntwo')"))
    return unless(gone is not None and gone.tampered, gone)


def _unasked(lab: Lab) -> str:
    peer = _open(lab, "print('unasked'); open('said', 'w'); input(); print('asked')")
    for _ in range(1000):
        if "said" in lab.sandbox.export(["said"], 0):
            break
        time.sleep(0.01)
    gone = _gone(peer)
    return unless(gone is not None and gone.tampered, gone)


def _peer_closes(lab: Lab) -> str:
    peer = _open(lab, "while True: print(input())")
    first, second = peer.close(), peer.close()
    return unless(first == second and _gone(peer) is not None, (first, second))


def _snapshot(lab: Lab) -> str:
    with lab.backend.create() as sandbox:
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


def _modes(lab: Lab) -> str:
    with lab.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", "import os; open('tool', 'w'); os.chmod('tool', 0o750)"])
        name = sandbox.snapshot()
        sandbox.reset()
        sandbox.reset(name)
        result = sandbox.run([sandbox.python, "-c", "import os; print(oct(os.stat('tool').st_mode))"])
    return unless(result.stdout == b"0o100750\n", result)


def _empties(lab: Lab) -> str:
    code = "import os; os.makedirs('.a/b'); os.mkfifo('f'); os.symlink('/', 's'); os.chmod('.a', 0)"
    with lab.backend.create() as sandbox:
        sandbox.run([sandbox.python, "-c", code])
        sandbox.reset()
        result = sandbox.run([sandbox.python, "-c", "import os; print(os.listdir())"])
    return unless(result.stdout == b"[]\n", result)


def _unknown_snapshot(lab: Lab) -> str:
    return unless(refused(lambda: lab.sandbox.reset("no-such-snapshot")), "a reset to nothing")


def _scratch_is_swept(lab: Lab) -> str:
    name = f"left-{secrets.token_hex(8)}"
    lab.python(f"open('/tmp/{name}', 'w')")
    result = lab.python(f"import os; print(os.path.exists('/tmp/{name}'))")
    Path(tempfile.gettempdir(), name).unlink(missing_ok=True)
    return unless(result.stdout == b"False\n", result)


def _side_by_side(lab: Lab) -> str:
    def one(number: int) -> bytes:
        with lab.backend.create() as sandbox:
            sandbox.write("number", str(number).encode())
            return sandbox.run([sandbox.python, "-c", "print(open('number').read())"]).stdout

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    return unless(found == [f"{number}\n".encode() for number in range(4)], found)


def _threads_may_end(lab: Lab) -> str:
    with ThreadPoolExecutor(1) as pool:
        sandbox = pool.submit(lab.backend.create).result()
        peer = pool.submit(sandbox.open, [sandbox.python, "-ISuc", "while True: print(input())"]).result()
    with sandbox:
        return unless(peer.ask(b"a", 5.0) == b"a", "another answer")


def _two_at_once(lab: Lab) -> str:
    peer = _open(lab, "while True: print(input())")
    try:
        first = peer.ask(b"a", 5.0)
        result = lab.python("print(1)")
        return unless((first, result.stdout, peer.ask(b"b", 5.0)) == (b"a", b"1\n", b"b"), result)
    finally:
        peer.close()


def _no_traces(lab: Lab) -> str:
    name = f"trace-{secrets.token_hex(8)}"
    with lab.backend.create() as sandbox:
        sandbox.write(name, b"")
        sandbox.run([sandbox.python, "-c", "import os; os.makedirs('/'.join('d' * 200)); os.chmod('d', 0)"])
    sandbox.close()
    folder = Path(tempfile.gettempdir())
    left: list[str] = []
    for place, below, names in os.walk(folder):  # which is not put off by what others remove meanwhile
        if len(Path(place).relative_to(folder).parts) == _DEPTH:
            below.clear()
        if name in names:
            left.append(place)
    return unless(not left, left)


def _closes_while_running(lab: Lab) -> str:
    sandbox = lab.backend.create()
    peer = sandbox.open([sandbox.python, "-c", "input(); import time; time.sleep(60)"])
    sandbox.close()
    with contextlib.suppress(PeerGone):
        return f"a program lived on: {peer.ask(b'', 1.0)!r}"
    return ""


LIFE: Final[dict[str, Case]] = {
    "answers line by line": _peer,
    "passes long lines": _long_lines,
    "asks one line at a time": _one_line,
    "says how a peer ended": _peer_ends,
    "gives up a silent peer": _peer_silent,
    "notices a forged answer": _forged,
    "notices an answer that nobody asked for": _unasked,
    "closes a peer once": _peer_closes,
    "resets to a snapshot": _snapshot,
    "keeps modes in a snapshot": _modes,
    "empties whatever was left": _empties,
    "refuses a snapshot that it has not": _unknown_snapshot,
    "sweeps scratch files between commands": _scratch_is_swept,
    "runs a command beside a peer": _two_at_once,
    "runs sandboxes side by side": _side_by_side,
    "outlives the thread that made it": _threads_may_end,
    "leaves no trace": _no_traces,
    "closes while a program runs": _closes_while_running,
}
