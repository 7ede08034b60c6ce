"""The program in the sandbox that starts a service and forwards requests to it. Standard library only.

It runs next to the service, because only programs opened together share a loopback device. It reads JSON
lines from standard input and answers each with one line. The first line describes the service to start:

    {"argv": [...], "token": T, "port": N, "ready_s": S}    {"up": true}, or {"failure": WHY}
    {"method": M, "path": P, "body": JSON}                  {"status": N, "body": JSON}, or {"failure": WHY}
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

#: Longest wait for one request's answer, in seconds.
REQUEST_S = 10.0
PROBE_EVERY_S = 0.01


class Service:
    """A running service."""

    def __init__(self, argv: list[str], token: str, port: int, ready_s: float) -> None:
        self.port, self.headers = port, {"Authorization": f"Bearer {token}"}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        pipe: Any = self.process.stdin
        with contextlib.suppress(BrokenPipeError), pipe:  # if it has ended already, `wait` raises
            pipe.write(token + "\n")
        self.wait(time.monotonic() + ready_s)

    def wait(self, until: float) -> None:
        """Return once the service answers 204 to an authorized request, so it is running and ready."""
        last = "it was not asked"
        while (left_s := until - time.monotonic()) > 0:
            if self.process.poll() is not None:
                raise OSError(f"it ended with status {self.process.returncode}")
            try:
                status = self.request("GET", "/health", timeout_s=left_s)["status"]
                if status == 204:
                    return
                last = f"it answers with status {status}"
            except (OSError, HTTPException) as error:
                last = str(error)
            time.sleep(PROBE_EVERY_S)
        raise OSError(f"it was not ready in time: {last}")

    def request(
        self, method: str, path: str, body: Any = None, timeout_s: float = REQUEST_S
    ) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            answer = connection.getresponse()
            data = answer.read()
            return {"status": answer.status, "body": json.loads(data) if data else None}
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
