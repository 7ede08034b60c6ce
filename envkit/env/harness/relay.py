"""A harness that runs in a sandbox, and the host's way to answer its requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, final

from envkit.env.harness.spec import Harness
from envkit.runtime.plain import decode
from envkit.sandbox import PYTHON_OPTIONS, ExecResult, PeerGone, Sandbox, StopReason

#: Where the relay listens. Each sandbox has a loopback device of its own, so any port is free.
_PORT: Final = 8000
BASE_URL: Final = f"http://127.0.0.1:{_PORT}/v1"
#: Bytes of what a harness printed that are told of it.
_OUTPUT_BYTES: Final = 4000
_LIMITS: Final = {StopReason.CPU, StopReason.MEMORY, StopReason.OUTPUT}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request of the harness."""

    method: str
    path: str
    body: str


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer to it.

    Args:
        body: the body.
        status: of HTTP.
        type: the body's media type.
    """

    body: str
    status: int = 200
    type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Ended:
    """The harness has ended.

    Args:
        reason: why, for people: its status, a limit that it exceeded, or that it was silent for too long.
        output: the end of what it printed.
    """

    reason: str
    output: str


@final
class Relay:
    """A running harness. It ends with the sandbox, or by `close`.

    Args:
        sandbox: belongs to the caller.
        harness: the program.
        prompt: of the task.
    """

    def __init__(self, sandbox: Sandbox, harness: Harness, prompt: str) -> None:
        program = (resources.files("envkit.env.harness") / "guest_relay.py").read_text()
        self._peer = sandbox.open([sandbox.python, *PYTHON_OPTIONS, "-c", program], limits=harness.limits)
        address = {"OPENAI_BASE_URL": BASE_URL, "OPENAI_API_BASE": BASE_URL, "OPENAI_API_KEY": "none"}
        start = {
            "argv": harness.argv(prompt, BASE_URL),
            "environment": {**address, **harness.environment},
            "port": _PORT,
        }
        self._event = self._ask(start, harness.timeout_s)

    @property
    def event(self) -> HttpRequest | Ended:
        """The harness's open request, or its end."""
        return self._event

    def answer(self, answer: HttpAnswer, timeout_s: float) -> None:
        """Answer the request, and wait for what follows."""
        told = {"status": answer.status, "type": answer.type, "body": answer.body}
        self._event = self._ask(told, timeout_s)

    def close(self) -> ExecResult:
        """Kill the harness and all that it has started; its output is in ``stderr``. Idempotent."""
        return self._peer.close()

    def end(self, reason: str) -> Ended:
        """Kill the harness as `close` does, and say why, unless it had exceeded a limit."""
        result = self.close()
        if result.stop in _LIMITS:
            reason = f"it exceeded its {result.stop}"
        return Ended(reason, result.stderr[-_OUTPUT_BYTES:].decode(errors="replace"))

    def _ask(self, message: Mapping[str, object], timeout_s: float) -> HttpRequest | Ended:
        try:
            found = json.loads(self._peer.ask(json.dumps(message).encode(), timeout_s))
            if "ended" in found:
                return self.end(f"it ended with status {found['ended']}")
            return decode(HttpRequest, found, "the request")
        except PeerGone as gone:  # its reason may repeat a part of the output
            return self.end(gone.reason if gone.tampered else f"it ended ({self.close().stop})")
        except (ValueError, KeyError, TypeError) as error:  # a harness may write to its relay
            return self.end(str(error))
