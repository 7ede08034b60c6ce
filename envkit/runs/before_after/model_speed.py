"""Measure how fast a model samples and learns on this machine."""

from __future__ import annotations

import contextlib

from envkit.models import KNOWN, MeasuredSpeed, remember_speed, require_training, resolve
from envkit.runs.before_after.probe import probe
from envkit.runs.folder.machine import free_threads, peak_memory_bytes, resolve_dtype, use_threads
from envkit.runtime.display import Display
from envkit.training.config import TrainConfig
from envkit.training.policy import Policy

#: Rows that are sampled at the same time.
_ROWS = 64


def measure_model(name: str, display: Display) -> MeasuredSpeed:
    """Measure a model as a run does before it plans; keep the result if `envkit models` lists the model.

    Raises:
        ModelError: there is no such model.
        MissingExtraError: a package that training needs is not installed.
    """
    require_training()
    ref = resolve(name, display)
    threads = use_threads(free_threads(display.say))
    config = resolve_dtype(TrainConfig(model=name), display.say)
    display.say(f"timing {name} on this machine, in {config.dtype}")
    with contextlib.closing(Policy.of(ref, config)) as policy:
        speed = probe(policy, display.say)
    generate = _ROWS / (speed.step_s + _ROWS * speed.row_s)
    found = MeasuredSpeed(generate, speed.learn, peak_memory_bytes(), config.dtype, threads)
    if name in KNOWN:
        remember_speed(name, found)
    return found
