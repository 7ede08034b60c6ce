"""Bodies while they are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from envkit.serving.guards.access import Access, Client, digest
from envkit.serving.guards.body_limit import AT_ONCE, BodyLimit

LIMIT = 100
ACCESS = Access([Client("ann", digest(b"one")), Client("bob", digest(b"two"))])


class Sent:
    """A request whose body comes in parts, and its answer."""

    def __init__(self, key: str, parts: Sequence[bytes], ends: bool = True) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
        }
        self.parts, self.ends = [*parts], ends
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self.waits, self.goes_on = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Any:
        if not self.parts:
            self.waits.set()
            await self.goes_on.wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        body = self.parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.parts) or not self.ends}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        self.body += message.get("body", b"")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def code(sent: Sent) -> tuple[int, str]:
    return sent.status, json.loads(sent.body)["error"]["code"]


def test_the_bodies_of_a_key_that_are_not_complete_are_bounded_together() -> None:
    async def run() -> None:
        app = BodyLimit(echo, LIMIT, ACCESS.client)
        held = [Sent("one", [b"x" * LIMIT], ends=False) for _ in range(AT_ONCE)]
        tasks = [asyncio.create_task(app(sent.scope, sent.receive, sent.send)) for sent in held]
        for sent in held:
            await sent.waits.wait()
        late, whole, other = Sent("one", [b"x"], ends=False), Sent("one", [b"y"]), Sent("two", [b"a", b"b"])
        for sent in (late, whole, other):
            await app(sent.scope, sent.receive, sent.send)
        assert code(late) == (429, "rate_limit_exceeded")
        assert late.headers[b"retry-after"] == b"1"
        assert (whole.status, whole.body) == (200, b"y"), "a body that is complete is not held"
        assert (other.status, other.body) == (200, b"ab"), "another key has its own bound"
        for sent in held:
            sent.goes_on.set()
        await asyncio.gather(*tasks)
        assert {sent.status for sent in held} == {200}
        again = Sent("one", [b"c", b"d"])
        await app(again.scope, again.receive, again.send)
        assert again.body == b"cd", "what was read is not counted any more"

    asyncio.run(run())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def run() -> Sent:
        sent = Sent("one", [b"x"], ends=False)
        await BodyLimit(echo, LIMIT, ACCESS.client, read_s=0.01)(sent.scope, sent.receive, sent.send)
        return sent

    assert code(asyncio.run(run())) == (408, "timeout")


@pytest.mark.parametrize(
    ("key", "parts", "expected"),
    [("one", [b"x" * 60] * 2, (413, "too_large")), ("three", [b"x"], (401, "invalid_api_key"))],
)
def test_large_bodies_and_unknown_keys_are_refused(
    key: str, parts: list[bytes], expected: tuple[int, str]
) -> None:
    async def run() -> Sent:
        sent = Sent(key, parts)
        await BodyLimit(echo, LIMIT, ACCESS.client)(sent.scope, sent.receive, sent.send)
        return sent

    assert code(asyncio.run(run())) == expected
