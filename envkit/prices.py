"""Prices of tokens and machine hours: a dated table that turns counts into dollars."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

from envkit.errors import ConfigError, UnpricedError
from envkit.files import read_settings
from envkit.types import Usage


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a model in dollars per million tokens.

    Args:
        input: tokens read.
        output: tokens written, hidden reasoning included.
        cached: tokens read that the provider already had; ``None`` where it makes no difference.
    """

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """Dollars for the tokens of one call or several."""
        return self.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars for so many tokens; ``cached_tokens`` are those of ``prompt_tokens`` found in the cache."""
        cached = self.input if self.cached is None else self.cached
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices of one day.

    Args:
        date: ISO date on which they were read.
        source: where.
        models: by the model's id at its provider.
        machines: dollars per hour of hardware, by name.
        notes: model id -> another source than ``source``, such as for a model no longer sold.
    """

    date: str
    source: str
    models: Mapping[str, Price]
    machines: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, model: str) -> Price:
        """The price of a model.

        Raises:
            UnpricedError: there is none; the message says how to add one.
        """
        if model not in self.models:
            raise UnpricedError(
                f"no price for {model!r} in the table of {self.date}; give --prices a file that has "
                f'[models."{model}"] with input and output in dollars per million tokens'
            )
        return self.models[model]

    def hourly_usd(self, machine: str) -> float:
        """Dollars per hour of a kind of machine.

        Raises:
            UnpricedError: there is none of that name.
        """
        if machine not in self.machines:
            raise UnpricedError(
                f"no price for machine {machine!r}; there is: {', '.join(sorted(self.machines))}"
            )
        return self.machines[machine]


def load_prices(path: Path | None = None) -> PriceTable:
    """The table that envkit ships, with a file's prices on top where one is given.

    The file is TOML: ``date``, ``source``, ``[models."ID"]`` with ``input``, ``output`` and maybe ``cached``
    and ``source``, ``[machines]`` with dollars per hour.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong; names file and key.
    """
    own = _parse(resources.files("envkit").joinpath("prices.toml").read_text("utf-8"), "prices.toml")
    if path is None:
        return own
    try:
        text = read_settings(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    mine = _parse(text, str(path))
    date = mine.date if mine.date == own.date else f"{own.date}, and {path.name} of {mine.date}"
    return PriceTable(
        date,
        f"{own.source}; {mine.source}",
        {**own.models, **mine.models},
        {**own.machines, **mine.machines},
        {**own.notes, **{model: mine.notes.get(model, mine.source) for model in mine.models}},
    )


def _parse(text: str, where: str) -> PriceTable:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML ({error})") from error
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
            raise ConfigError(f"{place}: unknown key {min(unknown)!r}")
        cached = None if "cached" not in fields else _dollars(fields, "cached", place)
        models[model] = Price(_dollars(fields, "input", place), _dollars(fields, "output", place), cached)
        if "source" in fields:
            notes[model] = str(fields["source"])
    hours = _table(data, "machines", where)
    machines = {name: _dollars(hours, name, f"{where}: machines") for name in hours}
    for key in ("date", "source"):
        if key not in data:
            raise ConfigError(f"{where}: lacks {key!r}; a price without one cannot be checked")
    return PriceTable(str(data["date"]), str(data["source"]), models, machines, notes)


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {key} is no table")
    return cast("dict[str, Any]", found)


def _dollars(fields: Mapping[str, Any], key: str, where: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ConfigError(f"{where}: {key} is {value!r}; expected dollars, at least 0")
    return float(value)
