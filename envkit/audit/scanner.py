"""What can be reached in a sandbox: its programs run beside one that looks, which is asked from outside."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, ExecResult, Limits, Peer, PeerGone, Sandbox, StopReason

#: How long a program that looks is given to notice that it is to, and to do it.
_NOTICE_S: Final = 10.0
_PATIENCE_S: Final = 60.0
#: What it may use beside the program.
_EXTRA_BYTES: Final = 64 * 2**20
#: A program that holds nothing: what can be seen from beside it, any program of the agent's could see. It is
#: asked before somebody looks, as it has to be up to hold what every interpreter does.
_BYSTANDER: Final = "print(input(), flush=True); input()"


@final
class SandboxScanner:
    """Starts a sandbox's programs so that they can be looked into, and notes what they are told.

    Programs that were not opened together see nothing of each other's processes and scratch files, so each is
    looked into from beside it; see `envkit.audit.scanner_guest`.

    Args:
        sandbox: stays its owner's; `open` and `run` take the place of its own.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._open, self._run = sandbox.open, sandbox.run
        self._peers: list[_Noted] = []
        #: What programs were given: how -> the bytes.
        self.told: list[tuple[str, bytes]] = []

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """See `envkit.sandbox.Sandbox.open`."""
        name = f".envkit-look-{len(self._peers)}"
        self._note("the command line of a program", "\n".join(argv))
        roomy = dataclasses.replace(
            limits,
            cpu_s=limits.cpu_s + _PATIENCE_S,
            memory_bytes=limits.memory_bytes + _EXTRA_BYTES,
            processes=limits.processes + 1,
        )
        python = [self._sandbox.python, *PYTHON_OPTIONS, "-c"]
        peer = _Noted(name, self._open([*python, _guest_source(), name, *argv], limits=roomy), self.told)
        self._peers.append(peer)
        return peer

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        """See `envkit.sandbox.Sandbox.run`."""
        self._note("the command line of a program", "\n".join(argv))
        self.told.append(("the standard input of a program", stdin))
        return self._run(argv, stdin=stdin, limits=limits)

    def find(self, texts: Sequence[bytes]) -> Mapping[bytes, str]:
        """Which of these can be reached from inside: text -> where. The episode is not to go on afterwards.

        Raises:
            SandboxError: a program could not be looked into.
        """
        found = {text: how for text in texts for how, told in self.told if text in told}
        bystander = self.open([self._sandbox.python, *PYTHON_OPTIONS, "-c", _BYSTANDER])
        try:
            bystander.ask(b"up", _PATIENCE_S)
        except PeerGone as gone:
            raise SandboxError(f"a program in the sandbox could not be looked into: {gone.reason}") from gone
        for peer in self._peers:  # one by one: what is looked for must not lie about
            if not peer.gone:
                found = {**self._ask(peer, texts), **found}
        return found

    def _note(self, how: str, text: str) -> None:
        self.told.append((how, text.encode(errors="surrogatepass")))

    def _ask(self, peer: _Noted, texts: Sequence[bytes]) -> Mapping[bytes, str]:
        self._sandbox.write(peer.name, "\n".join(text.hex() for text in texts).encode())
        began = time.monotonic()
        while time.monotonic() < began + _PATIENCE_S:
            try:
                lines = self._sandbox.read(f"{peer.name}.found", 2**20).decode().splitlines()
            except FileNotFoundError:
                if time.monotonic() > began + _NOTICE_S and self._is_there(peer.name):
                    break
                time.sleep(0.02)
            else:
                pairs = (line.split(" ", 1) for line in lines)
                return {texts[int(number)]: place for number, place in pairs}
        if peer.close().stop is StopReason.EXITED:  # by itself, before; it holds nothing any more
            return {}
        raise SandboxError("a program in the sandbox could not be looked into: it is silent")

    def _is_there(self, name: str) -> bool:
        try:
            self._sandbox.read(name, 2**24)
        except FileNotFoundError:
            return False
        return True


@final
class _Noted(Peer):
    """A peer that is told nothing unseen.

    Args:
        name: what its looker listens to.
        peer: itself.
        told: where to note it.
    """

    def __init__(self, name: str, peer: Peer, told: list[tuple[str, bytes]]) -> None:
        self.name, self.gone = name, False
        self._peer, self._told = peer, told

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        self._told.append(("what a program was told", line))
        try:
            return self._peer.ask(line, timeout_s)
        except PeerGone:
            self.gone = True
            raise

    def close(self) -> ExecResult:
        self.gone = True
        return self._peer.close()


@functools.cache
def _guest_source() -> str:
    return (resources.files("envkit.audit") / "scanner_guest.py").read_text()
