"""Prices of tokens and machine hours, in a dated table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

from envkit.errors import ConfigError, UnpricedError
from envkit.runtime.files import read_toml
from envkit.types import Usage


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a model in dollars per million tokens.

    Args:
        input: price of prompt tokens.
        output: price of completion tokens, hidden reasoning included.
        cached: price of prompt tokens in the provider's cache; ``None`` if it equals ``input``.
    """

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """Dollars for the tokens of one or more calls."""
        return self.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars for numbers of tokens; ``cached_tokens`` is a part of ``prompt_tokens``."""
        cached = self.input if self.cached is None else self.cached
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices on one day.

    Args:
        date: ISO date on which they were looked up.
        source: where they were looked up.
        models: provider's model id -> price.
        machines: name of hardware -> dollars per hour.
        notes: model id -> source of its price, if it differs from ``source``.
    """

    date: str
    source: str
    models: Mapping[str, Price]
    machines: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, model: str) -> Price:
        """Return the price of a model.

        Raises:
            UnpricedError: the table has no such model; the message says how to add it.
        """
        if model not in self.models:
            raise UnpricedError(
                f"no price for {model!r} in the table of {self.date}; give --prices a file that has "
                f'[models."{model}"] with input and output in dollars per million tokens'
            )
        return self.models[model]

    def hourly_usd(self, machine: str) -> float:
        """Dollars per hour of a machine.

        Raises:
            UnpricedError: the table has no such machine.
        """
        if machine not in self.machines:
            raise UnpricedError(
                f"no price for machine {machine!r}; there is: {', '.join(sorted(self.machines))}"
            )
        return self.machines[machine]


def load_prices(path: Path | None = None) -> PriceTable:
    """Load the price table that envkit ships; prices in a file are added, or replace shipped ones.

    The file is TOML: ``date``, ``source``, ``[models."ID"]`` with ``input``, ``output`` and optionally
    ``cached`` and ``source``, ``[machines]`` with dollars per hour.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the message names file and key.
    """
    shipped_text = resources.files("envkit.runtime").joinpath("prices.toml").read_text("utf-8")
    shipped = _price_table(tomllib.loads(shipped_text), "prices.toml")
    if path is None:
        return shipped
    added = _price_table(read_toml(path), str(path))
    date = added.date if added.date == shipped.date else f"{shipped.date}, and {path.name} of {added.date}"
    return PriceTable(
        date,
        f"{shipped.source}; {added.source}",
        {**shipped.models, **added.models},
        {**shipped.machines, **added.machines},
        {**shipped.notes, **{model: added.notes.get(model, added.source) for model in added.models}},
    )


def _price_table(data: Mapping[str, Any], where: str) -> PriceTable:
    if unknown := data.keys() - {"date", "source", "models", "machines"}:
        raise ConfigError(
            f"{where}: unknown key {min(unknown)!r}; expected date, source, models and machines"
        )
    models, notes = dict[str, Price](), dict[str, str]()
    for model, entry in _table(data, "models", where).items():
        place = f"{where}: models.{model}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{place}: expected a table with input and output")
        fields = cast("dict[str, Any]", entry)
        if unknown := fields.keys() - {"input", "output", "cached", "source"}:
            raise ConfigError(
                f"{place}: unknown key {min(unknown)!r}; expected input, output, cached and source"
            )
        cached = None if "cached" not in fields else _dollars(fields, "cached", place)
        models[model] = Price(_dollars(fields, "input", place), _dollars(fields, "output", place), cached)
        if "source" in fields:
            notes[model] = str(fields["source"])
    hours = _table(data, "machines", where)
    machines = {name: _dollars(hours, name, f"{where}: machines") for name in hours}
    for key in ("date", "source"):
        if key not in data:
            raise ConfigError(f"{where}: lacks {key!r}, which is needed to check a price")
    return PriceTable(str(data["date"]), str(data["source"]), models, machines, notes)


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {key} is not a table")
    return cast("dict[str, Any]", found)


def _dollars(fields: Mapping[str, Any], key: str, where: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ConfigError(f"{where}: {key} is {value!r}; expected dollars, at least 0")
    return float(value)
