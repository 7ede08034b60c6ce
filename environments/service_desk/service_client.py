"""The host's client of the ticket service: it starts the service in a sandbox and sends it requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, PeerGone, Sandbox

#: Workspace path of the tickets.
STORE: Final = "tickets.json"
#: Each sandbox has its own loopback device, so the port is free.
PORT: Final = 8000
#: Limits of launcher and service together, per episode. Wall time is long, because it runs while the agent
#: thinks.
LIMITS: Final = Limits(cpu_s=20.0, wall_s=3600.0, memory_bytes=256 * 2**20, processes=8)
#: Wall seconds to wait for the launcher, in addition to the time that a request may take.
_TIMEOUT_S: Final = 20.0


@final
class ServiceClient:
    """Starts the ticket service and talks to it through the launcher. The service ends with the sandbox.

    Args:
        sandbox: its workspace holds `STORE`; the caller closes it.
        warm_up_s: seconds that the service needs to start.
        ready_s: longest wait until it is ready, in seconds.

    Raises:
        SandboxError: the service was not ready in time; the message says why.
    """

    def __init__(self, sandbox: Sandbox, *, warm_up_s: float, ready_s: float) -> None:
        # Sent over standard input only: other programs can read argv, environment and files.
        self._token = secrets.token_hex(16)
        here = resources.files("envkit.environments.service_desk")
        python = [sandbox.python, *PYTHON_OPTIONS, "-c"]
        service = [*python, (here / "service.py").read_text(), STORE, str(PORT), str(warm_up_s)]
        self._peer = sandbox.open([*python, (here / "launcher.py").read_text()], limits=LIMITS)
        start = {"argv": service, "token": self._token, "port": PORT, "ready_s": ready_s}
        self._send(start, ready_s + _TIMEOUT_S)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send an HTTP request; return status and body.

        Raises:
            SandboxError: no answer. No action can cause that, so the episode is void.
        """
        answer = self._send({"method": method, "path": path, "body": body}, _TIMEOUT_S)
        return answer["status"], answer["body"]

    def _send(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Send a message to the launcher, and return its answer."""
        answer: dict[str, Any] = {}
        try:
            answer = json.loads(self._peer.ask(json.dumps(message).encode(), timeout_s))
            failure = answer.get("failure")
        except PeerGone:  # its message may quote half of the token, so it is not passed on
            failure = "it ended, or did not answer"
        if failure is not None:
            last_output = self._without_token(self._peer.close().stderr.decode(errors="replace"))[-500:]
            problem = f"the ticket service failed: {self._without_token(failure)}"
            raise SandboxError(" ".join(f"{problem}; its last output: {last_output or '-'}".split()))
        return answer

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "[token]")
