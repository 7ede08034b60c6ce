"""Refuses request bodies that are too large, however they are sent."""

from __future__ import annotations

from typing import final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@final
class BodyLimit:
    """Reads a body before the application sees the request.

    Args:
        app: the application.
        limit_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app, self._limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, is_over = bytearray(), False
        while not is_over:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_over = not message.get("more_body", False)
            if len(body) > self._limit_bytes:
                error = {
                    "message": f"the body has more than {self._limit_bytes:,} bytes",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "too_large",
                }
                await JSONResponse({"error": error}, 413)(scope, receive, send)
                return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)
