"""Keep the speed and memory that were last measured for each model on this machine, in the cache."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from envkit.errors import EnvkitError
from envkit.runtime.cache import cache_dir, cache_folder
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode
from envkit.runtime.store import write_atomic


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """Speed of a model on this machine, and the memory that it took.

    Args:
        generate: tokens per second, sampled in 64 rows at the same time.
        learn: tokens per second, forward and backward.
        memory_bytes: largest resident memory of the process that measured.
        dtype: of the weights.
        threads: that PyTorch used.
    """

    generate: float
    learn: float
    memory_bytes: int
    dtype: str
    threads: int

    def __str__(self) -> str:
        return (
            f"samples {self.generate:,.0f} and learns {self.learn:,.0f} tokens/s, in "
            f"{self.memory_bytes / 10**9:.1f} GB ({self.dtype}, {self.threads} threads)"
        )


def known_speed(name: str) -> MeasuredSpeed | None:
    """Return the last measured speed of a known model; ``None`` if there is none, or its file is damaged."""
    try:
        return decode(MeasuredSpeed, read_json_object(_file(name)), "speed")
    except (OSError, ValueError, EnvkitError):
        return None


def remember_speed(name: str, speed: MeasuredSpeed) -> None:
    """Keep a measured speed of a known model."""
    cache_folder("speeds")
    write_atomic(_file(name), json.dumps(asdict(speed)).encode() + b"\n")


def _file(name: str) -> Path:
    return cache_dir() / "speeds" / f"{name}.json"
