"""Train a router, which sends each request to the specialist of its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envkit.errors import UsageError
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.studies.specialists.router import RouterStudy

#: Tasks of each specialist whose prompts a router reads, and tokens of each that count.
DEFAULT_PROMPTS, DEFAULT_TOKENS = 200, 512


@dataclass(frozen=True, slots=True)
class RouterResult:
    """The result of `envkit.train_router`.

    Args:
        path: the router's file.
        size_bytes: of it.
        study: what it does and costs.
    """

    path: Path
    size_bytes: int
    study: RouterStudy


def train_router(
    adapters: Mapping[str, Path | str],
    output: Path | str,
    *,
    prompts: int = DEFAULT_PROMPTS,
    layers: int = 0,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    display: DisplayChoice = "rich",
) -> RouterResult:
    """Train a router on the prompts that specialists were trained on, and measure where it sends others.

    The command ``envkit serve --router`` then offers the model id ``auto``. Nothing is played: the episodes
    of training runs hold the prompts.

    Args:
        adapters: training runs of one base, or adapter folders in them, by the model id that each specialist
            is served under.
        output: file to write.
        prompts: tasks of each specialist to learn from and to measure on.
        layers: of the base that a prompt is read with; 0 is a quarter of them.
        tokens: of a prompt that are read at most, from its beginning.
        seed: which tasks are drawn, and which of them are measured on.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: bad input, found before any long work; for instance, too few prompts.
        ModelError: the base cannot be had, or has not so many layers.
    """
    from envkit.models import require_training, resolve

    require_training()
    from envkit.engine.torch_engine import TorchEngine
    from envkit.models.adapter_folder import require_fit
    from envkit.runs.bench_runs import adapter_folders
    from envkit.runs.folder.machine import resolve_dtype, use_threads
    from envkit.runs.folder.run_records import base_of
    from envkit.serving.decoding.router import AUTO, write_router
    from envkit.serving.models import require_names
    from envkit.studies.specialists.router import first_prompts, split, train
    from envkit.training.config import TrainConfig
    from envkit.training.learner.base_model import load_base

    path = Path(output)
    if path.exists():
        raise UsageError(f"{path} exists; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if not adapters:
        raise UsageError("expected at least one specialist, as NAME=RUN")
    folders = dict(zip(adapters, adapter_folders([*adapters.values()]), strict=True))
    if AUTO in folders:
        raise UsageError(f"{AUTO!r} is the router's own model id; give the specialist another name")
    require_names("", folders)
    parts = {
        name: split(name, first_prompts(folder, prompts, seed), seed) for name, folder in folders.items()
    }
    model = base_of([*folders.values()])
    with open_display(display) as progress:
        ref = resolve(model, progress)
        for folder in folders.values():
            require_fit(folder, ref)
        use_threads()
        dtype = resolve_dtype(TrainConfig(), progress.say).dtype
        base, tokenizer = load_base(ref, dtype)
        engine = TorchEngine(base, [tokenizer.eos_token_id], kv_cache_bytes=0)
        router, study = train(
            engine,
            parts,
            base_digest=ref.digest,
            dtype=dtype,
            layers=layers,
            tokens=tokens,
            display=progress,
        )
        write_router(router, path)
    return RouterResult(path, path.stat().st_size, study)
