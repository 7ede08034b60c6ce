"""Refuses request bodies that are too large, however they are sent, and those of unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envkit.openai_api.errors import error_object


@final
class BodyLimit:
    """Reads a body before the application sees the request.

    Args:
        app: the application; it reads the bodies of POST requests only.
        limit_bytes: largest body.
        is_known: True if an ``Authorization`` header has a known key. Nobody else's body is read.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int, is_known: Callable[[str], bool]) -> None:
        self._app, self._limit_bytes, self._is_known = app, limit_bytes, is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not self._is_known(Headers(scope=scope).get("authorization", "")):
            problem = "the API key is missing or not known"
            await refusal(401, problem, "invalid_api_key")(scope, receive, send)
            return
        body, is_over = bytearray(), False
        while not is_over:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_over = not message.get("more_body", False)
            if len(body) > self._limit_bytes:
                problem = f"the body has more than {self._limit_bytes:,} bytes"
                await refusal(413, problem, "too_large")(scope, receive, send)
                return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)


def refusal(status: int, message: str, code: str) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse(error_object(status, message, code), status)
