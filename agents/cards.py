"""Agent cards: address, key, price and request fields of a model behind an OpenAI-compatible API."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from envkit.errors import ConfigError
from envkit.runtime.files import read_toml
from envkit.runtime.plain import decode
from envkit.runtime.prices import Price, PriceTable

_CHOICES = {"mode": ("text", "tools"), "token_limit": ("max_completion_tokens", "max_tokens")}
#: Request fields that the agent sets itself, or that change the reply to a form it cannot read.
_RESERVED = {"model", "messages", "tools", "temperature", "stream", "n", *_CHOICES["token_limit"]}


@dataclass(frozen=True, slots=True)
class Card:
    """A model behind an API. Either ``price`` or ``machine`` is set.

    Args:
        name: name of the card.
        model: the provider's id of the model.
        base_url: address of the API, without ``/chat/completions``.
        key_env: environment variable that holds the API key; empty if the server needs no key.
        mode: ``"text"``: the reply's text is the action. ``"tools"``: the environment's tools are offered,
            and the reply's tool call is the action.
        price: the model's id in the price table, if tokens are paid for.
        machine: the machine's name in the price table, if hours are paid for.
        token_limit: name of the request field that limits the reply's tokens.
        temperature: True if the API accepts a temperature.
        max_completion_tokens: default token limit of a reply, hidden reasoning included; 0 for the same
            default as local models.
        concurrency: concurrent requests, at least 1.
        timeout_s: seconds until a request fails, above 0.
        request: additional fields of every request, such as ``reasoning_effort``.
    """

    name: str
    model: str
    base_url: str
    key_env: str
    mode: str = "text"
    price: str = ""
    machine: str = ""
    token_limit: str = "max_completion_tokens"
    temperature: bool = True
    max_completion_tokens: int = 0
    concurrency: int = 4
    timeout_s: float = 600.0
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; give the model's id at its provider")
        if not _is_plain(self.base_url):
            raise ConfigError("base_url must be like https://host/v1, without a user, a key or a query")
        if self.key_env and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key_env):
            # The value may be the key itself, so it is not repeated.
            raise ConfigError("key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; expected one of: {', '.join(choices)}")
        if bool(self.price) == bool(self.machine):
            raise ConfigError("give either price (paid by the token) or machine (paid by the hour)")
        if self.max_completion_tokens < 0:
            raise ConfigError(f"max_completion_tokens is {self.max_completion_tokens}; it must be at least 0")
        if self.concurrency < 1:
            raise ConfigError(f"concurrency is {self.concurrency}; it must be at least 1")
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be above 0 and finite")
        if reserved := self.request.keys() & _RESERVED:
            raise ConfigError(f"request.{min(reserved)} is set by envkit; leave it out of the card")
        try:
            json.dumps(dict(self.request), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"request cannot be sent as JSON: {error}") from error

    def price_in(self, table: PriceTable) -> Price:
        """Price per token; 0 if the machine is paid for by the hour.

        Raises:
            UnpricedError: the table has no such model or machine.
        """
        if self.machine:
            table.hourly_usd(self.machine)
            return Price(0.0, 0.0)
        return table.of(self.price)


def load_card(name_or_path: str) -> Card:
    """Load a card that envkit ships, by name, or a TOML file with the fields of `Card`, by path.

    Raises:
        ConfigError: no card has that name, or the file cannot be read, or a key or value in it is wrong; the
            message names file and key.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.name != name_or_path:
        values = read_toml(path)
    elif name_or_path in shipped_cards():
        values = tomllib.loads(_shipped().joinpath(f"{name_or_path}.toml").read_text("utf-8"))
    else:
        raise ConfigError(
            f"no card is named {name_or_path!r}; choose one of: {', '.join(shipped_cards())}, "
            "or give the path of a .toml file"
        )
    request: object = values.pop("request", {})
    if not isinstance(request, dict):
        raise ConfigError(f"{name_or_path}: request is {request!r:.60}; expected a table")
    try:
        card = decode(Card, {"name": path.name.removesuffix(".toml"), **values}, "the card")
        return replace(card, request=cast("dict[str, Any]", request))
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{name_or_path}: {error}") from None


def shipped_cards() -> list[str]:
    """Names of the cards that envkit ships, sorted."""
    files = _shipped().iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _shipped() -> Traversable:
    return resources.files("envkit.agents").joinpath("baselines")


def _is_plain(base_url: str) -> bool:
    """True if the address holds no user, password or query: these may be secrets, and reports show it."""
    try:
        url = urlsplit(base_url)
        _ = url.port  # raises if the port is not a number
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and not re.search("[@?#]", base_url)
