"""One request: its rows, and the answers while they are drawn."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from envkit.engine.protocol import Sampling
from envkit.engine.running import Failed, RowRequest
from envkit.errors import EnvkitError, StoreError, UsageError
from envkit.openai_api.errors import error_object
from envkit.openai_api.replies import Piece, ReplyForm
from envkit.openai_api.schemas import ChatBody, CompletionBody
from envkit.openai_api.text import TextStream, ToolCallStream
from envkit.serving.answer_stream import AnswerStream
from envkit.serving.guards.access import Client
from envkit.serving.guards.admission import require_allowance, require_length, require_room
from envkit.serving.guards.api_errors import ApiError, ClientGone
from envkit.serving.ledger import Entry
from envkit.serving.server import Server

_T = TypeVar("_T")
#: Temperatures below count as 0: the quotients of logits would not be finite.
_GREEDY_BELOW = 1e-4
#: A smaller ``top_p`` counts as this one: one token is kept either way, and float32 would round it to 0.
_SMALLEST_TOP_P = 1e-9
_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
log = logging.getLogger("envkit.serving")


class Generation:
    """One request: its rows, and the answers while they are drawn.

    Args:
        server: draws them.
        client: who asks.
        body: the request, with the model that answers.
        prompts: its prompts in ids; each gets ``n`` answers.
        max_tokens: of an answer; ``None`` for the server's default.
        top_logprobs: as in `RowRequest`.
        with_tools: tool calls are read from the answers.
        session: that the answers are recorded in; ``None`` for none.
        started_s: when the request had come, by `time.monotonic`.

    Raises:
        ApiError: there is no such model for the key, or a prompt is too long.
    """

    def __init__(
        self,
        *,
        server: Server,
        client: Client,
        body: ChatBody | CompletionBody,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int | None,
        top_logprobs: int | None,
        with_tools: bool,
        session: str | None,
        started_s: float,
    ) -> None:
        self.server, self.client, self.body, self.prompts = server, client, body, prompts
        self.session = session
        self.version = server.entry(client, body.model).version
        #: By `time.monotonic`: when the request had come, and its first token.
        self.started_s, self.first_s, self.waited_s = started_s, 0.0, 0.0
        count = body.n or 1
        seed = secrets.randbits(62) if body.seed is None else body.seed
        self.rows: list[RowRequest] = []
        self.choices: list[AnswerStream] = []
        for number, prompt in enumerate(prompts):
            sampling = self._sampling(len(prompt), max_tokens)
            for index in range(count):
                key = (seed, number, index)
                self.rows.append(RowRequest(prompt, key, sampling, self.version, top_logprobs, client.digest))
                self.choices.append(
                    AnswerStream(
                        server.tokenizer,
                        TextStream(_decoder(server.tokenizer), sampling.stop_strings),
                        server.renderer.stop_id,
                        ToolCallStream() if with_tools else None,
                        one_call=isinstance(body, ChatBody) and body.parallel_tool_calls is False,
                        logprobs=None if top_logprobs is None else [],
                    )
                )

    def _sampling(self, prompt_tokens: int, max_tokens: int | None) -> Sampling:
        client, limits = self.client, self.server.limits
        require_length(self.server, client, prompt_tokens)
        wanted = max_tokens or limits.default_max_tokens
        wanted = min(wanted, client.max_tokens or wanted, limits.context - prompt_tokens)
        temperature = 1.0 if self.body.temperature is None else self.body.temperature
        if temperature < _GREEDY_BELOW:
            temperature = 0.0
        top_p = 1.0 if self.body.top_p is None else max(self.body.top_p, _SMALLEST_TOP_P)
        return Sampling(temperature, wanted, top_p=top_p, stop_strings=self.body.stop_strings)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far, as OpenAI counts them: each prompt once."""
        read, drawn = sum(map(len, self.prompts)), sum(len(choice.drawn) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    async def answer(self, request: Request, reply: ReplyForm) -> Response:
        """Answer at once or as a stream.

        Raises:
            ApiError: the rows are refused, or one fails.
            ClientGone: the client has left before the answer, or the first byte of its stream.
        """
        if self.server.log_prompts:
            body = json.dumps(self.body.model_dump(exclude_none=True))
            log.info("prompt of %s: %s", self.client.name, body)
        if self.body.stream:
            pieces = self._pieces()
            # An error has a status of its own only before the first byte.
            first = await unless_gone(request, anext(pieces))
            return StreamingResponse(
                self._events(pieces, first, reply), media_type="text/event-stream", headers=_NO_CACHE
            )
        await unless_gone(request, self._draw())
        return JSONResponse(reply.whole(self.choices, self.usage))

    async def _draw(self) -> None:
        async for _ in self._pieces():
            pass

    async def _events(
        self, pieces: AsyncGenerator[tuple[int, Piece]], first: tuple[int, Piece], reply: ReplyForm
    ) -> AsyncGenerator[str]:
        """Server-sent events of a stream."""
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage
        async with aclosing(pieces):
            try:
                for index in range(len(self.choices)):
                    for chunk in reply.opening(index):
                        yield _event(chunk)
                for chunk in reply.chunks(*first):
                    yield _event(chunk)
                async for index, piece in pieces:
                    for chunk in reply.chunks(index, piece):
                        yield _event(chunk)
                if with_usage:
                    yield _event(reply.usage(self.usage))
            except ApiError as error:
                yield _event(error_object(error.status, str(error), error.code, error.param))
            yield "data: [DONE]\n\n"

    def _reserve(self) -> int:
        """Count the rows of the request, and the tokens that it may use; returns the number of these.

        It happens in the step of the event loop that submits the rows. Otherwise, requests that come together
        would all find the same room.

        Raises:
            ApiError: too many rows wait, or the key has no allowance left.
        """
        server, client = self.server, self.client
        require_room(server, client, len(self.rows))
        tokens = sum(map(len, self.prompts)) + sum(row.sampling.max_new_tokens for row in self.rows)
        require_allowance(server.rates.reserve(client, tokens))
        server.open_rows[client.name] += len(self.rows)
        return tokens

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Draw all rows; account for what was drawn, also if the client leaves."""
        server, version, outcome = self.server, self.version, "cancelled"
        reserved = self._reserve()

        def prepare() -> None:
            if version is not None:
                server.models.register(self.body.model, version, server.adapters, server.decoder.uses)

        try:
            async with aclosing(server.decoder.stream(self.rows, prepare)) as events:
                async for index, event in events:
                    if isinstance(event, Failed):
                        outcome = "failed"
                        raise failure(event.error)
                    if not self.first_s:
                        self.first_s, self.waited_s = time.monotonic(), event.waited_s
                    yield index, self.choices[index].push(event)
            outcome = "done"
        except EnvkitError as error:
            outcome = "failed"
            raise failure(error) from error
        except Exception:  # a fault of the server, which nobody should be billed for
            outcome = "failed"
            raise
        finally:
            server.open_rows[self.client.name] -= len(self.rows)
            self._account(outcome, reserved)
            if self.session is not None and outcome != "failed":
                self._record(self.session)

    def _record(self, session: str) -> None:
        """Add the answers to a session, as far as they were drawn."""
        for row, choice in zip(self.rows, self.choices, strict=True):
            if choice.drawn:
                self.server.sessions.add(
                    self.client.digest,
                    session,
                    self.body.model,
                    row.prompt_ids,
                    choice.drawn,
                    choice.finish,
                )

    def _account(self, outcome: str, reserved: int) -> None:
        server, usage, now_s = self.server, self.usage, time.monotonic()
        # A prompt that was never read costs nothing. The key's rate counts it: it may have been
        # read in part when the client left.
        count = self.body.n or 1
        answers = [self.choices[at : at + count] for at in range(0, len(self.choices), count)]
        was_read = [any(choice.drawn for choice in choices) for choices in answers]
        read = sum(len(prompt) for prompt, begun in zip(self.prompts, was_read, strict=True) if begun)
        entry = Entry(
            self.client.name,
            self.body.model,
            read,
            usage["completion_tokens"],
            now_s - self.started_s,
            outcome,
        )
        used = usage["total_tokens"] if outcome == "cancelled" else read + usage["completion_tokens"]
        server.rates.give_back(self.client, reserved - used)
        first_s = self.first_s - self.started_s if self.first_s else None
        server.metrics.count(entry, first_s, self.waited_s)
        if server.ledger is not None:
            try:
                server.ledger.add(entry)
            except StoreError as error:  # the tokens are in the log
                log.error("%s", error)
        log.info(
            "%s asked %s: %d + %d tokens in %.2f s, %s",
            *(
                entry.client,
                entry.model,
                entry.prompt_tokens,
                entry.completion_tokens,
                entry.seconds,
                outcome,
            ),
        )


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def failure(error: EnvkitError) -> ApiError:
    """Make the error that a client sees for a row that failed. Paths of this machine stay in the log."""
    log.error("a request failed: %s", error)
    if isinstance(error, UsageError):
        return ApiError(
            400, "the request or its adapter cannot be used; the server's log has the reason", "failed"
        )
    return ApiError(503, "the server cannot answer now", "unavailable", wait_s=1)


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of some work, which is cancelled if the client leaves before.

    Raises:
        ClientGone: it has left.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
