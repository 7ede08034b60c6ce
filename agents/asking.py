"""Models that environments ask: one request a question, within a budget, with answers kept in the cache."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

from envkit.agents.budget import Budget
from envkit.agents.cards import Card, load_card
from envkit.agents.chat_completions import (
    ChatAnswer,
    RequestFailure,
    max_usage,
    request_body,
    request_digest,
)
from envkit.agents.endpoint import Backoff, Endpoint
from envkit.errors import (
    ConfigError,
    MissingExtraError,
    ModelUnavailable,
    SandboxError,
    StoreError,
    UnpricedError,
    UsageError,
)
from envkit.runtime.cache import cache_folder
from envkit.runtime.files import read_json_object
from envkit.runtime.prices import Price, load_prices
from envkit.runtime.store import waiting_lock, write_atomic

#: Environment variable with the dollars that all questions of a process may cost together.
BUDGET: Final = "ENVKIT_ASK_BUDGET_USD"
#: Environment variable with a price table that is added to the shipped one; see `load_prices`.
PRICES: Final = "ENVKIT_PRICES"
_DEFAULT_BUDGET: Final = "1"
#: Token limit of an answer if the card sets none.
_COMPLETION_TOKENS: Final = 1024
_BACKOFF = Backoff()
#: A prompt that every model answers, to tell a model that is down from one that a prompt is too much for.
_PROBE: Final = "Answer with one word: yes"


@final
class CachedModel:
    """A model behind an API; see `envkit.env.judging.LanguageModel`.

    Processes and threads that ask the same question at once get one answer, which is paid for once. A model
    that was found down gets one request per question until it answers again.

    Args:
        card: address, model and settings.
        price: price of the model's tokens.
        budget: limit in dollars; may be shared.
        folder: where answers are kept: never prompts, and no key.
    """

    def __init__(self, card: Card, price: Price, budget: Budget, folder: Path) -> None:
        self._card, self._price, self._budget, self._folder = card, price, budget, folder
        self._endpoint: Endpoint | None = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(card.concurrency)
        self._is_down = False

    @property
    def name(self) -> str:
        return self._card.name

    def close(self) -> None:
        """Close the connections; a later question opens them again."""
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()

    def ask(self, prompt: str, seed: int, temperature: float = 0.0) -> str:
        request = self._request(prompt, temperature)
        digest = hashlib.sha256(f"{request_digest(self._card, request)} {seed}".encode()).hexdigest()
        path = self._folder / digest[:3] / f"{digest}.json"
        with waiting_lock(path.parent):
            if path.exists():
                return _read(path)
            reply = self._answer(request, seed)
            text = reply.text if reply.stop == "stop" else ""
            kept = {"card": self.name, "text": text, "usage": asdict(reply.usage)}
            write_atomic(path, json.dumps(kept).encode())
        return text

    def _request(self, prompt: str, temperature: float) -> dict[str, Any]:
        limit = self._card.max_completion_tokens or _COMPLETION_TOKENS
        return request_body(self._card, [{"role": "user", "content": prompt}], (), temperature, limit)

    def _answer(self, request: Mapping[str, Any], seed: int) -> ChatAnswer:
        """Send a request until it is answered, refused, or has failed too often."""
        attempts, draw, failures = 1 if self._is_down else _BACKOFF.attempts, random.Random(seed), 0
        while not isinstance(found := self._send(request), ChatAnswer):
            failures += 1
            if failures >= attempts or not found.retryable:
                raise self._failure(found)
            time.sleep(_BACKOFF.delay_s(failures, found.retry_after_s, draw.random()))
        self._is_down = False
        return found

    def _failure(self, failure: RequestFailure) -> Exception:
        """The error for a request that has failed, whose prompt may be to blame: an agent wrote a part of it.

        If the model answers another prompt, the episode may fail and must not be void: otherwise, an agent
        could escape a bad grade by words that its judge cannot read.
        """
        probe = self._send(self._request(_PROBE, 0.0))
        self._is_down = not isinstance(probe, ChatAnswer)
        if isinstance(probe, ChatAnswer):
            return SandboxError(f"{self.name} does not answer one prompt, but others: {failure.reason}")
        if not probe.retryable:
            return ConfigError(f"{self.name}: {probe.reason}")
        return ModelUnavailable(f"{self.name} does not answer: {probe.reason}")

    def _send(self, request: Mapping[str, Any]) -> ChatAnswer | RequestFailure:
        """Send one request: reserve its cost, send it, book the cost.

        Raises:
            ConfigError: there is no key, or the budget does not suffice.
        """
        most = max_usage(self._card, request)
        try:
            with self._lock:
                endpoint = self._endpoint = self._endpoint or Endpoint(self._card)
            with self._slots, self._budget.hold(self._price.of(most)) as hold:
                found, usage = endpoint.ask(request, most)
                hold.usd = self._price.of(usage)
                return found
        except MissingExtraError:
            raise
        except UsageError as error:  # checks and tools take it for the agent's, unless it is of the setup
            raise ConfigError(str(error)) from error


@functools.cache
def open_model(card: str) -> CachedModel:
    """Open the model of a card; see `envkit.env.judging.open_model`. One per process and card."""
    loaded, prices = load_card(card), os.environ.get(PRICES)
    try:
        price = loaded.price_in(load_prices(Path(prices) if prices else None))
    except UnpricedError as error:
        reason = str(error).partition(";")[0]
        raise ConfigError(
            f"card {loaded.name}: {reason}; set {PRICES} to a price table that has it"
        ) from error
    model = CachedModel(loaded, price, _budget(), cache_folder("answers"))
    atexit.register(model.close)
    return model


@functools.cache
def _budget() -> Budget:
    """The budget of all questions of this process."""
    text = os.environ.get(BUDGET) or _DEFAULT_BUDGET
    try:
        limit_usd = float(text)
    except ValueError:
        limit_usd = math.nan
    if not limit_usd >= 0:
        raise ConfigError(f"{BUDGET} is {text!r}; expected dollars, at least 0")
    return Budget(limit_usd, f"set {BUDGET} to more")


def _read(path: Path) -> str:
    try:
        return str(read_json_object(path)["text"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} holds no answer ({error!r}); remove it to ask again") from error
