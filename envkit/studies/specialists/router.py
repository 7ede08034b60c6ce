"""Train a router on the prompts that specialists were trained on, and measure where it sends others."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from envkit.engine.chat import ChatRenderer
from envkit.engine.early import EarlyLayers
from envkit.engine.torch_engine import TorchEngine
from envkit.env import Env
from envkit.errors import StoreError, UsageError
from envkit.measure.stats import Interval, rate_interval
from envkit.models import ModelRef
from envkit.runs.folder.run_records import environments_of, train_tasks_of, training_run_of
from envkit.runtime.display import Display
from envkit.sandbox import SandboxBackend
from envkit.serving.decoding.router import FEWEST_TO_LIMIT, MISSED, Features, Router, fit
from envkit.training.learner.base_model import load_base
from envkit.types import Task

#: Shares of the prompts to learn from, and to set limits; the others are measured on.
_LEARNED, _LIMITING = 0.6, 0.2
#: Prompts that are read in one go while a progress bar stands still.
_READ: Final = 16
#: Prompts that are timed.
_TIMED: Final = 15


@dataclass(frozen=True, slots=True)
class FirstPrompt:
    """The first prompt of an episode.

    Args:
        source: what its task was made from: the cluster of statistics.
        ids: its tokens.
    """

    source: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """Counts of one specialist's prompts by who answers them; the router has not learned from their sources.

    Args:
        name: the specialist.
        counts: prompts by who answers: each specialist, and ``""`` for the base.
        own: share that goes to the specialist itself. The interval resamples sources.
        unknown: share that goes to the base if the router has never seen this specialist; ``None`` if it is
            the only one.
    """

    name: str
    counts: Mapping[str, int]
    own: Interval
    unknown: Interval | None


@dataclass(frozen=True, slots=True)
class RouterStudy:
    """Measurements of a router: where it sends prompts, and how long it takes.

    Args:
        sent: by specialist.
        layers: of the base that prompts are read with.
        all_layers: how many it has.
        tokens: of a prompt that are read at most.
        learned: prompts that it learned from.
        fit_s: seconds to read those and to fit it.
        read_ms: median milliseconds to read one prompt.
        whole_ms: the same with all layers, as the base itself would.
    """

    sent: tuple[Sent, ...]
    layers: int
    all_layers: int
    tokens: int
    learned: int
    fit_s: float
    read_ms: float
    whole_ms: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Prompts of one specialist: to learn from, to set its limit, to measure on. They share no source."""

    learned: Sequence[FirstPrompt]
    limiting: Sequence[FirstPrompt]
    measured: Sequence[FirstPrompt]


@dataclass(frozen=True, slots=True)
class Posed:
    """Tasks of an environment, and how many actions an episode of them has, which an observation may tell."""

    kind: type[Env]
    tasks: Sequence[Task]
    max_turns: int


def first_prompts(adapter: Path, count: int, seed: int) -> list[FirstPrompt]:
    """Draw tasks that an adapter was trained on; returns the prompts that its episodes began with.

    Args:
        adapter: its folder, inside its training run. The run's episodes hold the prompts to the token.
        count: number of tasks; fewer, if it was trained on fewer.
        seed: which ones.

    Raises:
        UsageError: the adapter is in no training run, or that run has played no episodes.
    """
    run = training_run_of(adapter)
    if run is None:
        raise UsageError(f"{adapter} is in no training run, so its prompts are not known")
    tasks = train_tasks_of(run)
    several = len(environments_of(run)) > 1  # whose tasks the run tells apart by a prefix
    sources = {
        (name, f"{name} {task.id}" if several else task.id): task.source
        for name, found in tasks.items()
        for task in found
    }
    found = dict[tuple[str, str], FirstPrompt]()
    for episode in run.trajectories("episodes"):
        key = (episode.env, episode.key.task)
        tokens = episode.steps[0].turn.tokens if episode.steps else None
        if tokens is not None and key not in found:
            if key not in sources:
                raise StoreError(f"{run.path}: task {key[1]} was played and is not in the run's train tasks")
            found[key] = FirstPrompt(sources[key], tokens.prompt_ids)
    if not found:
        raise UsageError(
            f"{run.path} has played no RL episodes, whose prompts a router learns from; name a run with RL "
            "steps"
        )
    return random.Random(seed).sample([*found.values()], min(count, len(found)))


def task_prompts(posed: Posed, backend: SandboxBackend, renderer: ChatRenderer) -> list[FirstPrompt]:
    """Reset tasks; returns the prompts that their episodes begin with, in the order of the tasks."""
    kind, found = posed.kind, list[FirstPrompt]()
    env = kind(tasks=posed.tasks, sandbox=backend, max_turns=posed.max_turns)
    try:
        for task in posed.tasks:
            observation, _ = env.reset(seed=zlib.crc32(task.id.encode()), options={"task": task.id})
            found.append(FirstPrompt(task.source, renderer.first(kind.system, observation)))
    finally:
        env.close()
    return found


def split(name: str, prompts: Sequence[FirstPrompt], seed: int) -> Parts:
    """Split a specialist's prompts so that the parts share no source.

    Raises:
        UsageError: a part has too few.
    """
    sources = sorted({prompt.source for prompt in prompts})
    random.Random(seed).shuffle(sources)
    places = {source: place for place, source in enumerate(sources)}
    ordered = sorted(prompts, key=lambda prompt: places[prompt.source])
    parts = list[FirstPrompt](), list[FirstPrompt](), list[FirstPrompt]()
    first: dict[str, int] = {}
    for index, prompt in enumerate(ordered):
        share = first.setdefault(prompt.source, index) / len(ordered)
        parts[(share >= _LEARNED) + (share >= _LEARNED + _LIMITING)].append(prompt)
    for part, fewest, purpose in zip(
        parts, (2, FEWEST_TO_LIMIT, 1), ("learn from", "set its limit", "measure on"), strict=True
    ):
        if len(part) < fewest:
            raise UsageError(
                f"{name} has {len(prompts)} prompts of {len(sources)} sources, and {len(part)} of them to "
                f"{purpose}; expected {fewest} or more: train it on more tasks, or raise --prompts if that "
                "left some out"
            )
    return Parts(*parts)


