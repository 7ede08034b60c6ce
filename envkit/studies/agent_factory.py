"""From a row of a benchmark specification to the agent that plays it, and to what a report says of it."""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from rich.markup import escape

from envkit.agent import Agent
from envkit.agents.api import ApiAgent
from envkit.agents.budget import Budget
from envkit.agents.call_journal import RecordedCalls
from envkit.agents.cards import Card, load_card
from envkit.agents.endpoint import Endpoint
from envkit.agents.local import LocalAgent
from envkit.agents.recorded import RecordedAgent, read_recorded, read_usage
from envkit.agents.scripted import random_edits
from envkit.benchmark.report_data import Origin
from envkit.benchmark.spec import AgentSpec, BenchSpec
from envkit.display import Display
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.errors import ConfigError, StoreError
from envkit.models import DEFAULT_MODEL, resolve, weights_digest
from envkit.prices import PriceTable
from envkit.stop import ShouldStop, never
from envkit.store import RunFolder
from envkit.studies.timing import training_seconds
from envkit.studies.validate_tasks import controls
from envkit.types import EpisodeKey, Task

if TYPE_CHECKING:
    from envkit.training.policy import Policy

#: Settings of a row that only what is sampled heeds.
_SAMPLED: Final = ("temperature", "max_completion_length", "stop_strings", "max_context_length")
#: What runs trained with that began before these settings were there.
_UNSAID: Final[Mapping[str, Any]] = {"stop_strings": [], "max_context_length": 0, "dtype": "float32"}


@final
class AgentFactory:
    """Makes the agents of a run.

    Args:
        spec: whose rows they are.
        began: the run's manifest: digests of models and adapters, and cards, as it began with them.
        prices: what an API's tokens cost.
        display: says what is loaded.
        should_stop: polled while an agent answers.
    """

    def __init__(
        self,
        spec: BenchSpec,
        began: Mapping[str, Any],
        prices: PriceTable,
        display: Display,
        should_stop: ShouldStop = never,
    ) -> None:
        self._spec, self._began = spec, began
        self._prices, self._display, self._should_stop = prices, display, should_stop
        self._budget = Budget(spec.budget_usd)
        #: The base that answered last, and its model.
        self._loaded: tuple[str, Policy] | None = None

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
            yield RecordedAgent(row.name, read_recorded(file), idle=kind.noop_action, usage=read_usage(file))
        elif row.card:
            with self._api(row, part, kind) as api:
                yield api
        else:
            model = model_of(row)
            if self._loaded is None or self._loaded[0] != model:
                self._loaded = None  # two bases at once might not fit into memory
                self._loaded = model, self._load(model)
            policy = self._loaded[1]
            sampling = Sampling(*_sampling(row), stop_strings=row.stop_strings or ())
            number = [one.name for one in self._on(model)].index(row.name)
            yield LocalAgent(
                row.name,
                policy.engine,
                policy.renderer,
                sampling,
                self._spec.max_turns,
                adapter=number,
                max_context_length=row.max_context_length or 0,
                should_stop=self._should_stop,
            )

    @contextmanager
    def _api(self, row: AgentSpec, part: RunFolder, kind: type[Env]) -> Generator[ApiAgent]:
        card, calls = self._card(row), _calls(row)
        recorded = part.records(calls)
        temperature, length = _sampling(row)
        with (
            part.journal(calls) as journal,
            ApiAgent(
                row.name,
                card,
                temperature=temperature,
                max_completion_tokens=length,
                price=card.price_in(self._prices),
                budget=self._budget,
                journal=journal,
                tools=[tool.schema() for tool in kind.tools],
                recorded=recorded,
                on_retry=lambda line: self._display.say(escape(line)),
                should_stop=self._should_stop,
            ) as agent,
        ):
            yield agent

    def count_spent(self, row: AgentSpec, part: RunFolder) -> None:
        """Count what a row has spent before, so that no other spends it again."""
        if row.card:
            price = self._card(row).price_in(self._prices)
            usages = RecordedCalls(part.records(_calls(row))).usages
            self._budget.count(sum(map(price.of, usages)), part.path / f"{_calls(row)}.jsonl")

    def origin(self, row: AgentSpec, part: RunFolder, counted: Container[EpisodeKey]) -> Origin:
        """What the report says of where a row's answers come from; of its episodes, some are counted."""
        temperature, length = _sampling(row)
        if row.card:
            card = self._card(row)
            # Not those that were under way when a run was killed: they are nothing that the agent did.
            usages = [u for key, u in RecordedCalls(part.records(_calls(row))).ended if key in counted]
            return Origin(
                "live",
                card.model,
                machine=card.machine,
                temperature=temperature if card.temperature else math.nan,
                max_completion_length=length,
                prompt_tokens=sum(usage.prompt_tokens for usage in usages),
                completion_tokens=sum(usage.completion_tokens for usage in usages),
                cached_tokens=sum(usage.cached_tokens for usage in usages),
                seconds=sum(usage.seconds for usage in usages) / card.concurrency,
                price=card.price,
            )
        if runs_here(row):
            return Origin(
                "local",
                model_of(row),
                self._began["adapters"].get(row.name, ""),
                training_seconds=self._spent_on(Path(row.adapter)) if row.adapter else 0.0,
                temperature=temperature,
                max_completion_length=length,
                stop_strings=row.stop_strings or (),
                max_context_length=row.max_context_length or 0,
                digest=self._began["models"][model_of(row)],
            )
        if row.recorded:
            return Origin("recorded", Path(row.recorded).name.removesuffix(".jsonl"))
        return Origin()

    def describe(self, row: AgentSpec) -> str:
        """What a row is, in a few words."""
        if row.card:
            card = self._card(row)
            more = "".join(f", {key} {value}" for key, value in sorted(card.request.items()))
            return f"{card.model} at {card.base_url}, by {'tools' if card.mode == 'tools' else 'text'}{more}"
        if row.adapter:
            return f"adapter {row.adapter} on {model_of(row)}"
        if row.recorded:
            return "outputs recorded elsewhere, graded here"
        return f"{row.model}, untouched" if row.model else f"scripted: {row.script}"

    def differences_from_training(self, row: AgentSpec) -> list[str]:
        """In which settings a row, with all fields filled in, differs from what its adapter was trained with.

        A sentence for each. None where the adapter does not lie in the run folder that trained it.
        """
        run = _made_in(Path(row.adapter)) if row.adapter else None
        if run is None:
            return []
        then = {**_UNSAID, **run.manifest.get("plan", {}).get("train", {})}
        now = {
            "stop_strings": [*(row.stop_strings or ())],
            "max_context_length": row.max_context_length,
            "max_turns": self._spec.max_turns,
            "max_completion_length": row.max_completion_length,
            "dtype": self._began["machine"]["dtype"],
        }
        return [
            f"{row.name} was trained with {setting} {then[setting]}, and is asked with {asked}."
            for setting, asked in now.items()
            if then.get(setting, asked) != asked
        ]

    def require_unchanged(self, row: AgentSpec) -> None:
        """Refuse to go on with an adapter or a card that is not what the run began with.

        Raises:
            StoreError: it has changed, or is gone.
        """
        if row.adapter:
            folder = Path(row.adapter)
            if not folder.is_dir() or weights_digest(folder) != self._began["adapters"][row.name]:
                raise StoreError(f"{row.adapter} has changed since the run began, or is gone; cannot go on")
        if row.card and asdict(load_card(row.card)) != self._began["cards"][row.name]:
            raise StoreError(
                f"card {row.card} has changed since the run began; start another run, or change it back"
            )

    def _spent_on(self, adapter: Path) -> float:
        """Seconds that made an adapter, from the run folder that it lies in.

        NaN where that is none, where the run went on from there, and where another kind of machine took them,
        whose hours have another price.
        """
        run, own = _made_in(adapter), self._began["machine"]
        if run is None or any(path.name > adapter.name for path in adapter.parent.glob("step-*")):
            return math.nan
        theirs = run.manifest.get("machine", own)
        if any((theirs.get(part) or "") != (own.get(part) or "") for part in ("cores", "card")):
            return math.nan
        return training_seconds(run, ("SFT",)) if adapter.name == "sft" else training_seconds(run)

    def _card(self, row: AgentSpec) -> Card:
        """A row's card, as the run began with it."""
        return Card(**self._began["cards"][row.name])

    def _on(self, model: str) -> list[AgentSpec]:
        """The rows that a base answers, alone or with an adapter."""
        return [row for row in self._spec.agents if runs_here(row) and model_of(row) == model]

    def _load(self, model: str) -> Policy:
        """One base, and all adapters on it."""
        from envkit.training.policy import Policy

        ref = resolve(model, self._display.say)
        if ref.digest != self._began["models"][model]:
            raise StoreError(f"the run began with other weights of {model}; cannot go on")
        policy = Policy(ref, dtype=str(self._began["machine"]["dtype"]))
        names: list[str | None] = []
        for number, row in enumerate(self._on(model)):
            names.append(f"arm-{number}" if row.adapter else None)
            if row.adapter:
                policy.add(Path(row.adapter), f"arm-{number}")
                for sentence in self.differences_from_training(self._spec.of(row)):
                    self._display.say(escape(sentence))
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


