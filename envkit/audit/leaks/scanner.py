"""Searches a sandbox for texts, from the host: a scanner runs in the sandbox next to each program."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, ExecResult, Limits, Peer, PeerGone, Sandbox, StopReason

#: Time for the scanner in the sandbox to start a scan, and to finish it.
_START_TIMEOUT_S: Final = 10.0
_SCAN_TIMEOUT_S: Final = 60.0
#: Memory limit of the scanner, in addition to the program's own.
_EXTRA_BYTES: Final = 64 * 2**20
#: A program without secrets. Any program of the agent could read what a scanner next to it finds. It is asked
#: once before the scan, so that its interpreter has started.
_BYSTANDER: Final = "print(input(), flush=True); input()"


@final
class SandboxScanner:
    """Starts a sandbox's programs with a scanner next to each, and records the programs' inputs.

    Programs that were opened separately cannot see each other's processes and scratch files. So each program
    is scanned by its own `envkit.audit.leaks.scanner_guest`.

    Args:
        sandbox: belongs to the caller, who lets `open` and `run` replace its own.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._open, self._run = sandbox.open, sandbox.run
        self._peers: list[_RecordedPeer] = []
        #: The inputs of the programs: channel and bytes.
        self.inputs: list[tuple[str, bytes]] = []

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        """See `envkit.sandbox.Sandbox.open`."""
        name = f".envkit-scan-{len(self._peers)}"
        self._record("the command line of a program", "\n".join(argv))
        with_scanner = dataclasses.replace(
            limits,
            cpu_s=limits.cpu_s + _SCAN_TIMEOUT_S,
            memory_bytes=limits.memory_bytes + _EXTRA_BYTES,
            processes=limits.processes + 1,
        )
        python = [self._sandbox.python, *PYTHON_OPTIONS, "-c"]
        opened = self._open([*python, _guest_source(), name, *argv], limits=with_scanner)
        peer = _RecordedPeer(name, opened, self.inputs)
        self._peers.append(peer)
        return peer

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        """See `envkit.sandbox.Sandbox.run`."""
        self._record("the command line of a program", "\n".join(argv))
        self.inputs.append(("the standard input of a program", stdin))
        return self._run(argv, stdin=stdin, limits=limits)

    def find(self, texts: Sequence[bytes]) -> Mapping[bytes, str]:
        """The texts that can be read inside: text -> place. The episode cannot go on afterwards.

        Raises:
            SandboxError: a program could not be scanned.
        """
        found = {text: way for text in texts for way, data in self.inputs if text in data}
        bystander = self.open([self._sandbox.python, *PYTHON_OPTIONS, "-c", _BYSTANDER])
        try:
            bystander.ask(b"up", _SCAN_TIMEOUT_S)
        except PeerGone as gone:
            raise SandboxError(f"a program in the sandbox could not be scanned: {gone.reason}") from gone
        for peer in self._peers:  # one by one: a scan must not find another scan's texts
            if not peer.gone:
                found = {**self._scan(peer, texts), **found}
        return found

    def _record(self, way: str, text: str) -> None:
        self.inputs.append((way, text.encode(errors="surrogatepass")))

    def _scan(self, peer: _RecordedPeer, texts: Sequence[bytes]) -> Mapping[bytes, str]:
        self._sandbox.write(peer.name, "\n".join(text.hex() for text in texts).encode())
        began = time.monotonic()
        while time.monotonic() < began + _SCAN_TIMEOUT_S:
            try:
                lines = self._sandbox.read(f"{peer.name}.found", 2**20).decode().splitlines()
            except FileNotFoundError:
                if time.monotonic() > began + _START_TIMEOUT_S and self._exists(peer.name):
                    break
                time.sleep(0.02)
            else:
                pairs = (line.split(" ", 1) for line in lines)
                return {texts[int(number)]: place for number, place in pairs}
        if peer.close().stop is StopReason.EXITED:  # it had ended by itself, and holds nothing any more
            return {}
        raise SandboxError("a program in the sandbox could not be scanned: it does not answer")

    def _exists(self, name: str) -> bool:
        try:
            self._sandbox.read(name, 2**24)
        except FileNotFoundError:
            return False
        return True


@final
class _RecordedPeer(Peer):
    """A peer whose requests are recorded.

    Args:
        name: workspace file that its scanner waits for.
        peer: the peer itself.
        inputs: record of what programs were given.
    """

    def __init__(self, name: str, peer: Peer, inputs: list[tuple[str, bytes]]) -> None:
        self.name, self.gone = name, False
        self._peer, self._inputs = peer, inputs

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        self._inputs.append(("a request to a program", line))
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
    return (resources.files("envkit.audit.leaks") / "scanner_guest.py").read_text()
