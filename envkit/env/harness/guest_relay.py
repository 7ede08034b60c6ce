"""The program in the sandbox that starts a harness and passes its requests on. Standard library only.

The harness asks a web server on the sandbox's own loopback device. Each request becomes one line of standard
output, and the next line of standard input is its answer. The first line of input says what to start:

    {"argv": [...], "environment": {...}, "port": N}

A line of output is a request, or says that the harness has ended:

    {"method": M, "path": P, "body": TEXT}                  answered by {"status": N, "type": T, "body": TEXT}
    {"ended": STATUS}                                       the last line

What the harness prints is written to standard error, where it outlives harness and relay.

Requests that come together wait for each other. A request whose client has gone is not passed on. If the
client goes before the answer comes, the next request that says the same gets this answer: it is a retry.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import runpy
import select
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_BODY = 16 * 2**20
PACKAGES = "/usr/lib/packages"  # as in `envkit.sandbox`

SET_DUMPABLE = 4  # from <linux/prctl.h>

#: What the host is told next: a request with its client, or the end.
events: queue.Queue[tuple[dict[str, Any], Client | None]] = queue.Queue()


class Client:
    """A client that waits for an answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        #: Gets one answer; ``None`` if the client has gone.
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def has_gone(self) -> bool:
        """True if it has closed its connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:  # it is open, and nothing has come
            return False
        except OSError:
            return True


class Handler(BaseHTTPRequestHandler):
    """Passes one connection's requests on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.pass_on(b"")

    def do_POST(self) -> None:
        if "Transfer-Encoding" in self.headers:
            body = self.read_chunks()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if 0 <= length <= MAX_BODY else None
        if body is None:
            self.send_error(413)
        else:
            self.pass_on(body)

    def read_chunks(self) -> bytes | None:
        """Read a body that comes in chunks (RFC 9112, section 7.1); ``None`` if it is too large."""
        body = bytearray()
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            if not 0 < length <= MAX_BODY - len(body):
                return None
            body += self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():  # fields behind the last chunk
            pass
        return bytes(body)

    def pass_on(self, body: bytes) -> None:
        client = Client(self.connection)
        text = body.decode(errors="replace")
        events.put(({"method": self.command, "path": self.path, "body": text}, client))
        answer = client.answers.get()
        if answer is None:
            self.close_connection = True
            return
        data = answer["body"].encode()
        self.send_response(answer["status"])
        self.send_header("Content-Type", answer["type"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def start(argv: list[str], environment: dict[str, str], output: int) -> int:
    """Start the harness; returns its process id.

    ``python3 -m MODULE`` runs in a fork of this interpreter, which may have imported what the module needs.
    Returns 0 in the fork, once the module has run.
    """
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(environment)
    for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, descriptor)
    if argv[:2] == ["python3", "-m"]:
        run_module(argv[2], argv[3:])
        return 0
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())
    os._exit(127)


def run_module(name: str, arguments: list[str]) -> None:
    """Run a module as a new interpreter would.

    Output is passed on line by line, so that it is not lost if the module is killed.
    """
    sys.argv = [name, *arguments]
    sys.path[:0] = [] if PACKAGES in sys.path else [PACKAGES]
    # The relay's own streams may have buffered something.
    sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def watch(pid: int, output: int) -> None:
    """Pass on what the harness prints, and report its end."""
    sources = [output, ended := os.pidfd_open(pid)]
    while select.select(sources, [], [])[0] != [ended]:
        if data := os.read(output, 2**16):
            os.write(2, data)
        else:  # nobody can print any more
            sources = [ended]
    _, status = os.waitpid(pid, 0)
    events.put(({"ended": os.waitstatus_to_exitcode(status)}, None))


def main() -> None:
    """Answer every line with the next event, until the harness has ended."""
    # The harness, or what a model has it run, must not write to the host in our place.
    if ctypes.CDLL(None, use_errno=True).prctl(SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    order = json.loads(sys.stdin.readline())
    server = ThreadingHTTPServer(("127.0.0.1", order["port"]), Handler)  # listens from now on
    # A pipe of its own: the harness may not open the relay's by a name such as /dev/stderr.
    output, printing = os.pipe()
    pid = start(order["argv"], order["environment"], printing)  # before there are threads
    if not pid:
        return  # and end as a program ends: threads are joined, and what `atexit` knows is called
    os.close(printing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=watch, args=(pid, output), daemon=True).start()
    #: Answers that no client has read, by request.
    unread: dict[str, dict[str, Any]] = {}
    while True:
        event, client = events.get()
        line = json.dumps(event)
        if client is None:
            print(line, flush=True)
            return
        if not client.has_gone() and line not in unread:
            print(line, flush=True)
            unread[line] = json.loads(sys.stdin.readline())
        client.answers.put(None if client.has_gone() else unread.pop(line))


if __name__ == "__main__":
    main()
