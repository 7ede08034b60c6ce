"""A local chat-completions server whose answers are set by the test."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}

Body = dict[str, Any]
#: (body of the request, number of earlier requests) -> answer
Say = Callable[[Body, int], "Response | Awaitable[Response]"]


def completion(text: Any = "hello", *, finish: str = "stop", usage: Any = USAGE, **more: Any) -> Response:
    """Return a successful response; ``more`` are additional fields of its message."""
    message = {"role": "assistant", "content": text, **more}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    content = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": choices}
    text = json.dumps(content | ({} if usage is None else {"usage": usage}))
    return Response(text, media_type="application/json")


def call(name: str, arguments: Any, number: int = 0, **more: Any) -> Body:
    """Return a tool call as in a message; arguments that are not text are encoded as JSON."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": f"id-{number}", "type": "function", "function": {"name": name, "arguments": text}, **more}


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Response:
    """Return an error in OpenAI's format."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": message, "code": code}}, status, named)


class Api:
    """The server: answers with the function last given to `begin`, and records requests.

    It runs in a thread until the ``with`` block ends.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1/"
        app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._over = threading.Event()
        self.begin(lambda body, number: Response(status_code=501))

    def begin(self, say: Say) -> Api:
        """Answer with ``say`` from now on, and clear the recorded requests."""
        self.end()
        self._say, self._over = say, threading.Event()
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        return self

    def end(self) -> None:
        """Let hanging and dripping answers end."""
        self._over.set()

    async def hang(self) -> Response:
        """Never answer."""
        over = self._over
        while not over.is_set():
            await asyncio.sleep(0.01)
        return Response()

    def drip(self) -> Response:
        """Return an endless response that sends a space every 20 ms."""
        over = self._over

        async def spaces() -> Any:
            while not over.is_set():
                yield b" "
                await asyncio.sleep(0.02)

        return StreamingResponse(spaces(), media_type="application/json")

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        number = len(self.asked)
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = self._say(body, number)
            return await answer if isinstance(answer, Awaitable) else answer
        finally:
            self._at_once -= 1

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
