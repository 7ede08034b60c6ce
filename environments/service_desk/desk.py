"""The desk: the service in a sandbox, started, awaited and asked from outside."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, PeerGone, Sandbox

STORE: Final = "tickets.json"
#: Each sandbox has a loopback device of its own, so nobody else can be there.
PORT: Final = 8000
#: Of launcher and service together, for a whole episode. Wall time passes while an agent thinks.
LIMITS: Final = Limits(cpu_s=20.0, wall_s=3600.0, memory_bytes=256 * 2**20, processes=8)
_PATIENCE_S: Final = 20.0


@final
class Desk:
    """A running service. It ends with the sandbox, which stays its owner's.

    Args:
        sandbox: its workspace holds `STORE`.
        warm_up_s: what the service takes at least to come up.
        ready_s: what it may take.

    Raises:
        SandboxError: it did not come up in time; says why.
    """

    def __init__(self, sandbox: Sandbox, *, warm_up_s: float, ready_s: float) -> None:
        # Never part of an argv, a file or a message: whoever reads along anywhere must not learn it.
        self._token = secrets.token_hex(16)
        here = resources.files("envkit.environments.service_desk")
        python = [sandbox.python, *PYTHON_OPTIONS, "-c"]
        service = [*python, (here / "service.py").read_text(), STORE, str(PORT), str(warm_up_s)]
        self._peer = sandbox.open([*python, (here / "launcher.py").read_text()], limits=LIMITS)
        start = {"argv": service, "token": self._token, "port": PORT, "ready_s": ready_s}
        self._say(start, ready_s + _PATIENCE_S)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of the answer.

        Raises:
            SandboxError: there is none. No action makes the service fail, so it is nobody's fault.
        """
        answer = self._say({"method": method, "path": path, "body": body}, _PATIENCE_S)
        return answer["status"], answer["body"]

    def _say(self, asked: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        answer: dict[str, Any] = {}
        try:
            answer = json.loads(self._peer.ask(json.dumps(asked).encode(), timeout_s))
            failure = answer.get("failure")
        except PeerGone:  # its reason has the last of what was written, perhaps with half a token
            failure = "it ended, or did not answer"
        if failure is not None:
            last = self._without_token(self._peer.close().stderr.decode(errors="replace"))[-500:]
            said = f"the ticket service failed: {self._without_token(failure)}; its last words: {last or '-'}"
            raise SandboxError(" ".join(said.split()))
        return answer

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "[token]")
