"""The state that all endpoints of a server share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from envkit.engine.chat import ChatRenderer
from envkit.serving.decoding.decoder import Adapters, Decoder
from envkit.serving.decoding.router import AUTO
from envkit.serving.decoding.routing import RequestRouter
from envkit.serving.guards.access import Access, Client, RateLimits
from envkit.serving.guards.api_errors import ApiError
from envkit.serving.ledger import Ledger
from envkit.serving.metrics import Metrics
from envkit.serving.models import ModelEntry, Models
from envkit.serving.sessions import Sessions


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of the whole server.

    Args:
        max_body_bytes: of a request's body.
        max_waiting: rows that may wait to be admitted; beyond, requests are refused.
        default_max_tokens: of an answer, if the request names none.
        context: tokens that the model reads at most, the answer included.
        vocabulary: number of token ids.
    """

    max_body_bytes: int
    max_waiting: int
    default_max_tokens: int
    context: int
    vocabulary: int


@dataclass(slots=True)
class Server:
    """The state that all endpoints share."""

    decoder: Decoder
    adapters: Adapters
    models: Models
    tokenizer: Any
    limits: ServerLimits
    access: Access = field(default_factory=Access)
    ledger: Ledger | None = None
    log_prompts: bool = False
    #: Names that requests may be sent to; ``None`` for any.
    hosts: Set[str] | None = None
    #: Chooses the model of requests for `AUTO`; without one, there is no such model id.
    routing: RequestRouter | None = None
    renderer: ChatRenderer = field(init=False)
    #: Renders and encodes prompts beside the event loop. One thread, as encoding switches the tokenizer.
    encoder: ThreadPoolExecutor = field(init=False)
    #: Rows of each client whose requests are not in the ledger yet.
    open_rows: Counter[str] = field(default_factory=Counter[str], init=False)
    #: Rows whose prompts are being encoded or routed; ``open_rows`` counts them too.
    read_rows: int = field(default=0, init=False)
    rates: RateLimits = field(default_factory=RateLimits, init=False)
    sessions: Sessions = field(default_factory=Sessions, init=False)
    metrics: Metrics = field(init=False)
    #: When the last answers are cancelled, by `time.monotonic`; ``None`` if the server does not drain.
    _drain_until_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.renderer = ChatRenderer(self.tokenizer)
        self.encoder = ThreadPoolExecutor(1, "envkit-encoder")
        self.metrics = Metrics(self.decoder, self.adapters)

    def ids(self) -> list[str]:
        """All model ids, the base first."""
        found = self.models.ids()
        return found if self.routing is None else [*(name for name in found if name != AUTO), AUTO]

    def client(self, authorization: str) -> Client | None:
        """Find the client of an ``Authorization`` header; see `Access.client`.

        The sessions of keys that are gone are dropped.
        """
        client = self.access.client(authorization)
        self.sessions.keep(self.access.digests)
        return client

    def entry(self, client: Client, model: str) -> ModelEntry:
        """Find a model; one that a key may not use does not exist for it.

        Raises:
            ApiError: there is no such model.
        """
        found = None
        if self.routing is None or model != AUTO:
            found = self._allowed(client, model)
        elif client.may_use(AUTO):
            specialists = [name for name in self.routing.names if self._allowed(client, name)]
            if specialists or client.may_use(self.models.base):
                found = ModelEntry(None, self.routing.created, specialists)
        if found is None:
            raise ApiError(404, f"the model {model!r} does not exist", "model_not_found", param="model")
        return found

    def _allowed(self, client: Client, model: str) -> ModelEntry | None:
        return self.models.find(model) if client.may_use(model) else None

    def drain(self, seconds: float) -> None:
        """Refuse new completions from now on. Those that are open have this time to end."""
        self._drain_until_s = time.monotonic() + seconds

    @property
    def drain_left_s(self) -> float | None:
        """Seconds that open completions have left; ``None`` if the server does not drain."""
        return None if self._drain_until_s is None else max(self._drain_until_s - time.monotonic(), 0)
