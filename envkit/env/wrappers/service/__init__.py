"""Web services as applications: they run in an episode's sandbox, and the host asks them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, final

from envkit.env.wrappers.service.launcher import Launcher
from envkit.errors import ContractError
from envkit.sandbox import PYTHON_OPTIONS, Limits, Sandbox
from envkit.types import JSON

#: Limits of a service and its launcher together, per episode. Wall time is long, because it runs while the
#: agent thinks. A character that is not ASCII takes 6 or 12 bytes of output.
SERVICE_LIMITS: Final = Limits(
    cpu_s=20.0, wall_s=3600.0, memory_bytes=256 * 2**20, processes=8, output_bytes=8 * 2**20
)
#: Modules that the launcher and most services in Python import, for `envkit.Env.preload`.
PRELOAD: Final = ("hmac", "http.client", "http.server", "subprocess", "urllib.parse")
_PATH: Final = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of a service.

    Args:
        status: the HTTP status.
        text: the body; bytes that are no UTF-8 are replaced.
    """

    status: int
    text: str

    def json(self) -> Any:
        """Decode the body.

        Raises:
            ValueError: it is no JSON.
        """
        return json.loads(self.text)


@final
class Service:
    """A web service that runs in a sandbox, and the host's way to ask it. It ends with the sandbox.

    The service listens on the sandbox's own loopback device, which nothing else can reach. Programs that the
    agent runs in the same sandbox are opened separately and cannot reach it either.

    Args:
        sandbox: belongs to the caller.
        argv: the command that starts the service, as seen from inside the sandbox. One of the form
            ``[sandbox.python, *PYTHON_OPTIONS, "-c", PROGRAM, ...]`` starts faster than others.
        port: where it listens, on 127.0.0.1. Each sandbox has a loopback device of its own, so any port is
            free.
        ready_path: it is ready once it answers a GET of this path with a status of 200 to 299.
        ready_s: longest wait until then, in seconds.
        with_token: give the service a new secret, as the first line of its standard input, and send it with
            every request, as ``Authorization: Bearer TOKEN``. Other programs could read a command line or an
            environment variable.
        timeout_s: longest wait for an answer, in seconds.
        limits: of the service and its launcher together, for the whole episode. ``output_bytes`` also limits
            each answer, as JSON.

    Raises:
        SandboxError: the service was not ready in time; the message quotes its last output.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        argv: Sequence[str],
        *,
        port: int = 8000,
        ready_path: str = "/",
        ready_s: float = 20.0,
        with_token: bool = False,
        timeout_s: float = 10.0,
        limits: Limits = SERVICE_LIMITS,
    ) -> None:
        token, self._timeout_s = secrets.token_hex(16) if with_token else "", timeout_s
        program = (resources.files("envkit.env.wrappers.service") / "guest_launcher.py").read_text()
        self._launcher = Launcher(sandbox, program, "service", limits, token)
        begin = [sandbox.python, *PYTHON_OPTIONS, "-c"]
        is_python = [*argv[: len(begin)]] == begin and len(argv) > len(begin)
        start = {
            "argv": [*argv],
            "program": argv[len(begin)] if is_python else None,
            "port": port,
            "ready_path": ready_path,
            "ready_s": ready_s,
            "answer_bytes": limits.output_bytes,
            "token": token,
        }
        self._launcher.ask(start, ready_s)

    def request(
        self, method: str, path: str, body: JSON = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request.

        Args:
            method: such as ``"GET"``.
            path: begins with a slash; quote what an agent says with `urllib.parse.quote`.
            body: a text is sent as it is, other values as JSON, and ``None`` not at all.
            headers: further headers.

        Raises:
            ContractError: the path holds a blank, a line break or another character that must be quoted.
            SandboxError: no answer: the service has ended, takes too long, or answers with more than
                ``limits.output_bytes``.
        """
        if not _PATH.fullmatch(path):
            raise ContractError(f"the path {path!r} is not quoted; use urllib.parse.quote for its parts")
        text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
        kind = {} if isinstance(body, str) or body is None else {"Content-Type": "application/json"}
        message = {"method": method, "path": path, "headers": {**kind, **(headers or {})}, "body": text}
        answer = self._launcher.ask({**message, "timeout_s": self._timeout_s}, self._timeout_s)
        return Response(answer["status"], answer["body"])
