"""From a row of a benchmark specification to the agent that plays it, and to what the report says of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from envkit.agent import Agent
from envkit.agents.api import ApiAgent
from envkit.agents.budget import Budget
from envkit.agents.calls import Recorded
from envkit.agents.cards import load_card
from envkit.agents.endpoint import Endpoint
from envkit.agents.local import LocalAgent
from envkit.agents.recorded import RecordedAgent, read_recorded, read_usage
from envkit.agents.scripted import random_edits
from envkit.bench.data import Origin
from envkit.bench.spec import AgentSpec, BenchSpec
from envkit.display import Display
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import ConfigError, StoreError
from envkit.models import DEFAULT_MODEL, resolve, weights_digest
from envkit.prices import PriceTable
from envkit.store import RunFolder
from envkit.studies.arms import training_seconds
from envkit.studies.verify import controls
from envkit.train.policy import Policy
from envkit.types import Task


@final
class Cast:
    """Makes the agents of a run.

    Args:
        spec: whose rows they are.
        digests: of the weights of every model that runs here, by name, as the run began with them.
        dtype: of these models.
        prices: what an API's tokens cost.
        display: says what is loaded.
    """

    def __init__(
        self, spec: BenchSpec, digests: Mapping[str, str], dtype: str, prices: PriceTable, display: Display
    ) -> None:
        self._spec, self._digests, self._dtype = spec, digests, dtype
        self._prices, self._display = prices, display
        self._budget = Budget(spec.budget_usd)
        # Two bases at once might not fit into memory.
        self._policy = functools.lru_cache(maxsize=1)(self._load)

    @contextmanager
    def agent(
        self, row: AgentSpec, part: RunFolder, kind: type[Env], tasks: Sequence[Task]
    ) -> Generator[Agent]:
        """The agent of a row, for as long as it plays.

        Args:
            row: with all fields filled in, see `BenchSpec.of`.
            part: where an API's calls are kept, and recorded outputs are.
            kind: the environment.
            tasks: that it will be asked.

        Raises:
            UsageError: an API's key or price is missing.
            StoreError: the weights are not the ones that the run began with.
        """
        if row.script == "random":
            yield random_edits({task.id: task for task in tasks})
        elif row.script:
            yield next(agent for agent, _ in controls(kind, tasks) if agent.name == row.script)
        elif row.recorded:
            file = outputs(part, row)
            yield RecordedAgent(row.name, read_recorded(file), idle=kind.idle, usage=read_usage(file))
        elif row.card:
            with self._api(row, part, kind) as api:
                yield api
        else:
            model = model_of(row)
            policy = self._policy(model, kind.system)
            sampling = Sampling(_sampling(row)[0], _sampling(row)[1])
            number = [one.name for one in self._on(model)].index(row.name)
            yield LocalAgent(
                row.name, policy.engine, policy.renderer, sampling, self._spec.max_turns, adapter=number
            )

    @contextmanager
    def _api(self, row: AgentSpec, part: RunFolder, kind: type[Env]) -> Generator[ApiAgent]:
        card, calls = load_card(row.card), f"calls-{row.name}"
        recorded = part.records(calls)
        temperature, length = _sampling(row)
        with (
            part.journal(calls) as journal,
            ApiAgent(
                row.name,
                card,
                system=kind.system,
                temperature=temperature,
                max_completion_tokens=length,
                price=card.price_in(self._prices),
                budget=self._budget,
                journal=journal,
                tools=[tool.schema() for tool in kind.tools],
                recorded=recorded,
            ) as agent,
        ):
            yield agent

    def count_spent(self, row: AgentSpec, part: RunFolder) -> None:
        """Count what a row that has been played has spent."""
        if row.card:
            price = load_card(row.card).price_in(self._prices)
            for usage in Recorded(part.records(f"calls-{row.name}")).usages:
                tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
                self._budget.count(price.cost_usd(*tokens))

    def _on(self, model: str) -> list[AgentSpec]:
        """The rows that a base answers, alone or with an adapter."""
        return [row for row in self._spec.agents if runs_here(row) and model_of(row) == model]

    def _load(self, model: str, system: str) -> Policy:
        """One base, and all adapters on it."""
        ref = resolve(model, self._display.say)
        if ref.digest != self._digests[model]:
            raise StoreError(f"the run began with other weights of {model}; cannot go on")
        policy = Policy(ref, system=system, dtype=self._dtype)
        names: list[str | None] = []
        for number, row in enumerate(self._on(model)):
            names.append(f"arm-{number}" if row.adapter else None)
            if row.adapter:
                policy.add(Path(row.adapter), f"arm-{number}")
        policy.serve(names)
        return policy


def runs_here(row: AgentSpec) -> bool:
    """Whether a model on this machine answers for the row."""
    return bool(row.model or row.adapter)


def model_of(row: AgentSpec) -> str:
    """The base that a row runs on."""
    return row.model or DEFAULT_MODEL


def outputs(part: RunFolder, row: AgentSpec) -> Path:
    """Where a part keeps a row's recorded outputs."""
    return part.path / f"recorded-{row.name}.jsonl"


def require_usable(row: AgentSpec, prices: PriceTable) -> None:
    """Refuse a row whose parts are not there, before anything is run.

    Raises:
        UsageError: no such card, no price for it or no key, or an adapter folder that is none.
    """
    if row.card:
        card = load_card(row.card)
        card.price_in(prices)
        Endpoint(card).close()
    if row.adapter and not (Path(row.adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"{row.adapter}: no adapter_config.json there; expected a PEFT adapter folder")


def origin_of(row: AgentSpec) -> Origin:
    """What the report says of where a row's answers come from; ``row`` has all fields filled in."""
    temperature, length = _sampling(row)
    if row.card:
        card = load_card(row.card)
        heat = temperature if card.temperature else math.nan
        return Origin(
            "live",
            card.price or card.model,
            machine=card.machine,
            temperature=heat,
            max_completion_length=length,
        )
    if runs_here(row):
        adapter = Path(row.adapter) if row.adapter else None
        return Origin(
            "local",
            model_of(row),
            weights_digest(adapter) if adapter else "",
            training_seconds=_spent_on(adapter) if adapter else 0.0,
            temperature=temperature,
            max_completion_length=length,
        )
    return (
        Origin("recorded", Path(row.recorded).stem if "/" in row.recorded else row.recorded)
        if row.recorded
        else Origin()
    )


def describe(row: AgentSpec) -> str:
    """What a row is, in a few words."""
    if row.card:
        card = load_card(row.card)
        return f"{card.model}, asked at {card.base_url}, {'tools' if card.mode == 'tools' else 'plain text'}"
    if row.adapter:
        return f"adapter {row.adapter} on {model_of(row)}"
    if row.recorded:
        return "outputs recorded elsewhere, graded here"
    return f"{model_of(row)}, untouched" if row.model else f"scripted: {row.script}"


def _spent_on(adapter: Path) -> float:
    """Seconds that made an adapter, from the run folder that it lies in; NaN where that is none."""
    for folder in adapter.resolve().parents:
        if (folder / "manifest.json").exists() and (folder / "phases.jsonl").exists():
            return training_seconds(RunFolder.open(folder))
    return math.nan


def _sampling(row: AgentSpec) -> tuple[float, int]:
    """Temperature and most tokens of a row that has them filled in."""
    if row.temperature is None or row.max_completion_length is None:
        raise ValueError(f"agent {row.name} has not been filled in; see BenchSpec.of")
    return row.temperature, row.max_completion_length
