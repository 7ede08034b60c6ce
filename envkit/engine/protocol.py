"""The engine protocol: token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from envkit.runtime.stop import ShouldStop, never

if TYPE_CHECKING:  # it imports torch, which API agents do not need
    from envkit.engine.adapters.updates import Update


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters.

    Args:
        temperature: > 0 divides the logits; 0 takes the most likely token.
        max_new_tokens: tokens per turn, at least 1.
        top_p: draw from the most likely tokens that together reach this probability, in (0, 1].
        stop_strings: non-empty texts that also end a turn. The token that completes one stays in the answer.
    """

    temperature: float = 1.0
    max_new_tokens: int = 128
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.max_new_tokens < 1:
            raise ValueError(f"{self}: expected a finite temperature >= 0 and max_new_tokens >= 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: expected top_p above 0 and at most 1")
        if isinstance(self.stop_strings, str) or "" in self.stop_strings:
            raise ValueError(f"{self}: expected a tuple of stop_strings, none of them empty")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to draw.

    Args:
        prompt_ids: all ids of the context, at least one. Requests with equal prompts share a prefill.
        rng_key: integers that address the random draws; equal keys give equal draws.
        adapter: number of the adapter in the order of `AdapterEngine.load`. If none is loaded, the base
            answers.
        earlier_tokens: how many of the first ids were part of an earlier request or its completion. Their KV
            state is reused if the engine still holds it.
        keep_cache: True if a later request may continue this one. Its KV state is then kept until the next
            call.
    """

    prompt_ids: tuple[int, ...]
    rng_key: tuple[int, ...]
    adapter: int = 0
    _: KW_ONLY
    earlier_tokens: int = 0
    keep_cache: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request.

    Args:
        ids: sampled ids, the end-of-turn id included when it was drawn; never empty.
        logprobs: natural log of each id's probability under the distribution it was drawn from
            (after temperature and truncation; of the plain softmax when the temperature is 0).
        stop: ``"stop"`` after an end-of-turn id or a stop string, ``"length"`` at ``max_new_tokens`` or at
            the end of the model's context.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: str


class Engine(Protocol):
    """Draws completions. Not thread-safe."""

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, should_stop: ShouldStop = never
    ) -> Generator[tuple[int, Completion]]:
        """Yield each request's index and completion, as soon as it is finished.

        A pure function of weights, requests and sampling, up to rounding: KV state of earlier calls may be
        rounded differently. The same calls in the same order since the weights were set give the same bits.

        Args:
            requests: what to complete.
            sampling: how tokens are drawn.
            should_stop: polled at least once per decoded token; vLLM's engine polls it once per call.

        Raises:
            Stopped: ``should_stop`` has become True.
            ModelError: the model's logits are not finite, or a prompt exceeds its context.
            ContractError: a request names an adapter that was not loaded, or the engine cannot do what
                ``sampling`` asks for.
        """
        ...

    @property
    def longest(self) -> int:
        """Tokens that the model reads at most, the answer included."""
        return sys.maxsize

    @property
    def held_tokens(self) -> int:
        """Tokens of conversations whose KV state it holds from one call to the next, at most."""
        return sys.maxsize

    def holds(self, request: Request) -> bool:
        """True if it need not compute the KV state of a request's earlier tokens again.

        An engine that manages its memory by itself may say so of every request.
        """
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Return all completions, in the order of the requests."""
        completions = dict(self.stream(requests, sampling))
        return [completions[index] for index in range(len(requests))]


class AdapterEngine(Engine, Protocol):
    """An engine that can switch adapters."""

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """Replace all adapters. An empty one stands for the base alone.

        Args:
            adapters: see `envkit.engine.adapters.updates.updates_of`; numbered in this order, from 0.

        Raises:
            ModelError: one is for another model.
        """
        ...

    def forget(self) -> None:
        """Drop cached KV state. Continued conversations are prefilled again."""
        ...

    def close(self) -> None:
        """Free all resources, processes included. Idempotent; the engine cannot be used afterwards."""
        ...


def uniforms(rng_key: Sequence[int], count: int) -> NDArray[np.float64]:
    """Draw ``count`` numbers in [0, 1) that depend on the key alone (Philox, Salmon et al. 2011).

    Parts of a key are taken modulo 2**64.

    >>> bool((uniforms((1, 2), 3) == uniforms((1, 2), 5)[:3]).all())
    True
    """
    return np.random.Generator(np.random.Philox(seeds(rng_key))).random(count)


def seeds(rng_key: Sequence[int]) -> np.random.SeedSequence:
    """The seed sequence of a key."""
    # Two words per part: numpy drops leading zero words, so that different keys would collide.
    return np.random.SeedSequence([word & 0xFFFFFFFF for part in rng_key for word in (part, part >> 32)])
