"""OpenAI's error object."""

from __future__ import annotations

from typing import Any, Final

_KINDS: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_object(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an answer that tells an error.

    Args:
        status: of HTTP; it decides the error's type.
        message: for people.
        code: for programs.
        param: the field of the request that is wrong.
    """
    kind = "server_error" if status >= 500 else _KINDS.get(status, "invalid_request_error")
    # Names of fields come from the client; JSON allows texts that UTF-8 has no bytes for.
    texts = {"message": message, "type": kind, "param": param, "code": code}
    return {
        "error": {
            key: text and text.encode(errors="backslashreplace").decode() for key, text in texts.items()
        }
    }
