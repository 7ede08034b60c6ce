"""Refuses requests that were sent to another name than this machine's."""

from __future__ import annotations

from collections.abc import Set
from typing import final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from envkit.serving.guards.api_errors import ApiError, error_response


@final
class HostCheck:
    """Protects a server without keys from web pages.

    A page may point its own name at this machine's address, and a browser then lets it read the answers (DNS
    rebinding). Its requests still have the page's name as their ``Host``.

    Args:
        app: the application.
        names: allowed in ``Host``, in lower case, without a port.
    """

    def __init__(self, app: ASGIApp, names: Set[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _name(Headers(scope=scope).get("host", "")) not in self._names:
            names = ", ".join(sorted(self._names))
            problem = f"the Host of this request is not served; without API keys, it must be one of {names}"
            await error_response(ApiError(400, problem, "invalid_host"))(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _name(host: str) -> str | None:
    """The name in a ``Host`` header.

    >>> _name("LocalHost:80"), _name("[::1]:80"), _name("[")
    ('localhost', '::1', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
