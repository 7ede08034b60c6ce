"""The program in the sandbox that starts a service and forwards requests to it. Standard library only.

It runs beside the service, because only programs opened together share a loopback device. It reads JSON lines
from standard input and answers each with one line. The first line describes the service to start:

    {"argv": [...], "token": T, "port": N, "ready_path": P, "ready_s": S}   {"up": true}, or {"failure": WHY}
    {"method": M, "path": P, "headers": {...}, "body": TEXT, "timeout_s": S}  {"status": N, "body": TEXT}, or
                                                                              {"failure": WHY}

The token is the service's first line of standard input, and in the header of every request. It may be empty.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROBE_EVERY_S = 0.01


class Service:
    """A running service."""

    def __init__(self, argv: list[str], token: str, port: int, ready_path: str, ready_s: float) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        pipe: Any = self.process.stdin
        with contextlib.suppress(BrokenPipeError), pipe:  # if it has ended already, `wait` raises
            pipe.write(token + "\n")
        self.wait(ready_path, time.monotonic() + ready_s)

    def wait(self, path: str, until: float) -> None:
        """Return once the service answers a request for a path with a status of 200 to 299."""
        last = "it was not asked"
        while (left_s := until - time.monotonic()) > 0:
            if self.process.poll() is not None:
                raise OSError(f"it ended with status {self.process.returncode}")
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
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = body.encode() if body else None
            connection.request(method, path, data, {**headers, **self.headers})
            answer = connection.getresponse()
            return {"status": answer.status, "body": answer.read().decode(errors="replace")}
        finally:
            connection.close()


def main() -> None:
    """Answer requests until standard input ends."""
    service: Service | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if service is None:
                service = Service(**message)
                answer: Any = {"up": True}
            else:
                answer = service.request(**message)
        except (OSError, HTTPException, ValueError) as error:
            answer = {"failure": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
