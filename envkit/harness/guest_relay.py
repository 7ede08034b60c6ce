"""The program in the sandbox that starts a harness and passes its requests on. Standard library only.

The harness asks a web server on the sandbox's own loopback device. Each request becomes one line of standard
output, and the next line of standard input is its answer. The first line of input says what to start:

    {"argv": [...], "environment": {...}, "port": N}

A line of output is a request, or says that the harness has ended:

    {"method": M, "path": P, "body": TEXT}                  answered by {"status": N, "type": T, "body": TEXT}
    {"ended": STATUS, "output": TEXT}                       the last line

Requests that come together wait for each other.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of the harness's last output that are passed on.
SHOWN = 4_000
MAX_BODY = 16 * 2**20

#: What the host is told next: a request with the queue of its answer, or the end.
events: queue.Queue[tuple[dict[str, Any], queue.Queue[dict[str, Any]] | None]] = queue.Queue()


class Handler(BaseHTTPRequestHandler):
    """Passes one connection's requests on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.pass_on(b"")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= MAX_BODY:
            self.send_error(413)
            return
        self.pass_on(self.rfile.read(length))

    def pass_on(self, body: bytes) -> None:
        answered: queue.Queue[dict[str, Any]] = queue.Queue()
        text = body.decode(errors="replace")
        events.put(({"method": self.command, "path": self.path, "body": text}, answered))
        answer = answered.get()
        data = answer["body"].encode()
        self.send_response(answer["status"])
        self.send_header("Content-Type", answer["type"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def run(argv: list[str], environment: dict[str, str]) -> None:
    """Run the harness to its end, and report that."""
    with tempfile.TemporaryFile() as output:
        try:
            started = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            status = subprocess.run(argv, env={**os.environ, **environment}, **started).returncode
        except OSError as error:
            events.put(({"ended": 127, "output": f"{argv[0]} cannot be started: {error}"}, None))
            return
        output.seek(max(0, output.seek(0, os.SEEK_END) - SHOWN))
        events.put(({"ended": status, "output": output.read().decode(errors="replace")}, None))


def main() -> None:
    """Answer every line with the next event, until the harness has ended."""
    start = json.loads(sys.stdin.readline())
    server = ThreadingHTTPServer(("127.0.0.1", start["port"]), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=run, args=(start["argv"], start["environment"]), daemon=True).start()
    while True:
        event, answered = events.get()
        print(json.dumps(event), flush=True)
        if answered is None:
            return
        answered.put(json.loads(sys.stdin.readline()))


if __name__ == "__main__":
    main()
