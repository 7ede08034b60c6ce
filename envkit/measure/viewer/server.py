"""A local web page to read the episodes of a run, for the person who started it.

Access: the server listens on 127.0.0.1 only. Every request must carry the token in the printed address, so
other users of the machine get 403. Requests for another host name are refused, because a web page could
otherwise read a run through a DNS name that points here (DNS rebinding).

Content: the text was written by models and by the code that they were given, and is treated as hostile. It is
sent as JSON with invisible characters escaped and shown as text only. A strict content security policy blocks
every script that is not ours.
"""

from __future__ import annotations

import functools
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from envkit.errors import EnvkitError, MissingExtraError, StoreError, UsageError
from envkit.measure.viewer.episode_index import EpisodeEntry, EpisodeIndex
from envkit.measure.viewer.token_text import TokenDecoder, TokenText, token_decoder
from envkit.measure.visible_text import visible
from envkit.runtime.store import RunFolder
from envkit.types import Tokens, Turn

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_HOST = "127.0.0.1"

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

#: Files of the page by request path, with those that reports have, too: ``chart.css`` has the colours.
_FILES = {
    "/": ("viewer/viewer.html", "text/html"),
    "/chart.css": ("report/chart.css", "text/css"),
    "/report.css": ("report/report.css", "text/css"),
    "/viewer.css": ("viewer/viewer.css", "text/css"),
    "/viewer.js": ("viewer/viewer.js", "text/javascript"),
    "/viewer_episode.js": ("viewer/viewer_episode.js", "text/javascript"),
    "/viewer_diff.js": ("viewer/viewer_diff.js", "text/javascript"),
}

#: Fields of the manifest that the page shows.
_FACTS = ("kind", "environment", "model", "command")


def serve(run: RunFolder, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until interrupted (Ctrl-C), then return.

    Args:
        run: folder of the run, which may still be written to; reloading the page shows new episodes.
        port: port on 127.0.0.1; 0 takes a free one.
        ready: called with the page's address as soon as the port is open.

    Raises:
        MissingExtraError: starlette or uvicorn is not installed.
        UsageError: the port is taken.
        StoreError: the run cannot be read.
    """
    token = secrets.token_urlsafe(32)
    app = make_app(run, token)
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve") from error
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_level="warning", log_config=None, timeout_graceful_shutdown=1
    )
    with _listening(port) as listening:
        try:
            ready(f"http://{_HOST}:{listening.getsockname()[1]}/{token}/")
            uvicorn.Server(config).run([listening])
        except KeyboardInterrupt:
            return


def _listening(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        reason = error.strerror or error
        raise UsageError(
            f"cannot listen on {_HOST}:{port}: {reason}; leave --port out to take a free one"
        ) from error
    return listening


def make_app(run: RunFolder, token: str) -> Starlette:
    """Build the page and its data as an ASGI application.

    Args:
        run: folder of the run; its journals are indexed by this call.
        token: first part of every path; a request without it gets 403.

    Raises:
        MissingExtraError: starlette is not installed.
        StoreError: the run cannot be read.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Mount, Route
    except ImportError as error:
        raise MissingExtraError(error.name or "starlette", "serve") from error
    episodes = EpisodeIndex(run)
    manifest = run.manifest
    models = _models(manifest)

    def listing(request: Request) -> Response:
        return JSONResponse(_listing(run.id, manifest, episodes.refresh()))

    def episode(request: Request) -> Response:
        found = episodes.load(request.path_params["journal"], request.path_params["line"])
        if found is None:
            return JSONResponse({"error": "this run has no such episode"}, 404)
        entry, trajectory, record = found
        steps = [
            {"observation": step.observation, "reward": step.reward, **_turn(step.turn, models)}
            for step in trajectory.steps
        ]
        data = {
            "entry": asdict(entry),
            "steps": steps,
            "scores": trajectory.scores,
            "info": trajectory.info,
            "share_s": record.get("seconds"),
        }
        try:
            return JSONResponse(_make_visible(data))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{entry.journal}.jsonl:{entry.line}: cannot be shown ({error})") from error

    def page(name: str, kind: str, request: Request) -> Response:
        return Response(resources.files("envkit.measure").joinpath(name).read_bytes(), media_type=kind)

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        first = request.scope["path"].split("/")[1]
        if hmac.compare_digest(first.encode(errors="replace"), token.encode()):
            response = await answer(request)
        else:
            message = "the address lacks this server's token; open the whole address that envkit view printed"
            response = JSONResponse({"error": message}, 403)
        response.headers.update(_HEADERS)
        return response

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": visible(str(error))}, 500)

    routes = [
        Route("/api/run", listing, methods=["GET"]),
        Route("/api/episodes/{journal:path}/{line:int}", episode, methods=["GET"]),
        *(
            Route(path, functools.partial(page, name, kind), methods=["GET"])
            for path, (name, kind) in _FILES.items()
        ),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"], www_redirect=False),
        ],
        exception_handlers={EnvkitError: failed},
    )


def _listing(name: str, manifest: Mapping[str, Any], entries: Sequence[EpisodeEntry]) -> Mapping[str, Any]:
    """Data of the page's list: facts of the run, column names, and a row per episode."""
    columns = [field.name for field in fields(EpisodeEntry)]
    row = attrgetter(*columns)
    return {
        "run": visible(name),
        "facts": {fact: visible(str(manifest[fact])) for fact in _FACTS if fact in manifest},
        "columns": columns,
        "episodes": [[visible(v) if isinstance(v, str) else v for v in row(entry)] for entry in entries],
    }


def _models(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the models that may have sampled a run's tokens, as `token_decoder` takes them."""
    models = manifest.get("models")  # a benchmark has one per row
    if isinstance(models, Mapping):
        return [str(name) for name in cast("Mapping[Any, Any]", models)]
    return [str(manifest["model"])] if "model" in manifest else []


def _turn(turn: Turn, models: Sequence[str]) -> Mapping[str, Any]:
    tokens = None if turn.tokens is None else _tokens(turn.tokens, turn.text, models)
    return {"text": turn.text, "stop": turn.stop, "usage": asdict(turn.usage), "tokens": tokens}


def _tokens(tokens: Tokens, text: str, models: Sequence[str]) -> Mapping[str, Any]:
    """Sampled tokens with their texts, or with the reason why the texts are unknown."""
    pieces: list[TokenText] | None = None
    problem = "" if models else "the run's manifest names no model"
    for model in models:
        decoder = _decoder(model)
        if isinstance(decoder, str):
            problem = decoder
        elif pieces := decoder.decode(tokens.completion_ids, text):
            problem = ""
            break
        else:
            problem = f"the tokenizer of {model!r} does not decode these ids to the recorded text"
    return {
        "prompt": len(tokens.prompt_ids),
        "ids": tokens.completion_ids,
        "logprobs": tokens.logprobs,
        "pieces": pieces and [piece.text for piece in pieces],
        "special": pieces and [piece.special for piece in pieces],
        "why": problem,
    }


@functools.lru_cache(maxsize=4)
def _decoder(model: str) -> TokenDecoder | str:
    """The decoder of a model's tokens, or the reason why there is none."""
    try:
        return token_decoder(model)
    except UsageError as error:
        return str(error)


def _make_visible(value: Any) -> Any:
    """Escape invisible characters in every string of JSON data."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(k)): _make_visible(item) for k, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_make_visible(item) for item in cast("Sequence[Any]", value)]
    return value
