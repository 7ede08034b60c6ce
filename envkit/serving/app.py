"""The web application: OpenAI's endpoints, health and metrics."""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions inside `make_app`.

import asyncio
import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Sampling
from envkit.engine.running import Failed, RowRequest
from envkit.errors import EnvkitError, StoreError, UsageError
from envkit.openai_api.messages import template_message
from envkit.openai_api.replies import ChatReply, CompletionReply, Reply
from envkit.openai_api.schemas import ChatBody, CompletionBody
from envkit.openai_api.text import TextStream, ToolCallStream
from envkit.serving.access import Access, Client, RateLimits
from envkit.serving.body_limit import BodyLimit
from envkit.serving.choice import Choice, Piece
from envkit.serving.decoder import Adapters, Decoder
from envkit.serving.host_check import HostCheck
from envkit.serving.ledger import Entry, Ledger
from envkit.serving.metrics import ErrorCount, Metrics
from envkit.serving.models import Models

_T = TypeVar("_T")
#: Temperatures below count as 0: the quotients of logits would not be finite.
_GREEDY_BELOW = 1e-4
#: A smaller ``top_p`` counts as this one: one token is kept either way, and float32 would round it to 0.
_SMALLEST_TOP_P = 1e-9
#: Seconds that requests have to write their rows of the ledger after the drain has cancelled them.
_CLOSE_S = 5
log = logging.getLogger("envkit.serving")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the whole server.

    Args:
        max_body_bytes: of a request's body.
        max_waiting: rows that may wait to be admitted; beyond, requests are refused.
        default_max_tokens: of an answer, if the request names none.
        context: tokens that the model reads at most, the answer included.
        vocabulary: number of token ids.
    """

    max_body_bytes: int
    max_waiting: int
    default_max_tokens: int
    context: int
    vocabulary: int


@dataclass(slots=True)
class Server:
    """What the endpoints share."""

    worker: Decoder
    pool: Adapters
    models: Models
    tokenizer: Any
    limits: Limits
    access: Access = field(default_factory=Access)
    ledger: Ledger | None = None
    log_prompts: bool = False
    #: Names that requests may be sent to; ``None`` for any.
    hosts: Set[str] | None = None
    renderer: ChatRenderer = field(init=False)
    #: Renders and encodes prompts beside the event loop. One thread, as encoding switches the tokenizer.
    encoder: ThreadPoolExecutor = field(init=False)
    #: Rows of each client whose requests are not in the ledger yet.
    open_rows: Counter[str] = field(default_factory=Counter[str], init=False)
    rates: RateLimits = field(default_factory=RateLimits, init=False)
    metrics: Metrics = field(init=False)
    #: When the last answers are cancelled, by `time.monotonic`; ``None`` if the server does not drain.
    _drain_until_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.renderer = ChatRenderer(self.tokenizer)
        self.encoder = ThreadPoolExecutor(1, "envkit-encoder")
        self.metrics = Metrics(self.worker, self.pool)

    def drain(self, seconds: float) -> None:
        """Refuse new completions from now on. Those that are open have this time to end."""
        self._drain_until_s = time.monotonic() + seconds

    @property
    def drain_left_s(self) -> float | None:
        """Seconds that open completions have left; ``None`` if the server does not drain."""
        return None if self._drain_until_s is None else max(self._drain_until_s - time.monotonic(), 0)

    def template_reads(self, field: str) -> bool:
        """True if the chat template has a word for a field. It would leave out another one silently."""
        return field in str(self.tokenizer.get_chat_template())


class ApiError(Exception):
    """An error for the client, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        wait_s: float = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.wait_s = status, code, param, wait_s


