"""The program in the sandbox that starts a service and forwards requests to it. Standard library only.

It runs beside the service, because only programs opened together share a loopback device. It reads JSON lines
from standard input and answers each with one line. The first line describes the service to start:

    {"argv": [...], "program": TEXT or null, "token": T, "port": N,         {"up": true}, or {"failure": WHY}
     "ready_path": P, "ready_s": S, "answer_bytes": N}
    {"method": M, "path": P, "headers": {...}, "body": TEXT, "timeout_s": S}  {"status": N, "body": TEXT}, or
                                                                              {"failure": WHY}

The token is the service's first line of standard input, and in the header of every request. It may be empty.
Each line of the answers has fewer bytes than ``answer_bytes``.

A service that is a Python program is a fork of this process, which has most of what a service imports. A new
interpreter would import all of it again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROBE_EVERY_S = 0.005
SET_DUMPABLE = 4  # from <linux/prctl.h>


class Fork:
    """A copy of this process. In the copy itself, `pid` is 0.

    Args:
        stdin: becomes the copy's standard input.
    """

    def __init__(self, stdin: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.dup2(stdin, 0)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.closerange(3, 4096)
                # Without what this process has read ahead.
                sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            except BaseException:  # or it would answer as a second launcher
                os._exit(127)

    def poll(self) -> int | None:
        """Return the exit code; ``None`` while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Service:
    """A running service."""

    def __init__(
        self, process: Fork | subprocess.Popen[bytes], token: str, port: int, ready_path: str, ready_s: float
    ) -> None:
        self.process, self.port = process, port
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.wait(ready_path, time.monotonic() + ready_s)

    def wait(self, path: str, until: float) -> None:
        """Return once the service answers a request for a path with a status of 200 to 299."""
        last = "it was not asked"
        while (left_s := until - time.monotonic()) > 0:
            self.require_running()
            try:
                status = self.request("GET", path, {}, "", left_s)["status"]
                if 200 <= status < 300:
                    return
                last = f"it answers with status {status}"
            except (OSError, HTTPException) as error:
                last = str(error)
            time.sleep(PROBE_EVERY_S)
        raise OSError(f"it was not ready in time: {last}")

    def request(
        self, method: str, path: str, headers: dict[str, str], body: str, timeout_s: float
    ) -> dict[str, Any]:
        # A process that the service has started could end it and take its port, to answer in its place. While
        # the service runs, the port is its own.
        self.require_running()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = body.encode() if body else None
            connection.request(method, path, data, {**headers, **self.headers})
            answer = connection.getresponse()
            found = {"status": answer.status, "body": answer.read().decode(errors="replace")}
        finally:
            connection.close()
        self.require_running()
        return found

    def require_running(self) -> None:
        """Raise ``OSError`` if the service has ended."""
        if self.process.poll() is not None:
            raise OSError(f"it ended with status {self.process.returncode}")


def start(argv: list[str], program: str | None, token: str) -> Fork | subprocess.Popen[bytes]:
    """Start the service; a fork has yet to run the program."""
    reading, writing = os.pipe()
    # A program that puts its folder on the path must import from there what a new interpreter would.
    is_plain = program is not None and not any(name.partition(".")[0] in sys.modules for name in os.listdir())
    process = Fork(reading) if is_plain else subprocess.Popen(argv, stdin=reading, stdout=subprocess.DEVNULL)
    if process.pid:
        os.close(reading)
        with contextlib.suppress(BrokenPipeError), open(writing, "wb") as pipe:  # it may have ended already
            pipe.write(token.encode() + b"\n")
    return process


def main() -> None:
    """Answer requests until standard input ends. Returns early in a fork, which is to run the program."""
    # What the service starts, such as an agent's code, must not write to the host in our place.
    if ctypes.CDLL(None, use_errno=True).prctl(SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    service, answer_bytes = None, 0
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if service is None:
                argv, program = message.pop("argv"), message.pop("program")
                answer_bytes = message.pop("answer_bytes")
                process = start(argv, program, message["token"])
                if not process.pid:
                    sys.argv = ["-c", *argv[argv.index("-c") + 2 :]]
                    COMMAND.append(program)
                    return
                service = Service(process, **message)
                answer: Any = {"up": True}
            else:
                answer = service.request(**message)
        except (OSError, HTTPException, ValueError) as error:
            answer = {"failure": str(error) or type(error).__name__}
        text = json.dumps(answer)
        if len(text) >= answer_bytes:
            size = f"an answer takes {len(text):,} bytes as JSON; expected fewer than {answer_bytes:,}"
            text = json.dumps({"failure": f"{size}: send less at once, or raise output_bytes in its limits"})
        print(text, flush=True)


#: The program to run, in a fork.
COMMAND: list[str] = []

if __name__ == "__main__":
    main()
    if COMMAND:
        # Here, not in a function: an error of the program has no other handler, and ends the process.
        sys.modules["__main__"] = type(sys)("__main__")
        sys.modules["__main__"].__dict__["__builtins__"] = sys.modules["builtins"]
        exec(compile(COMMAND.pop(), "<string>", "exec", dont_inherit=True), sys.modules["__main__"].__dict__)
