"""The state that all endpoints of a server share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from envkit.engine.chat import ChatRenderer
from envkit.serving.access import Access, RateLimits
from envkit.serving.decoder import Adapters, Decoder
from envkit.serving.ledger import Ledger
from envkit.serving.metrics import Metrics
from envkit.serving.models import Models
from envkit.serving.router import AUTO
from envkit.serving.routing import RequestRouter
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

    def created(self, model: str) -> int:
        """Time of a model's files, in seconds since 1970.

        Raises:
            LookupError: there is no such model.
        """
        if self.routing is not None and model == AUTO:
            return self.routing.created
        return self.models.created(model)

    def drain(self, seconds: float) -> None:
        """Refuse new completions from now on. Those that are open have this time to end."""
        self._drain_until_s = time.monotonic() + seconds

    @property
    def drain_left_s(self) -> float | None:
        """Seconds that open completions have left; ``None`` if the server does not drain."""
        return None if self._drain_until_s is None else max(self._drain_until_s - time.monotonic(), 0)