def make_app(server: Server) -> FastAPI:
    """Make the application; it starts the worker, and stops it after the last open request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        server.worker.start()
        yield
        deadline_s = time.monotonic() + _CLOSE_S
        while server.open_rows.total() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        server.worker.stop()
        server.encoder.shutdown(cancel_futures=True)
        if server.ledger is not None:
            server.ledger.close()

    app = FastAPI(title="envkit serve", lifespan=lifespan)
    app.add_middleware(
        BodyLimit,
        limit_bytes=server.limits.max_body_bytes,
        is_known=lambda authorization: server.access.client(authorization) is not None,
    )
    if server.hosts is not None:
        app.add_middleware(HostCheck, names=server.hosts)
    app.add_middleware(ErrorCount, count=server.metrics.count_error)
    _handle_errors(app)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "OpenAI's error object"}
        for status in (400, 401, 403, 404, 413, 422, 429, 503)
    }

    @app.get("/health", responses={503: {"description": "draining or failed"}})
    async def health() -> Response:
        if server.worker.error is not None:
            return JSONResponse({"status": "failed"}, 503)
        if server.drain_left_s is not None:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses=errors)
    async def metrics(request: Request) -> Response:
        if not _client(server, request).admin:
            raise ApiError(403, "metrics name all models; this key may not see them", "forbidden")
        return Response(server.metrics.render(), media_type=server.metrics.content_type)

    @app.get("/v1/models", responses=errors)
    async def list_models(request: Request) -> Response:
        client = _client(server, request)
        found = await asyncio.to_thread(lambda: [*_models(server, client)])
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{model:path}", responses=errors)
    async def get_model(model: str, request: Request) -> Response:
        return JSONResponse(_model(server, _client(server, request), model))

    # A dependency is called before the body is validated. So a request that is not valid counts, too.
    async def enter(request: Request) -> Client:
        return _enter(server, request)

    @app.post("/v1/chat/completions", responses=errors)
    async def chat(body: ChatBody, request: Request, client: Annotated[Client, Depends(enter)]) -> Response:
        _require_few(client, 1, body.n or 1)
        if len(body.messages) >= server.limits.context:
            raise ApiError(
                400,
                f"there are {len(body.messages)} messages; the limit is {server.limits.context} tokens",
                "context_length_exceeded",
            )
        if body.response_format not in (None, {"type": "text"}):
            raise ApiError(400, "response_format: only text is supported", param="response_format")
        with_tools = bool(body.tools) and body.tool_choice != "none"
        if with_tools and not server.template_reads("tools"):
            raise ApiError(400, "the chat template of this model knows no tools", param="tools")
        if any(message.tool_calls for message in body.messages) and not server.template_reads("tool_calls"):
            raise ApiError(400, "the chat template of this model knows no tool calls", param="messages")
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] if with_tools else []
        try:
            messages = [template_message(message) for message in body.messages]
        except UsageError as error:
            raise ApiError(400, str(error), param="messages") from error
        prompt = await _ids(server, lambda: server.renderer.messages(messages, tools), "messages")
        top = (body.top_logprobs or 0) if body.logprobs else None
        play = _Play(
            server, client, body, [prompt], body.max_completion_tokens or body.max_tokens, top, with_tools
        )
        return await play.answer(request, ChatReply(body.model))

    @app.post("/v1/completions", responses=errors)
    async def completions(
        body: CompletionBody, request: Request, client: Annotated[Client, Depends(enter)]
    ) -> Response:
        texts = _prompts(body)
        _require_few(client, len(texts), body.n or 1)
        prompts = [await _prompt_ids(server, text) for text in texts]
        play = _Play(server, client, body, prompts, body.max_tokens, body.logprobs, with_tools=False)
        return await play.answer(request, CompletionReply(body.model))

    return app


class _Play:
    """One request: its rows, and the answers while they are drawn."""

    def __init__(
        self,
        server: Server,
        client: Client,
        body: ChatBody | CompletionBody,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int | None,
        top_logprobs: int | None,
        with_tools: bool,
    ) -> None:
        self.server, self.client, self.body, self.prompts = server, client, body, prompts
        self.version = _find(client, body.model, server.models.version)
        self.started_s, self.first_s, self.waited_s = time.monotonic(), 0.0, 0.0
        count = body.n or 1
        seed = secrets.randbits(62) if body.seed is None else body.seed
        self.rows: list[RowRequest] = []
        self.choices: list[Choice] = []
        for number, prompt in enumerate(prompts):
            sampling = self._sampling(len(prompt), max_tokens)
            for index in range(count):
                key = (seed, number, index)
                self.rows.append(RowRequest(prompt, key, sampling, self.version, top_logprobs, client.name))
                self.choices.append(
                    Choice(
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
        if client.max_prompt_tokens and prompt_tokens > client.max_prompt_tokens:
            raise ApiError(
                400,
                f"the prompt has {prompt_tokens} tokens; this key allows {client.max_prompt_tokens}",
                "context_length_exceeded",
            )
        if prompt_tokens >= limits.context:
            raise ApiError(
                400,
                f"the prompt has {prompt_tokens} tokens; the limit is {limits.context}, answer included",
                "context_length_exceeded",
            )
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
        read, drawn = sum(map(len, self.prompts)), sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    async def answer(self, request: Request, reply: Reply) -> Response:
        """Answer at once or as a stream."""
        if self.server.log_prompts:
            body = json.dumps(self.body.model_dump(exclude_none=True))
            log.info("prompt of %s: %s", self.client.name, body)
        if self.body.stream:
            pieces = self._pieces()
            # An error has a status of its own only before the first byte.
            first = await _unless_gone(request, anext(pieces))
            if first is None:
                return Response(status_code=499)  # nobody reads it
            return StreamingResponse(
                self._events(pieces, first, reply), media_type="text/event-stream", headers=_NO_CACHE
            )
        if await _unless_gone(request, self._draw()) is None:
            return Response(status_code=499)
        return JSONResponse(reply.whole(self.choices, self.usage))

    async def _draw(self) -> bool:
        async for _ in self._pieces():
            pass
        return True

    async def _events(
        self, pieces: AsyncGenerator[tuple[int, Piece]], first: tuple[int, Piece], reply: Reply
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
                yield _event(_error_object(error.status, str(error), error.code, error.param))
            yield "data: [DONE]\n\n"

    def _reserve(self) -> int:
        """Count the rows of the request, and the tokens that it may use; returns the number of these.

        It happens in the step of the event loop that submits the rows. Otherwise, requests that come together
        would all find the same room.

        Raises:
            ApiError: too many rows wait, or the key has no allowance left.
        """
        server = self.server
        if server.worker.waiting + len(self.rows) > server.limits.max_waiting:
            raise ApiError(503, "too many requests are waiting; try again later", "overloaded", wait_s=1)
        is_open, client = server.open_rows[self.client.name], self.client
        if client.max_open_rows and is_open + len(self.rows) > client.max_open_rows:
            raise ApiError(
                429,
                f"this key has {is_open} open answers and asks for {len(self.rows)}; it may have "
                f"{client.max_open_rows}",
                "rate_limit_exceeded",
                wait_s=1,
            )
        tokens = sum(map(len, self.prompts)) + sum(row.sampling.max_new_tokens for row in self.rows)
        _require_allowance(server.rates.reserve(client, tokens))
        server.open_rows[client.name] += len(self.rows)
        return tokens

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Draw all rows; account for what was drawn, also if the client leaves."""
        server, version, outcome = self.server, self.version, "cancelled"
        reserved = self._reserve()

        def prepare() -> None:
            if version is not None:
                server.models.register(self.body.model, version, server.pool, server.worker.uses)

        try:
            async with aclosing(server.worker.stream(self.rows, prepare)) as events:
                async for index, event in events:
                    if isinstance(event, Failed):
                        outcome = "failed"
                        raise _failure(event.error)
                    if not self.first_s:
                        self.first_s, self.waited_s = time.monotonic(), event.waited_s
                    yield index, self.choices[index].push(event)
            outcome = "done"
        except EnvkitError as error:
            outcome = "failed"
            raise _failure(error) from error
        finally:
            server.open_rows[self.client.name] -= len(self.rows)
            self._account(outcome, reserved)

    def _account(self, outcome: str, reserved: int) -> None:
        server, usage, now_s = self.server, self.usage, time.monotonic()
        # A prompt that was never read costs nothing. The key's rate counts it: it may have been
        # read in part when the client left.
        read = usage["prompt_tokens"] if self.first_s else 0
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


