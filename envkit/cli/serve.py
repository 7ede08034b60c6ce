"""`envkit serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import complete_models, read_named, require_at_least, require_port
from envkit.errors import UsageError


def serve(
    model: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Base model: an id from `envkit models`, or a folder. Default: the one that the adapters "
            "were trained on, or else qwen2.5-coder-0.5b-q4.",
            autocompletion=complete_models,
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Model id of the base. Default: its id, or its folder's name.")
    ] = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="NAME=PATH", help="Serve an adapter, or a run's newest, under a model id."
        ),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Serve every adapter in this folder under its own name, also those that come later.",
        ),
    ] = None,
    router: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Serve the model id auto: this router, of `envkit study specialists`, picks each request's "
            "specialist.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; another one needs --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML of API keys with their models, rates and sizes."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="SQLite file that gets each request's tokens, for `envkit models bill`."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="float32, bfloat16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Engine that decodes: torch, or vllm on the device it is for.")
    ] = "torch",
    max_rank: Annotated[int, typer.Option(metavar="R", help="Highest rank of an adapter; for vllm.")] = 16,
    kv_cache_mb: Annotated[int, typer.Option(metavar="MB", help="Memory for keys and values.")] = 1024,
    adapters_mb: Annotated[int, typer.Option(metavar="MB", help="Memory for adapters.")] = 1024,
    max_rows: Annotated[int, typer.Option(metavar="N", help="Answers that are decoded together.")] = 64,
    max_waiting: Annotated[int, typer.Option(metavar="N", help="Answers that may wait.")] = 1024,
    max_body_kb: Annotated[int, typer.Option(metavar="KB", help="Largest request.")] = 4096,
    default_max_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of an answer, if a request does not say.")
    ] = 512,
    drain_s: Annotated[
        int, typer.Option(metavar="S", help="Seconds that open requests have after SIGTERM.")
    ] = 30,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write requests to the log, prompts included.")
    ] = False,
) -> None:
    """Serve a base model and its adapters behind OpenAI's API. Each adapter is a model id.

    All of them are decoded in one batch, which a request joins and leaves at any time. Needs the extras
    train and serve.
    """
    from envkit.runs.rich_display import open_display
    from envkit.runs.serving import ServeConfig
    from envkit.runs.serving import serve as run

    sizes = {"kv_cache_mb": kv_cache_mb, "adapters_mb": adapters_mb, "max_rows": max_rows}
    sizes |= {
        "max_waiting": max_waiting,
        "max_body_kb": max_body_kb,
        "default_max_tokens": default_max_tokens,
    }
    require_at_least(1, max_rank=max_rank, **sizes)
    require_at_least(0, drain_s=drain_s)
    require_port(port)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: expected auto, float32 or bfloat16")
    if engine not in ("torch", "vllm"):
        raise UsageError(f"--engine {engine}: expected torch or vllm")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: expected cpu or cuda")
    with open_display("rich") as display:
        run(
            ServeConfig(
                model=model,
                name=name,
                adapters=read_named("--adapter", adapter or []),
                adapter_folder=adapters,
                router=router,
                host=host,
                port=port,
                keys=keys,
                ledger=ledger,
                dtype=dtype,
                device=device,
                engine=engine,
                max_rank=max_rank,
                drain_s=drain_s,
                log_prompts=log_prompts,
                **sizes,
            ),
            display,
        )
