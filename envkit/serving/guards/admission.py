"""Admission: what must hold before a request is encoded, and before its rows are submitted."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

from envkit.serving.guards.access import Client
from envkit.serving.guards.api_errors import ApiError
from envkit.serving.server import Server


def require_length(server: Server, client: Client, prompt_tokens: int) -> None:
    """Refuse a prompt that is too long for the key or the model.

    Raises:
        ApiError: 400.
    """
    if client.max_prompt_tokens and prompt_tokens > client.max_prompt_tokens:
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens; this key allows {client.max_prompt_tokens}",
            "context_length_exceeded",
        )
    if prompt_tokens >= (context := server.limits.context):
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens; the limit is {context}, answer included",
            "context_length_exceeded",
        )


def require_few(server: Server, client: Client, prompts: int, count: int) -> None:
    """Refuse more answers than a request may have, or than there is ever room for.

    Raises:
        ApiError: 400.
    """
    limits = (client.max_rows, client.max_open_rows or client.max_rows, server.limits.max_waiting)
    if prompts * count > min(limits):
        raise ApiError(
            400, f"{prompts} prompts with n={count}: a request may have {min(limits)} answers", param="n"
        )


def require_room(server: Server, client: Client, rows: int) -> None:
    """Refuse rows that have no place to wait, or that the key may not have beside its open ones.

    Raises:
        ApiError: 503 or 429.
    """
    if server.decoder.waiting + server.read_rows + rows > server.limits.max_waiting:
        raise ApiError(503, "too many requests are waiting; try again later", "overloaded", wait_s=1)
    is_open = server.open_rows[client.name]
    if client.max_open_rows and is_open + rows > client.max_open_rows:
        raise ApiError(
            429,
            f"this key has {is_open} open answers and asks for {rows}; it may have {client.max_open_rows}",
            "rate_limit_exceeded",
            wait_s=1,
        )


@contextmanager
def reading(server: Server, client: Client, rows: int) -> Generator[None]:
    """Count a request's rows while its prompts are encoded and routed, before they are submitted.

    Raises:
        ApiError: see `require_room`.
    """
    require_room(server, client, rows)
    server.open_rows[client.name] += rows
    server.read_rows += rows
    try:
        yield
    finally:
        server.open_rows[client.name] -= rows
        server.read_rows -= rows


def require_allowance(wait_s: float) -> None:
    """Refuse a request if it has to wait.

    Raises:
        ApiError: 429.
    """
    if wait_s:
        message = f"this key's rate limit is reached; try again in {math.ceil(wait_s)} s"
        raise ApiError(429, message, "rate_limit_exceeded", wait_s=wait_s)
