"""The program in the sandbox that starts an MCP server and forwards messages to it. Standard library only.

It reads JSON lines from standard input and answers each with one line. The first line is ``{"argv": [...]}``;
each further one is a JSON-RPC message for the server. The answer to a request is the server's response to it;
what the server says meanwhile, such as log messages, is dropped. The answer to a notification is ``{}``.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


SET_DUMPABLE = 4  # from <linux/prctl.h>


class Server:
    """A running server, with MCP's stdio transport: one JSON message a line."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the response, or ``{}`` for a notification."""
        into, out = self.process.stdin, self.process.stdout
        if into is None or out is None:
            raise OSError("the server has no pipes")
        try:
            into.write(json.dumps(message) + "\n")
            into.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while "id" in message:
            line = out.readline()
            if not line:
                raise self._ended()
            answer = json.loads(line)
            if answer.get("id") == message["id"] and "method" not in answer:
                return answer
        return {}

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
                answer = server.send(message)
        except (OSError, ValueError) as error:
            answer = {"failure": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