_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _client(server: Server, request: Request) -> Client:
    """Find who asks.

    Raises:
        ApiError: the key is missing or wrong.
    """
    client = server.access.client(request.headers.get("authorization", ""))
    if client is None:
        raise ApiError(401, "the API key is missing or not known", "invalid_api_key")
    return client


def _enter(server: Server, request: Request) -> Client:
    """Find who asks, and count the request.

    Raises:
        ApiError: the key is missing or wrong, or has no allowance left, or the server drains.
    """
    client = _client(server, request)
    if (left_s := server.drain_left_s) is not None:
        raise ApiError(503, "the server is shutting down; ask again later", "draining", wait_s=max(left_s, 1))
    _require_allowance(server.rates.enter(client))
    return client


def _require_allowance(wait_s: float) -> None:
    """Refuse a request if it has to wait.

    Raises:
        ApiError: 429.
    """
    if wait_s:
        message = f"this key's rate limit is reached; try again in {math.ceil(wait_s)} s"
        raise ApiError(429, message, "rate_limit_exceeded", wait_s=wait_s)


def _require_few(client: Client, prompts: int, count: int) -> None:
    """Refuse too many answers, before a prompt is encoded.

    Raises:
        ApiError: prompts times ``n`` is more than the key allows.
    """
    if prompts * count > client.max_rows:
        raise ApiError(
            400, f"{prompts} prompts with n={count}: a request may have {client.max_rows} answers", param="n"
        )


