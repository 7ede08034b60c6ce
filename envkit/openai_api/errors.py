"""OpenAI's error object, and the field that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

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


def field_error(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str]:
    """Return which field of a body is wrong, and why. The name is empty if it is the body itself.

    A field that may be a text or a list has errors of both forms, which pydantic tells apart by their places,
    such as ``stop.list[str]``. The form that was meant is the one whose errors are the deepest in the given
    value; among these, errors other than a wrong type go first.

    Args:
        errors: pydantic's, at least one.
        body: as it was given.
    """
    field = _place(errors[0], body)
    messages: dict[tuple[int, bool, tuple[str | int, ...]], list[str]] = {}
    for error in errors:
        place = _place(error, body)
        if place[: len(field)] == field:
            fit = (len(place), not error["type"].endswith("_type"), place)
            messages.setdefault(fit, []).append(error["msg"])
    (_, _, place), told = max(messages.items(), key=lambda found: found[0][:2])
    return ".".join(map(str, place)), " or ".join(dict.fromkeys(told))


def _place(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Keys and indices that lead to an error in a body, without the names of forms between them."""
    place = list[str | int]()
    for part in cast("tuple[str | int, ...]", error["loc"]):
        if isinstance(body, list) and isinstance(part, int):
            body = cast("list[Any]", body)[part]
        elif isinstance(body, dict) and part in body:
            body = cast("dict[str | int, Any]", body)[part]
        elif not isinstance(body, dict) or error["type"] != "missing":
            continue
        place.append(part)
    return tuple(place)
