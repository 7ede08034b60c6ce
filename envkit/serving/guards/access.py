"""Who may ask: API keys with their models, rates and sizes, from a TOML file that may change."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from envkit.errors import ConfigError
from envkit.runtime.files import read_toml

log = logging.getLogger("envkit.serving")


@dataclass(frozen=True, slots=True)
class Client:
    """Someone with an API key, and what the key allows.

    Args:
        name: in the ledger and in logs; never the key.
        digest: SHA-256 of the key, as hex. It owns the sessions: the name may be another person's later.
        models: ids that the key may use and see; ``None`` for all.
        requests_per_minute: 0 for no limit.
        tokens_per_minute: of prompts and answers; 0 for no limit. An open request counts with all tokens that
            it may use.
        max_prompt_tokens: of a prompt; 0 for no limit but the model's.
        max_tokens: of an answer; 0 for no limit but the model's.
        max_rows: answers of one request: prompts times ``n``.
        max_open_rows: answers of all requests that wait or run; 0 for no limit but the server's.
        admin: may read the metrics, which name all models.
    """

    name: str
    digest: str = ""
    models: frozenset[str] | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_prompt_tokens: int = 0
    max_tokens: int = 0
    max_rows: int = 16
    max_open_rows: int = 0
    admin: bool = False

    def may_use(self, model: str) -> bool:
        """True if the key allows a model."""
        return self.models is None or model in self.models


#: Whoever asks a server that was started without keys.
ANYONE = Client("anyone", admin=True)
_NUMBERS = (
    "requests_per_minute",
    "tokens_per_minute",
    "max_prompt_tokens",
    "max_tokens",
    "max_rows",
    "max_open_rows",
)


@dataclass(slots=True)
class _Bucket:
    """An allowance that fills up evenly, by a minute's worth in a minute."""

    per_minute: int
    left: float
    at_s: float

    def fill(self, now_s: float) -> None:
        self.left = min(self.left + (now_s - self.at_s) * self.per_minute / 60, self.per_minute)
        self.at_s = now_s

    @property
    def wait_s(self) -> float:
        """Seconds until one is left."""
        return max((1 - self.left) * 60 / self.per_minute, 0)


@final
@dataclass(slots=True)
class RateLimits:
    """Counts the requests and tokens of each client.

    Args:
        clock: seconds, ever rising.
    """

    clock: Callable[[], float] = time.monotonic
    #: By client, kind and limit: a limit that is changed starts with a whole minute's allowance.
    _buckets: dict[tuple[str, str, int], _Bucket] = field(
        default_factory=dict[tuple[str, str, int], _Bucket], init=False
    )

    def enter(self, client: Client) -> float:
        """Count a request; returns 0, or the seconds after which to ask again. Then nothing is counted."""
        buckets = [
            self._bucket(client, kind, limit)
            for kind, limit in (
                ("requests", client.requests_per_minute),
                ("tokens", client.tokens_per_minute),
            )
            if limit
        ]
        wait_s = max((bucket.wait_s for bucket in buckets), default=0.0)
        if not wait_s and client.requests_per_minute:
            buckets[0].left -= 1
        return wait_s

    def reserve(self, client: Client, tokens: int) -> float:
        """Count the tokens that a request may use; returns as `enter`.

        A request may exceed what is left; the next one waits longer then.
        """
        if not client.tokens_per_minute:
            return 0.0
        bucket = self._bucket(client, "tokens", client.tokens_per_minute)
        wait_s = bucket.wait_s
        if not wait_s:
            bucket.left -= tokens
        return wait_s

    def give_back(self, client: Client, tokens: int) -> None:
        """Return reserved tokens that were not used to the client's allowance."""
        if client.tokens_per_minute:
            self._bucket(client, "tokens", client.tokens_per_minute).left += tokens

    def _bucket(self, client: Client, kind: str, limit: int) -> _Bucket:
        bucket = self._buckets.setdefault((client.name, kind, limit), _Bucket(limit, limit, self.clock()))
        bucket.fill(self.clock())
        return bucket


