"""Ends a server in two steps: it drains with its port open, then it closes."""

from __future__ import annotations

import logging
import math
from types import FrameType
from typing import final

import uvicorn

from envkit.serving.server import Server

log = logging.getLogger("envkit.serving")


@final
class DrainingServer(uvicorn.Server):
    """Lets open answers end after SIGTERM or SIGINT. Until then, it tells everyone else that it drains.

    uvicorn closes its port at the first signal, so that a load balancer would see an error of the network. A
    second signal cancels the open answers.

    Args:
        config: uvicorn's.
        server: its application's.
        drain_s: seconds that open answers have.
    """

    def __init__(self, config: uvicorn.Config, server: Server, drain_s: float) -> None:
        super().__init__(config)
        self._server, self._drain_s = server, drain_s
        self._signal: int | None = None
        self._is_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; cancel the open answers at the second. uvicorn calls it."""
        if self.should_exit:
            super().handle_exit(sig, frame)
        else:
            self._server.drain(self._drain_s if self._signal is None else 0)
            self._signal = self._signal or sig

    async def on_tick(self, counter: int) -> bool:
        """Close when the open answers have ended. uvicorn calls it ten times a second."""
        left_s = self._server.drain_left_s
        if self._signal is not None and left_s is not None:
            open_rows = self._server.open_rows.total()
            if not self._is_told:
                log.info("draining: %d answers are open and have %d s", open_rows, left_s)
                self._is_told = True
            if not (open_rows and left_s):
                # For answers that are drawn, but not sent yet.
                self.config.timeout_graceful_shutdown = math.ceil(left_s)
                super().handle_exit(self._signal, None)
        return await super().on_tick(counter)
