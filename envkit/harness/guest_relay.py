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

import contextlib
import ctypes
import json
import os
import queue
import runpy
import sys
import tempfile
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of the harness's last output that are passed on.
SHOWN = 4_000
MAX_BODY = 16 * 2**20
PACKAGES = "/usr/lib/packages"  # as in `envkit.sandbox`

SET_DUMPABLE = 4  # from <linux/prctl.h>

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


def start(argv: list[str], environment: dict[str, str], output: int) -> int:
    """Start the harness; returns its process id.

    ``python3 -m MODULE`` runs in a fork of this interpreter, which may have imported what the module needs.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ.update(environment)
        for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, descriptor)
        if argv[:2] != ["python3", "-m"]:
            os.execvp(argv[0], argv)
        os._exit(run_module(argv[2], argv[3:]))
    except OSError as error:
        os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())
    os._exit(127)


def run_module(name: str, arguments: list[str]) -> int:
    """Run a module as a new interpreter would; returns the exit status."""
    sys.argv = [name, *arguments]
    sys.path[:0] = [] if PACKAGES in sys.path else [PACKAGES]
    # The relay's own streams may have buffered something.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def wait(pid: int, output: Any) -> None:
    """Report the end of the harness."""
    _, ended = os.waitpid(pid, 0)
    output.seek(max(0, output.seek(0, os.SEEK_END) - SHOWN))
    text = output.read().decode(errors="replace")
    events.put(({"ended": os.waitstatus_to_exitcode(ended), "output": text}, None))


def main() -> None:
    """Answer every line with the next event, until the harness has ended."""
    # The harness, or what a model has it run, must not write to the host in our place.
    if ctypes.CDLL(None, use_errno=True).prctl(SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    order = json.loads(sys.stdin.readline())
    server = ThreadingHTTPServer(("127.0.0.1", order["port"]), Handler)  # listens from now on
    output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the end of the process)
    pid = start(order["argv"], order["environment"], output.fileno())  # before there are threads
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=wait, args=(pid, output), daemon=True).start()
    while True:
        event, answered = events.get()
        print(json.dumps(event), flush=True)
        if answered is None:
            return
        answered.put(json.loads(sys.stdin.readline()))


if __name__ == "__main__":
    main()
