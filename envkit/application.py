"""The application protocol: a program an agent works with, apart from any task or reward."""

from __future__ import annotations

from typing import Protocol

from envkit.sandbox import Sandbox


class Application(Protocol):
    """A real program behind text actions. It knows nothing of tasks or rewards.

    One application serves many task sets. It lives in a sandbox that the caller owns, and ends with it; an
    action that the application cannot understand is answered with an observation that says how to say
    it right, never with an exception.
    """

    def launch(self, sandbox: Sandbox) -> None:
        """Start on a sandbox whose workspace holds the files to work on."""
        ...

    def observe(self) -> str:
        """The present state, as an agent would want to read it first."""
        ...

    def act(self, action: str) -> str:
        """Carry out one action and return what there is to see afterwards."""
        ...
