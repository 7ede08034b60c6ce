"""The program in the sandbox that starts an MCP server and forwards messages to it. Standard library only.

It reads JSON lines from standard input and answers each with one line. The first line starts the server; each
further one is a JSON-RPC message for it:

    {"argv": [...]}                            {}, or {"failure": WHY}
    {"message": NOTIFICATION, "timeout_s": S}  {}, or {"failure": WHY}
    {"message": REQUEST, "timeout_s": S}       {"response": RESPONSE}, {} if there is none in time, or
                                               {"failure": WHY}

What the server says meanwhile, such as log messages and late responses, is dropped.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


SET_DUMPABLE = 4  # from <linux/prctl.h>


class Server:
    """A running server, with MCP's stdio transport: one JSON message a line."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.unread = b""

    def send(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a message and return the answer to the host."""
        if self.process.stdin is None:
            raise OSError("the server has no pipes")
        until = time.monotonic() + timeout_s
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while "id" in message and (line := self._line(until)) is not None:
            said = json.loads(line)
            if not isinstance(said, dict):
                raise ValueError(f"it sent {said!r:.200}, expected an object")
            if said.get("id") == message["id"] and "method" not in said:
                return {"response": said}
        return {}

    def _line(self, until: float) -> bytes | None:
        """Read the next line; returns ``None`` if there is none in time."""
        if self.process.stdout is None:
            raise OSError("the server has no pipes")
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                return None
            data = os.read(pipe, 2**20)
            if not data:
                raise self._ended()
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _ended(self) -> OSError:
        return OSError(f"the server ended with status {self.process.wait()}")


def main() -> None:
    """Forward messages until standard input ends."""
    # What the server starts, such as an agent's code, must not write to the host in our place.
    if ctypes.CDLL(None, use_errno=True).prctl(SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    server: Server | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if server is None:
                server = Server(**message)
                answer: Any = {}
            else:
                answer = server.send(**message)
        except (OSError, ValueError) as error:
            answer = {"failure": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
