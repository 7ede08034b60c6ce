"""The web application: OpenAI's endpoints, health and metrics."""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions inside `make_app`.

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from envkit.errors import EnvkitError, UsageError
from envkit.openai_api.messages import template_message
from envkit.openai_api.replies import ChatReply, CompletionReply
from envkit.openai_api.schemas import ChatBody, CompletionBody
from envkit.serving.generation import Generation, failure, unless_gone
from envkit.serving.guards.access import Client
from envkit.serving.guards.admission import reading, require_allowance, require_few, require_length
from envkit.serving.guards.api_errors import ApiError, handle_errors
from envkit.serving.guards.body_limit import BodyLimit
from envkit.serving.guards.host_check import HostCheck
from envkit.serving.metrics import ErrorCount
from envkit.serving.server import Server

#: Seconds that requests have to write their rows of the ledger after the drain has cancelled them.
_CLOSE_S = 5
#: Seconds between two looks at an encoder whose request is gone.
_POLL_S = 0.05
#: Name of a session, chosen by the client.
SessionName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$")]


async def _known(request: Request) -> Client:
    """Find who asks.

    Raises:
        ApiError: the key is missing or wrong.
    """
    client = request.app.state.server.client(request.headers.get("authorization", ""))
    if client is None:
        raise ApiError(401, "the API key is missing or not known", "invalid_api_key")
    return client


Known = Annotated[Client, Depends(_known)]


async def _entered(request: Request, client: Known) -> Client:
    """Count the request against the key's rate, before the body is validated.

    So a request that is refused for its fields counts, too. One that is not JSON never comes here.

    Raises:
        ApiError: the key has no allowance left, or the server drains.
    """
    server: Server = request.app.state.server
    if (left_s := server.drain_left_s) is not None:
        raise ApiError(503, "the server is shutting down; ask again later", "draining", wait_s=max(left_s, 1))
    require_allowance(server.rates.enter(client))
    return client


Entered = Annotated[Client, Depends(_entered)]


async def _named(session: SessionName) -> None:
    """Refuse an odd name of a session."""


def make_app(server: Server) -> FastAPI:
    """Make the application; it starts the decoder, and stops it after the last open request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        server.decoder.start()
        yield
        deadline_s = time.monotonic() + _CLOSE_S
        while server.open_rows.total() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        server.decoder.stop()
        server.encoder.shutdown(cancel_futures=True)
        if server.ledger is not None:
            server.ledger.close()

    app = FastAPI(title="envkit serve", lifespan=lifespan)
    app.state.server = server
    app.add_middleware(BodyLimit, limit_bytes=server.limits.max_body_bytes, find=server.client)
    if server.hosts is not None:
        app.add_middleware(HostCheck, names=server.hosts)
    app.add_middleware(ErrorCount, count=server.metrics.count_error)
    handle_errors(app)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "OpenAI's error object"}
        for status in (400, 401, 403, 404, 408, 413, 422, 429, 503)
    }
    #: Endpoints that a session has, too.
    api = APIRouter(responses=errors)

    @app.get("/health", responses={503: {"description": "draining or failed"}})
    async def health() -> Response:
        if server.decoder.error is not None:
            return JSONResponse({"status": "failed"}, 503)
        if server.drain_left_s is not None:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses=errors)
    async def metrics(client: Known) -> Response:
        if not client.admin:
            raise ApiError(403, "metrics name all models; this key may not see them", "forbidden")
        return Response(server.metrics.render(), media_type=server.metrics.content_type)

    @api.get("/v1/models")
    async def list_models(client: Known) -> Response:
        found = await asyncio.to_thread(lambda: [*_models(server, client)])
        return JSONResponse({"object": "list", "data": found})

    @api.get("/v1/models/{model:path}")
    async def get_model(model: str, client: Known) -> Response:
        return JSONResponse(_model(server, client, model))

    @api.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request, client: Entered) -> Response:
        return await _chat(server, body, request, client)

    @api.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request, client: Entered) -> Response:
        return await _complete(server, body, request, client)

    app.include_router(api)
    app.include_router(api, prefix="/s/{session}", dependencies=[Depends(_named)])

    @app.get("/s/{session}", responses=errors)
    async def get_session(session: SessionName, client: Known) -> Response:
        require_allowance(server.rates.enter(client))  # a long one takes seconds to write
        with _no_session(session):
            turns = server.sessions.turns(client.digest, session)

        def write() -> Iterator[str]:
            # In pieces, beside the event loop: one of millions of tokens would hold up all that runs.
            yield f'{{"id":{json.dumps(session)},"turns":['
            for number, turn in enumerate(turns):
                yield ("," if number else "") + json.dumps(turn.to_json())
            yield "]}"

        return StreamingResponse(write(), media_type="application/json")

    @app.delete("/s/{session}", responses=errors)
    async def delete_session(session: SessionName, client: Known) -> Response:
        with _no_session(session):
            server.sessions.delete(client.digest, session)
        return JSONResponse({"id": session, "deleted": True})

    return app


async def _chat(server: Server, body: ChatBody, request: Request, client: Client) -> Response:
    """Answer a chat; with a session in the request's path, it is recorded there."""
    started_s = time.monotonic()
    require_few(server, client, 1, body.n or 1)
    is_routed = server.entry(client, body.model).specialists is not None
    if len(body.messages) >= server.limits.context:
        raise ApiError(
            400,
            f"there are {len(body.messages)} messages; the limit is {server.limits.context} tokens",
            "context_length_exceeded",
        )
    if body.response_format not in (None, {"type": "text"}):
        raise ApiError(400, "response_format: only text is supported", param="response_format")
    with_tools = bool(body.tools) and body.tool_choice != "none"
    if with_tools and not server.renderer.reads("tools"):
        raise ApiError(400, "the chat template of this model knows no tools", param="tools")
    if any(message.tool_calls for message in body.messages) and not server.renderer.reads("tool_calls"):
        raise ApiError(400, "the chat template of this model knows no tool calls", param="messages")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] if with_tools else []
    try:
        messages = [template_message(message) for message in body.messages]
    except UsageError as error:
        raise ApiError(400, str(error), param="messages") from error

    async def read() -> tuple[tuple[int, ...], str]:
        prompt = await _ids(server, lambda: server.renderer.messages(messages, tools), "messages")
        if not is_routed:
            return prompt, body.model
        require_length(server, client, len(prompt))
        opening = prompt
        roles = [message["role"] for message in messages]
        if "assistant" in roles and "user" in roles[: (first := roles.index("assistant"))]:
            # A conversation keeps the specialist that its beginning was sent to.
            opening = await _ids(
                server, lambda: server.renderer.messages(messages[:first], tools), "messages"
            )
        return prompt, await _route(server, client, body.model, opening)

    with reading(server, client, body.n or 1):
        prompt, model = await unless_gone(request, read())
    body = body.model_copy(update={"model": model})
    top = (body.top_logprobs or 0) if body.logprobs else None
    longest = body.max_completion_tokens or body.max_tokens
    generation = Generation(
        server=server,
        client=client,
        body=body,
        prompts=[prompt],
        max_tokens=longest,
        top_logprobs=top,
        with_tools=with_tools,
        session=request.path_params.get("session"),
        started_s=started_s,
    )
    return await generation.answer(request, ChatReply(body.model, prompt if body.return_token_ids else None))


