"""Refuses request bodies that are too large or too slow, however they are sent, and those of unknown keys."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envkit.serving.guards.access import Client
from envkit.serving.guards.api_errors import ApiError, ClientGone, error_response

#: Bodies of the largest size that a key may be sending at once.
AT_ONCE: Final = 16
#: Seconds that a body may take.
_READ_S: Final = 60


@final
class BodyLimit:
    """Reads a body before the application sees the request.

    Args:
        app: the application; it reads the bodies of POST requests only.
        limit_bytes: largest body. The incomplete ones of a key may have `AT_ONCE` times as much together.
        find: returns the client of an ``Authorization`` header; ``None`` if its key is not known. Nobody
            else's body is read.
        read_s: seconds that a body may take.
    """

    def __init__(
        self, app: ASGIApp, limit_bytes: int, find: Callable[[str], Client | None], read_s: float = _READ_S
    ) -> None:
        self._app, self._limit_bytes, self._find, self._read_s = app, limit_bytes, find, read_s
        #: Bytes of incomplete bodies, by the digest of the key.
        self._reading = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            client = self._find(Headers(scope=scope).get("authorization", ""))
            if client is None:
                raise ApiError(401, "the API key is missing or not known", "invalid_api_key")
            body = await self._read(receive, client.digest)
        except ClientGone:
            return
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive, key: str) -> bytes:
        """Read a body.

        Raises:
            ApiError: it is too large or too slow, or the key sends too much at once.
            ClientGone: the client has left.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_s):
                while (message := await receive())["type"] != "http.disconnect":
                    part = message.get("body", b"")
                    body += part
                    self._reading[key] += len(part)
                    if len(body) > self._limit_bytes:
                        raise ApiError(
                            413, f"the body has more than {self._limit_bytes:,} bytes", "too_large"
                        )
                    if not message.get("more_body", False):
                        return bytes(body)
                    if self._reading[key] > (most := AT_ONCE * self._limit_bytes):
                        raise ApiError(
                            429,
                            f"this key is sending bodies of more than {most:,} bytes at once; send fewer at "
                            "a time",
                            "rate_limit_exceeded",
                            wait_s=1,
                        )
                raise ClientGone
        except TimeoutError:
            raise ApiError(
                408, f"the body was not complete after {self._read_s:g} s; send it again", "timeout"
            ) from None
        finally:
            self._reading[key] -= len(body)
