"""Exchanges lines of JSON with a launcher: the program in a sandbox that starts an application."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, final

from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, PeerGone, Sandbox, StopReason

#: Seconds to wait for the launcher, in addition to what it waits for the application.
_LAUNCHER_S: Final = 10.0
#: Characters of the last output in an error.
_SHOWN: Final = 500


@final
class Launcher:
    """A running launcher, which answers each message with one. It ends with the sandbox.

    Args:
        sandbox: belongs to the caller.
        program: its source, in Python.
        application: what it starts, for messages: ``"service"``.
        limits: of the launcher and the application together.
        token: a secret that messages must not tell; may be empty.
    """

    def __init__(
        self, sandbox: Sandbox, program: str, application: str, limits: Limits, token: str = ""
    ) -> None:
        self._application, self._token = application, token
        self._peer = sandbox.open([sandbox.python, *PYTHON_OPTIONS, "-c", program], limits=limits)

    def ask(self, message: Mapping[str, Any], within_s: float) -> Mapping[str, Any]:
        """Send a message and return the answer.

        Args:
            message: what JSON can hold.
            within_s: longest time that the launcher waits for the application.

        Raises:
            SandboxError: the application or the launcher failed; the message quotes their last output.
        """
        try:
            answer = json.loads(self._peer.ask(json.dumps(message).encode(), within_s + _LAUNCHER_S))
        except PeerGone:  # its message may quote half of the token, so it is not passed on
            stop = self._peer.close().stop
            by_limit = stop not in (StopReason.EXITED, StopReason.SIGNALED)
            why = f"a limit ended it: {stop}" if by_limit else "it ended, or did not answer"
            raise self.failed(why) from None
        if (why := answer.get("failure")) is not None:
            raise self.failed(why)
        return answer

    def failed(self, why: str) -> SandboxError:
        """End the application; returns the error that says why it failed, and quotes the last output."""
        last = self._without_token(self._peer.close().stderr.decode(errors="replace"))[-_SHOWN:]
        problem = f"the {self._application} failed: {self._without_token(why)}"
        return SandboxError(" ".join(f"{problem}; its last output: {last or '-'}".split()))

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "[token]") if self._token else text