async def _complete(server: Server, body: CompletionBody, request: Request, client: Client) -> Response:
    """Complete texts; with a session in the request's path, they are recorded there."""
    started_s = time.monotonic()
    texts = _prompts(body)
    require_few(server, client, len(texts), body.n or 1)
    is_routed = server.entry(client, body.model).specialists is not None
    if is_routed and len(texts) > 1:
        raise ApiError(400, f"the model {body.model!r} takes one prompt a request", param="prompt")

    async def read() -> tuple[list[tuple[int, ...]], str]:
        prompts = [await _prompt_ids(server, text) for text in texts]
        if not is_routed:
            return prompts, body.model
        require_length(server, client, len(prompts[0]))
        return prompts, await _route(server, client, body.model, prompts[0])

    with reading(server, client, len(texts) * (body.n or 1)):
        prompts, model = await unless_gone(request, read())
    body = body.model_copy(update={"model": model})
    generation = Generation(
        server=server,
        client=client,
        body=body,
        prompts=prompts,
        max_tokens=body.max_tokens,
        top_logprobs=body.logprobs,
        with_tools=False,
        session=request.path_params.get("session"),
        started_s=started_s,
    )
    told = [prompt for prompt in prompts for _ in range(body.n or 1)] if body.return_token_ids else None
    return await generation.answer(request, CompletionReply(body.model, told))


@contextmanager
def _no_session(session: str) -> Generator[None]:
    """Answer for a session that does not exist, or is another key's."""
    try:
        yield
    except LookupError:
        raise ApiError(404, f"there is no session {session!r}", "session_not_found") from None


async def _route(server: Server, client: Client, model: str, prompt: tuple[int, ...]) -> str:
    """Choose the model that answers a prompt, among those that the key may use.

    Raises:
        ApiError: there is none, or the router cannot be asked.
    """
    allowed = server.entry(client, model).specialists or ()  # as they are after the prompt was encoded
    assert server.routing is not None
    base = server.models.base
    try:
        chosen, seconds = await server.routing.choose(prompt, allowed, client.may_use(base))
    except EnvkitError as error:
        raise failure(error) from error
    server.metrics.count_routed(chosen or base, seconds)
    return chosen or base


def _model(server: Server, client: Client, name: str) -> dict[str, Any]:
    created, base = server.entry(client, name).created, server.models.base
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
    for name in server.ids():
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
    """Render and encode a prompt beside the event loop: a long one takes seconds.

    If the request is cancelled, this ends no earlier than the encoder, so that what it reads stays counted.
    """
    encoding = server.encoder.submit(render)
    try:
        return await asyncio.wrap_future(encoding)
    except asyncio.CancelledError:
        while not encoding.done():  # it runs: what waits for the encoder is cancelled at once
            await asyncio.sleep(_POLL_S)
        raise
    except EnvkitError as error:
        raise ApiError(400, str(error), param=param) from error