def train(
    engine: TorchEngine,
    parts: Mapping[str, Parts],
    *,
    base_digest: str,
    dtype: str,
    layers: int,
    tokens: int,
    display: Display,
) -> tuple[Router, RouterStudy]:
    """Fit a router and measure it on prompts of other sources.

    Args:
        engine: samples from the base.
        parts: prompts of each specialist, from `split`.
        base_digest, dtype, tokens: see `Router`.
        layers: see `EarlyLayers`.
        display: shows the progress.

    Raises:
        ModelError: the base has not so many layers.
    """
    early = EarlyLayers(engine, layers)
    display.phase(
        "read prompts", sum(len(p.learned) + len(p.limiting) + len(p.measured) for p in parts.values())
    )
    done = 0

    def read(some: Sequence[FirstPrompt]) -> Features:
        nonlocal done
        found = list[Features]()
        for start in range(0, len(some), _READ):
            piece = some[start : start + _READ]
            found.append(early.means([prompt.ids[:tokens] for prompt in piece]))
            done += len(piece)
            display.advance(done, "")
        return np.concatenate(found)

    started_s = time.monotonic()
    learned = {name: read(part.learned) for name, part in parts.items()}
    limiting = {name: read(part.limiting) for name, part in parts.items()}

    def fitted(names: Sequence[str]) -> Router:
        return fit(
            {name: learned[name] for name in names},
            {name: limiting[name] for name in names},
            layers=early.count,
            tokens=tokens,
            base_digest=base_digest,
            dtype=dtype,
        )

    router = fitted([*parts])
    fit_s = time.monotonic() - started_s
    sent = list[Sent]()
    for name, part in parts.items():
        features = read(part.measured)
        sources = [prompt.source for prompt in part.measured]
        chosen = [one or "" for one in router.choose(features)]
        counts = {one: chosen.count(one) for one in (*parts, "")}
        others = [other for other in parts if other != name]
        unknown = None
        if others:
            is_base = [one is None for one in fitted(others).choose(features)]
            unknown = rate_interval(is_base, sources)
        sent.append(Sent(name, counts, rate_interval([one == name for one in chosen], sources), unknown))
    timed = [prompt.ids[:tokens] for part in parts.values() for prompt in part.measured[:_TIMED]]
    read_ms = _median_ms(early, timed)
    whole_ms = _median_ms(EarlyLayers(engine, early.all), timed)
    count = sum(map(len, learned.values())) + sum(map(len, limiting.values()))
    study = RouterStudy((*sent,), early.count, early.all, tokens, count, fit_s, read_ms, whole_ms)
    return router, study


def train_on_tasks(
    ref: ModelRef,
    dtype: str,
    train_tasks: Mapping[str, Posed],
    asked: Mapping[str, Posed],
    backend: SandboxBackend,
    *,
    tokens: int,
    seed: int,
    display: Display,
) -> tuple[Router, RouterStudy, dict[str, list[str | None]]]:
    """Train a router on the prompts of train tasks, and ask it who answers others.

    Args:
        ref: the base.
        dtype: of the base.
        train_tasks: by specialist.
        asked: other tasks, by any name.
        backend: sandbox backend, to reset the tasks.
        tokens: of a prompt that are read at most.
        seed: which train tasks are learned from.
        display: shows the progress.

    Returns:
        The router, its measurements, and who answers each of the other tasks; ``None`` is the base.

    Raises:
        UsageError: a specialist has too few tasks.
    """
    base, tokenizer = load_base(ref, dtype)
    engine, renderer = TorchEngine(base, [tokenizer.eos_token_id], kv_cache_bytes=0), ChatRenderer(tokenizer)
    parts = {
        name: split(name, task_prompts(posed, backend, renderer), seed) for name, posed in train_tasks.items()
    }
    router, study = train(
        engine, parts, base_digest=ref.digest, dtype=dtype, layers=0, tokens=tokens, display=display
    )
    early = EarlyLayers(engine, router.layers)
    answering: dict[str, list[str | None]] = {}
    for name, posed in asked.items():
        prompts = task_prompts(posed, backend, renderer)
        answering[name] = router.choose(early.means([prompt.ids[:tokens] for prompt in prompts]))
    return router, study, answering


def _median_ms(early: EarlyLayers, prompts: Sequence[Sequence[int]]) -> float:
    """Median milliseconds to read one prompt."""
    early.means([prompts[0]])
    times = list[float]()
    for prompt in prompts:
        started_s = time.perf_counter()
        early.means([prompt])
        times.append((time.perf_counter() - started_s) * 1000)
    return median(times)


def sentences(study: RouterStudy) -> list[str]:
    """Say in sentences what a router costs and how it treats what it does not know."""
    said = [
        f"Learned from {study.learned:,} prompts in {study.fit_s:.1f} s. It reads a prompt's first "
        f"{study.tokens} tokens with {study.layers} of {study.all_layers} layers: {study.read_ms:.0f} ms, "
        f"where all layers take {study.whole_ms:.0f} ms.",
        f"Of a specialist's own prompts, at most {MISSED:.0%} should go to the base, if they are drawn like "
        "those of its training.",
    ]
    if len(study.sent) < 2:
        said.append("How it treats prompts of a task that it does not know is not measured: that takes two.")
    return said