def _find(client: Client, model: str, read: Callable[[str], _T]) -> _T:
    """Read something of a model; one that a key may not use does not exist for it.

    Raises:
        ApiError: there is no such model.
    """
    try:
        if client.may_use(model):
            return read(model)
    except LookupError:
        pass
    raise ApiError(404, f"the model {model!r} does not exist", "model_not_found", param="model")


def _model(server: Server, client: Client, name: str) -> dict[str, Any]:
    created, base = _find(client, name, server.models.created), server.models.base
    parent = {"parent": base} if name != base and client.may_use(base) else {}
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "envkit",
        "max_model_len": server.limits.context,
        **parent,
    }


def _models(server: Server, client: Client) -> Iterator[dict[str, Any]]:
    """All models that a key may use."""
    for name in server.models.ids():
        with suppress(ApiError):
            yield _model(server, client, name)


def _prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    prompt: Any = body.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def _prompt_ids(server: Server, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        ids = await _ids(server, lambda: server.renderer.plain(prompt), "prompt")
    else:
        ids = tuple(prompt)
        if not all(0 <= token < server.limits.vocabulary for token in ids):
            raise ApiError(400, f"a token id is not in 0 to {server.limits.vocabulary - 1}", param="prompt")
    if not ids:
        raise ApiError(400, "the prompt has no tokens", param="prompt")
    return ids


async def _ids(server: Server, render: Callable[[], tuple[int, ...]], param: str) -> tuple[int, ...]:
    """Render and encode a prompt beside the event loop: a long one takes seconds."""
    try:
        return await asyncio.get_running_loop().run_in_executor(server.encoder, render)
    except EnvkitError as error:
        raise ApiError(400, str(error), param=param) from error


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def _failure(error: EnvkitError) -> ApiError:
    """What a client is told of a row that failed. Paths of this machine stay in the log."""
    log.error("a request failed: %s", error)
    if isinstance(error, UsageError):
        return ApiError(
            400, "the request or its adapter cannot be used; the server's log has the reason", "failed"
        )
    return ApiError(503, "the server cannot answer now", "unavailable", wait_s=1)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return the result of some work. If the client leaves before, cancel the work and return ``None``."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error_object(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    # Names of fields come from the client; JSON allows texts that UTF-8 has no bytes for.
    texts = {"message": message, "type": kind, "param": param, "code": code}
    return {
        "error": {
            key: text and text.encode(errors="backslashreplace").decode() for key, text in texts.items()
        }
    }


def _handle_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        headers = {"Retry-After": str(math.ceil(error.wait_s))} if error.wait_s else None
        content = _error_object(error.status, str(error), error.code, error.param)
        return JSONResponse(content, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return JSONResponse(_error_object(400, f"{where}: {first['msg']}", param=where or None), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            _error_object(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return JSONResponse(_error_object(500, "a fault in the server; its log has the reason"), 500)