@final
class Access:
    """Finds the client of a request.

    Args:
        clients: who may ask. Empty: anyone may ask for everything.
        file: that they were read from. It is read again when it has changed.
        state: of the file before it was read; see `_state`.
    """

    def __init__(
        self,
        clients: Iterable[Client] = (),
        file: Path | None = None,
        state: tuple[int, ...] = (),
    ) -> None:
        self._clients = {client.digest: client for client in clients}
        self._file, self._state = file, state

    @property
    def digests(self) -> Set[str]:
        """Digests of the keys in force."""
        return self._clients.keys() or {ANYONE.digest}

    def client(self, authorization: str) -> Client | None:
        """Return the client of an ``Authorization`` header; ``None`` if its key is not known.

        Args:
            authorization: the header's bytes, each as one character (Latin-1).
        """
        if self._file is not None:
            self._reload_if_changed(self._file)
        if not self._clients:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        # A lookup by digest takes the same time for every wrong key.
        found = self._clients.get(digest(key.strip(" \t").encode("latin-1", "backslashreplace")))
        return found if scheme.lower() == "bearer" else None

    def _reload_if_changed(self, file: Path) -> None:
        """Read the file again if it has changed. If it is not valid, the keys stay as they are."""
        if (state := _state(file)) == self._state:
            return
        self._state = state
        try:
            clients = _read_clients(file)
        except ConfigError as error:
            log.error("the new API keys are refused, and the old ones stay in force: %s", error)
            return
        before, self._clients = self._clients, clients
        new, gone = (
            sorted(keys[digest].name for digest in keys.keys() - others.keys())
            for keys, others in ((clients, before), (before, clients))
        )
        log.warning(
            "%s has changed; %d API keys are in force; new: %s; gone: %s",
            file,
            len(clients),
            ", ".join(new) or "none",
            ", ".join(gone) or "none",
        )


def digest(key: bytes) -> str:
    """SHA-256 of a key, as hex."""
    return hashlib.sha256(key).hexdigest()


def read_access(path: Path) -> Access:
    """Read a TOML file of keys: a table ``[keys.NAME]`` for each, with ``sha256`` and the fields of `Client`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the message names file and key.
    """
    state = _state(path)  # before it is read: a change in between is seen at the next request
    return Access(_read_clients(path).values(), path, state)


def _state(path: Path) -> tuple[int, ...]:
    """Numbers that change with a file; empty if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read_clients(path: Path) -> dict[str, Client]:
    """Read clients by the SHA-256 of their keys; see `read_access`."""
    data = read_toml(path)
    tables = data.get("keys")
    if data.keys() != {"keys"} or not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: expected tables [keys.NAME] and nothing else")
    clients: dict[str, Client] = {}
    for name, table in cast("dict[str, Any]", tables).items():
        client = _client(f"{path}: keys.{name}", name, table)
        if (other := clients.get(client.digest)) is not None:
            raise ConfigError(f"{path}: keys.{name} and keys.{other.name} are the same key")
        clients[client.digest] = client
    return clients


def _client(where: str, name: str, found: Any) -> Client:
    """Read one client."""
    # No text is told: any may be the key itself, by mistake, and errors go to the log.
    if not isinstance(found, dict):
        raise ConfigError(f"{where} is {_kind(found)}; expected a table")
    table = cast("dict[str, Any]", found)
    known = {"sha256", "models", "admin", *_NUMBERS}
    if unknown := table.keys() - known:
        raise ConfigError(
            f"{where}: unknown key {min(unknown)!r}; expected one of: {', '.join(sorted(known))}"
        )
    sha256, models, admin = table.get("sha256"), table.get("models"), table.get("admin", False)
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        kind = "another text" if isinstance(sha256, str) else "missing" if sha256 is None else "no text"
        raise ConfigError(
            f"{where}: sha256 is {kind}; expected 64 hex digits, from: printf %s KEY | sha256sum"
        )
    if models is not None and not (
        isinstance(models, list) and all(isinstance(model, str) for model in cast("list[Any]", models))
    ):
        raise ConfigError(f"{where}: models is {_kind(models)}; expected a list of model ids")
    if not isinstance(admin, bool):
        raise ConfigError(f"{where}: admin is {_kind(admin)}; expected true or false")
    numbers = {key: table[key] for key in _NUMBERS if key in table}
    for key, value in numbers.items():
        least = int(key == "max_rows")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            told = value if isinstance(value, int) else _kind(value)
            no_limit = "" if least else "; 0 for no limit"
            raise ConfigError(f"{where}: {key} is {told}; expected an integer, at least {least}{no_limit}")
    allowed = None if models is None else frozenset(cast("list[str]", models))
    return Client(name, sha256.lower(), allowed, admin=admin, **numbers)


def _kind(found: Any) -> str:
    """Say what a value of TOML is, without telling it."""
    kinds = {"str": "a text", "bool": "true or false", "list": "a list", "dict": "a table"}
    return kinds.get(type(found).__name__, "a number, date or time")
