"""Serve a base model and its adapters behind OpenAI's API."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import MissingExtraError, ModelError, UsageError

if TYPE_CHECKING:
    from envkit.models import ModelRef
    from envkit.runtime.display import Display
    from envkit.serving.decoding.decoder import Adapters, Decoder
    from envkit.serving.decoding.router import Router
    from envkit.serving.decoding.routing import RequestRouter
    from envkit.serving.models import Models
    from envkit.serving.server import Server

#: Names of this machine that no other machine can reach.
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Settings of `serve`.

    Args:
        model: the base model's id or folder; by default the base that ``adapters`` were trained on, or else
            ``qwen2.5-coder-0.5b-q4``.
        name: its model id; the known id or the folder's name if empty.
        adapters: by model id: adapter folders, or training runs, whose newest checkpoint is served at each
            time.
        adapter_folder: every adapter directly in it is a model of its folder's name.
        router: file of `envkit study specialists`; the model id ``auto`` then sends each request to the
            specialist of its task, or to the base.
        host: address to listen on. Only this machine can reach the default.
        port: 0 takes a free one.
        keys: TOML file of API keys; see `envkit.serving.guards.access`. Without one, anyone may ask.
        ledger: SQLite file that gets a row for each request.
        dtype: of the base: ``"float32"``, ``"bfloat16"`` or ``"auto"``.
        device: ``"cpu"`` or ``"cuda"``.
        engine: ``"torch"`` or ``"vllm"``.
        max_rank: highest rank of an adapter, for vLLM, which allocates memory for it.
        kv_cache_mb: memory for keys and values, in MB.
        adapters_mb: memory for adapters, in MB.
        max_rows: answers that are decoded together.
        max_waiting: answers that may wait; beyond, requests are refused.
        max_body_kb: largest request, in KB.
        default_max_tokens: tokens of an answer, if a request does not say.
        drain_s: after SIGTERM, requests have this time to end.
        log_prompts: write requests to the log, prompts included.
    """

    model: str = ""
    name: str = ""
    adapters: Mapping[str, Path] = field(default_factory=dict[str, Path])
    adapter_folder: Path | None = None
    router: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    ledger: Path | None = None
    dtype: str = "auto"
    device: str = "cpu"
    engine: str = "torch"
    max_rank: int = 16
    kv_cache_mb: int = 1024
    adapters_mb: int = 1024
    max_rows: int = 64
    max_waiting: int = 1024
    max_body_kb: int = 4096
    default_max_tokens: int = 512
    drain_s: int = 30
    log_prompts: bool = False