def require_usable(row: AgentSpec, prices: PriceTable, sets: Sequence[Sequence[Task]]) -> None:
    """Refuse a row whose parts are not there, before anything is run; ``sets`` are the tasks it will play.

    Raises:
        UsageError: no such card, no price for it or no key, an adapter folder that is none, a setting of its
            own that would do nothing, or tasks that the random agent cannot play.
    """
    said = [name for name in _SAMPLED if getattr(row, name) is not None]
    if said and (row.script or row.recorded):
        raise ConfigError(f"agent {row.name}: nothing is sampled for it; leave out {', '.join(said)}")
    if row.script == "random":
        for tasks in sets:
            random_edits({task.id: task for task in tasks})
    if row.card:
        card = load_card(row.card)
        if row.temperature is not None and not card.temperature:
            raise ConfigError(f"agent {row.name}: card {row.card} takes no temperature; leave it out")
        card.price_in(prices)
        Endpoint(card).close()
    if row.adapter and not (Path(row.adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"{row.adapter}: no adapter_config.json there; expected a PEFT adapter folder")


def _made_in(adapter: Path) -> RunFolder | None:
    """The run folder that an adapter lies in, if it is one."""
    for folder in adapter.resolve().parents:
        if (folder / "manifest.json").exists() and (folder / "phases.jsonl").exists():
            return RunFolder.open(folder)
    return None


def _calls(row: AgentSpec) -> str:
    """Name of the journal of a row's calls."""
    return f"calls-{row.name}"


def _sampling(row: AgentSpec) -> tuple[float, int]:
    """Temperature and most tokens of a row that has them filled in."""
    if row.temperature is None or row.max_completion_length is None:
        raise ValueError(f"agent {row.name} has not been filled in; see BenchSpec.of")
    return row.temperature, row.max_completion_length
