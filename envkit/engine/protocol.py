"""The engine protocol: token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it comes with torch, which agents need not have
    from envkit.engine.lora import Update


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: > 0 divides the logits; 0 takes the most likely token.
        max_new_tokens: tokens per turn, at least 1.
        top_k: only this many most likely tokens are drawn from; 0 for all.
        top_p: only the most likely tokens that together reach this probability, in (0, 1]; after ``top_k``.
        stop_strings: texts that end a turn as well, none of them empty: with the token that completes one,
            which stays.
    """

    temperature: float = 1.0
    max_new_tokens: int = 128
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.max_new_tokens < 1:
            raise ValueError(f"{self}: expected a finite temperature >= 0 and max_new_tokens >= 1")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: expected top_k >= 0 and top_p above 0 and at most 1")
        if isinstance(self.stop_strings, str) or "" in self.stop_strings:
            raise ValueError(f"{self}: expected a tuple of stop_strings, none of them empty")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to draw.

    Args:
        prompt_ids: every id of the context, at least one. Requests of equal prompts share a prefill.
        rng_key: integers that address the draws; equal keys give equal draws.
        adapter: number of the adapter, in the order in which the engine was given them; without any, the base
            answers.
        known: how many of the ids, from the first, an earlier request brought or drew. What the engine still
            holds of them need not be read again.
        goes_on: whether a later request may continue from here; what was read is then held until the next
            call.
    """

    prompt_ids: tuple[int, ...]
    rng_key: tuple[int, ...]
    adapter: int = 0
    _: KW_ONLY
    known: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What was drawn for one request.

    Args:
        ids: sampled ids, the end-of-turn id included when it was drawn; never empty.
        logprobs: natural log of each id's probability under the distribution it was drawn from
            (after temperature and truncation; of the plain softmax when the temperature is 0).
        stop: ``"stop"`` after an end-of-turn id or a stop string, ``"length"`` at ``max_new_tokens`` or where
            the model reads no further.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: str


class Engine(Protocol):
    """Draws completions. Not thread-safe."""

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Generator[tuple[int, Completion]]:
        """One completion per request, as soon as it is whole, with the place of its request.

        A pure function of weights, requests and sampling, up to rounding: what earlier calls have read may
        have been rounded otherwise. Equal calls in equal order since the weights were set give equal bits.

        Raises:
            ModelError: the model's logits are not finite, or a prompt is longer than it reads.
            ContractError: a request or the sampling asks for what the engine was not given.
        """
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """The same, in the order of the requests."""
        found = dict(self.stream(requests, sampling))
        return [found[place] for place in range(len(requests))]


class AdapterEngine(Engine, Protocol):
    """An engine whose adapters can be changed."""

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """Take over these adapters, in place of all before; an empty one is the base alone.

        Args:
            adapters: see `envkit.engine.lora.updates_of`; numbered in this order, from 0.

        Raises:
            ModelError: one is for another model.
        """
        ...

    def forget(self) -> None:
        """Let go of what is held of conversations; they are read anew if they go on all the same."""
        ...

    def close(self) -> None:
        """Give back all that it holds, processes included; it is asked nothing more. Idempotent."""
        ...


def uniforms(rng_key: Sequence[int], count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) that depend on the key alone (Philox, Salmon et al. 2011).

    Parts of a key count modulo 2**64.

    >>> bool((uniforms((1, 2), 3) == uniforms((1, 2), 5)[:3]).all())
    True
    """
    return np.random.Generator(np.random.Philox(seeds(rng_key))).random(count)


def seeds(rng_key: Sequence[int]) -> np.random.SeedSequence:
    """What a generator of a key's own is seeded with."""
    # Two words each: a seed sequence takes only as many as a number needs, so that keys would collide.
    return np.random.SeedSequence([word & 0xFFFFFFFF for part in rng_key for word in (part, part >> 32)])