def serve(config: ServeConfig, display: Display) -> None:
    """Serve until SIGINT or SIGTERM comes; then answer the open requests, and let the signal take its effect.

    Raises:
        KeyboardInterrupt: SIGINT came.
        UsageError: a setting, adapter or file cannot be used, or the address is taken.
        ModelError: torch finds no GPU.
        StoreError: the ledger cannot be opened, or is none.
        MissingExtraError: the extra ``serve`` or ``train`` is not installed.
    """
    from envkit.models import require_training

    require_training()
    try:
        import uvicorn

        from envkit.serving.app import make_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    from envkit.serving.draining import DrainingServer

    server = _make_server(config, display)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("envkit.serving").setLevel(logging.INFO)
    settings_of_uvicorn = uvicorn.Config(
        make_app(server),
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    running = DrainingServer(settings_of_uvicorn, server, config.drain_s)
    with _listen(config.host, config.port) as listening:
        port = listening.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        name = server.models.base
        display.say(f"serving {name} and its adapters at http://{host}:{port}/v1; Ctrl-C ends it")
        running.run(sockets=[listening])


def _make_server(config: ServeConfig, display: Display) -> Server:
    """Check the settings, load the model, and start its engine; raises as `serve`."""
    from envkit.models import DEFAULT_MODEL, resolve
    from envkit.models.adapter_folder import require_fit
    from envkit.runs.adapter import adapter_folder
    from envkit.runs.folder.run_records import base_of
    from envkit.serving.decoding.router import AUTO
    from envkit.serving.decoding.torch_decoder import in_thread_that_ends
    from envkit.serving.guards.access import Access, read_access
    from envkit.serving.ledger import Ledger
    from envkit.serving.models import Models, require_names
    from envkit.serving.server import Server, ServerLimits
    from envkit.training.policy import find_device

    if config.router is not None and config.engine == "vllm":
        raise UsageError("--router needs --engine torch: vLLM does not tell the hidden states of its base")
    if config.host not in _LOOPBACK and config.keys is None:
        raise UsageError(f"--host {config.host} is reachable from other machines; that needs --keys FILE")
    access = Access() if config.keys is None else read_access(config.keys)
    find_device(config.device)
    _listen(config.host, config.port).close()  # taken ports are told before the model is loaded
    ledger = None if config.ledger is None else Ledger(config.ledger)
    named = {name: adapter_folder(path) for name, path in config.adapters.items()}
    ref = resolve(config.model or base_of([*named.values()]) or DEFAULT_MODEL, display)
    base_name = config.name or ref.id
    require_names(base_name, named)
    if config.router is not None and AUTO in (base_name, *named):
        raise UsageError(f"with --router, {AUTO!r} is the router's own model id; give the other another name")
    for folder in named.values():
        require_fit(folder, ref)
    if config.adapter_folder is not None and not config.adapter_folder.is_dir():
        raise UsageError(f"--adapters {config.adapter_folder}: no such folder")
    models = Models(
        base_name,
        ref.path,
        {name: partial(adapter_folder, path) for name, path in config.adapters.items()},
        config.adapter_folder,
        lambda folder: require_fit(folder, ref),
        lambda: engine.layers,
    )
    router = None if config.router is None else _read_router(config.router, ref, models)
    # Timing bfloat16 computes, too.
    if router is not None and router.dtype != (dtype := in_thread_that_ends(lambda: _dtype(config))):
        display.say(
            f"the router was trained in {router.dtype} and reads in {dtype} here, so it may send some "
            "prompts elsewhere; train it again here, or set --dtype"
        )
    engine = (
        _vllm(config, ref)
        if config.engine == "vllm"
        else in_thread_that_ends(lambda: _torch(config, ref, router))
    )
    return Server(
        engine.decoder,
        engine.adapters,
        models,
        engine.tokenizer,
        ServerLimits(
            config.max_body_kb * 1024,
            config.max_waiting,
            config.default_max_tokens,
            engine.context,
            len(engine.tokenizer),
        ),
        access,
        ledger,
        config.log_prompts,
        _LOOPBACK if config.keys is None else None,
        engine.routing,
    )


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine with its parts, as the server uses them.

    Args:
        decoder: of rows.
        adapters: that rows may name.
        tokenizer: the base model's.
        context: tokens that the model reads at most, the answer included.
        layers: paths of the base's layers that an adapter can change.
        routing: the router with what it reads prompts with; ``None`` without a router.
    """

    decoder: Decoder
    adapters: Adapters
    tokenizer: Any
    context: int
    layers: Collection[str]
    routing: RequestRouter | None = None


def _read_router(path: Path, ref: ModelRef, models: Models) -> Router:
    """Read a router, and refuse one that is for another base or for specialists that are not served.

    Raises:
        ModelError: it is damaged, or for another base.
        UsageError: one of its specialists is not served.
    """
    from envkit.serving.decoding.router import read_router

    router = read_router(path)
    if router.base_digest != ref.digest:
        raise ModelError(
            f"{path} reads prompts with weights {router.base_digest[:12]}, and {ref.id} has "
            f"{ref.digest[:12]}; name its own base with --model"
        )
    if missing := [name for name in router.names if models.path(name) is None]:
        raise UsageError(
            f"{path} knows the specialist {missing[0]}, which is not served; add --adapter {missing[0]}=PATH"
        )
    return router


def _torch(config: ServeConfig, ref: ModelRef, router: Router | None) -> _Engine:
    """Load the base model into envkit's own engine."""
    from envkit.engine.adapters.pool import AdapterPool
    from envkit.engine.early import EarlyLayers
    from envkit.engine.running import RunningBatch
    from envkit.engine.torch_engine import TorchEngine
    from envkit.runs.folder.machine import use_threads
    from envkit.serving.decoding.routing import RequestRouter
    from envkit.serving.decoding.torch_decoder import TorchDecoder
    from envkit.training.learner.base_model import linears_of, load_base

    use_threads()
    base, tokenizer = load_base(ref, _dtype(config))
    base.to(config.device)
    layers = linears_of(base).keys()

    def decode(ids: object) -> str:
        return str(tokenizer.decode(ids))

    engine = TorchEngine(
        base, [tokenizer.eos_token_id], kv_cache_bytes=config.kv_cache_mb * 2**20, decode=decode
    )
    pool = AdapterPool(engine.linears, config.adapters_mb * 2**20)
    decoder = TorchDecoder(RunningBatch(engine, pool, config.max_rows))
    routing = None
    if config.router is not None and router is not None:
        created = int(config.router.stat().st_mtime)
        routing = RequestRouter(router, EarlyLayers(engine, router.layers), decoder, created)
    context = min(engine.longest, engine.cache_tokens)
    return _Engine(decoder, pool, tokenizer, context, layers, routing)


def _vllm(config: ServeConfig, ref: ModelRef) -> _Engine:
    """Start vLLM."""
    from envkit.engine.vllm.asynchronous import AsyncLimits, AsyncVLLM
    from envkit.runs.folder.machine import use_threads
    from envkit.serving.decoding.vllm_decoder import VLLMAdapters, VLLMDecoder
    from envkit.training.learner.base_model import load_tokenizer

    use_threads()
    tokenizer, shapes = load_tokenizer(ref)

    def decode(ids: object) -> str:
        return str(tokenizer.decode(ids))

    limits = AsyncLimits(
        _dtype(config),
        config.kv_cache_mb * 2**20,
        config.adapters_mb * 2**20,
        config.max_rank,
        config.max_rows,
    )
    engine = AsyncVLLM(ref, [tokenizer.eos_token_id], shapes, limits)
    adapters = VLLMAdapters(engine)
    context = min(engine.longest, engine.cache_tokens)
    return _Engine(VLLMDecoder(engine, adapters, decode), adapters, tokenizer, context, shapes.keys())


def _dtype(config: ServeConfig) -> str:
    import torch

    from envkit.runs.folder.machine import resolve_dtype
    from envkit.training.config import TrainConfig

    device = config.device
    if config.engine == "vllm":  # runs on the GPU if there is one, whatever the device of envkit's own engine
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_dtype(replace(TrainConfig(), dtype=config.dtype, device=device)).dtype


def _listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        UsageError: it is taken, or the host has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
