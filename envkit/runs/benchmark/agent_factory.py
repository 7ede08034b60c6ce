"""Make the agent of each row of a benchmark specification, and the report's facts about it."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from envkit.agent import Agent
from envkit.agents.api import ApiAgent
from envkit.agents.budget import Budget
from envkit.agents.call_journal import RecordedCalls
from envkit.agents.cards import Card, load_card
from envkit.agents.endpoint import Endpoint
from envkit.agents.local import LocalAgent
from envkit.agents.recorded import RecordedAgent, read_recorded, read_usage
from envkit.agents.scripted import baseline
from envkit.agents.with_system import WithSystem
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.env.authored import Baseline
from envkit.env.tools import Tool
from envkit.errors import ConfigError, StoreError
from envkit.measure.report.data import Origin
from envkit.measure.spec import AgentSpec, BenchSpec
from envkit.models import DEFAULT_MODEL, resolve, token_counter, weights_digest
from envkit.runs.benchmark.validate_tasks import controls
from envkit.runs.folder.run_records import base_of, training_run_of
from envkit.runs.folder.timing import spent_on
from envkit.runs.folder.turns import turns_of
from envkit.runtime.display import Display
from envkit.runtime.prices import PriceTable
from envkit.runtime.stop import ShouldStop, never
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.learner.heap import release_freed_memory
from envkit.types import EpisodeKey, Task

if TYPE_CHECKING:
    from envkit.training.policy import Policy

#: Settings of a row that have an effect only on sampled agents, not on scripts or recorded outputs.
_SAMPLING_SETTINGS: Final = ("temperature", "max_completion_length", "stop_strings", "max_context_length")
#: Values of settings in training runs that are older than the setting.
_OLD_DEFAULTS: Final[Mapping[str, Any]] = {"stop_strings": [], "max_context_length": 0, "dtype": "float32"}


@final
class AgentFactory:
    """Makes the agents of a benchmark run.

    Args:
        spec: the specification that holds the rows.
        fixed: entries of the run's manifest: digests of models and adapters, cards, and the machine.
        prices: prices of API tokens.
        display: shows which models are loaded.
        should_stop: polled while an agent answers.
    """

    def __init__(
        self,
        spec: BenchSpec,
        fixed: Mapping[str, Any],
        prices: PriceTable,
        display: Display,
        should_stop: ShouldStop = never,
    ) -> None:
        self._spec, self._fixed = spec, fixed
        self._prices, self._display, self._should_stop = prices, display, should_stop
        self._budget = Budget(spec.budget_usd)
        #: The base model in memory: its id and its policy.
        self._loaded: tuple[str, Policy] | None = None

    @contextmanager
    def agent(
        self,
        row: AgentSpec,
        part: RunFolder,
        kind: type[Env],
        tasks: Sequence[Task],
        backend: SandboxBackend,
    ) -> Generator[Agent]:
        """Yield the agent of a row; use it only inside the block.

        Args:
            row: with defaults filled in, see `BenchSpec.of`.
            part: folder of API call journals and recorded outputs.
            kind: the environment.
            tasks: the tasks that the agent will play.
            backend: makes the sandboxes in which a baseline runs programs.

        Raises:
            UsageError: an API's key or price is missing.
            StoreError: the model's weights have changed since the run began.
        """
        backend = kind.equip(backend)
        if chosen := _baseline_of(row, kind):
            yield baseline(chosen, tasks, backend)
        elif row.script:
            yield next(one.agent for one in controls(kind, tasks) if one.agent.name == row.script)
        elif row.recorded:
            file, tokenizer = outputs(part, row), self._fixed.get("tokenizer")
            yield RecordedAgent(
                row.name,
                read_recorded(file),
                idle=kind.noop_action,
                usage=read_usage(file),
                count_tokens=token_counter(tokenizer) if tokenizer else None,
            )
        elif row.card:
            with self._api(row, part, kind, lambda: kind.tools_of(tasks[0], backend)) as api:
                yield WithSystem(api, row.system) if row.system else api
        else:
            model = model_of(row)
            if self._loaded is None or self._loaded[0] != model:
                self._loaded = None  # free the old base first, because two might not fit into memory
                gc.collect()  # its parts refer to each other
                release_freed_memory()
                self._loaded = model, self._load(model, turns_of([kind], self._spec.max_turns))
            policy = self._loaded[1]
            sampling = Sampling(*_sampling(row), stop_strings=row.stop_strings or ())
            turns = turns_of([kind], self._spec.max_turns)
            number = [other.name for other in self._rows_on(model)].index(row.name)
            local = LocalAgent(
                row.name,
                policy.engine,
                policy.renderer,
                sampling,
                turns,
                adapter=number,
                max_context_length=row.max_context_length or 0,
                should_stop=self._should_stop,
                shots=self._shots(row, kind, backend),
            )
            yield WithSystem(local, row.system) if row.system else local

    def _shots(self, row: AgentSpec, kind: type[Env], backend: SandboxBackend) -> list[tuple[str, str]]:
        """Return the solved train tasks that a row is shown: observations and the oracle's actions."""
        if not row.shots:
            return []
        from envkit.runs.before_after.warm_start import demonstrations

        tasks = tasks_to_show(row, kind, backend, self._display)
        turns = turns_of([kind], self._spec.max_turns)  # as played: observations say how many there are
        shown = demonstrations(kind, tasks, backend, turns, self._should_stop)
        return [exchange for one in shown for exchange in one.exchanges]

    @contextmanager
    def _api(
        self, row: AgentSpec, part: RunFolder, kind: type[Env], tools: Callable[[], Sequence[Tool]]
    ) -> Generator[ApiAgent]:
        card, calls = self._card(row), _calls(row)
        if kind.harness is not None:
            card = replace(card, mode="text")  # a harness offers tools of its own, or none
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
                tools=[tool.schema() for tool in tools()] if card.mode == "tools" else (),
                recorded=recorded,
                on_retry=self._display.say,
                should_stop=self._should_stop,
            ) as agent,
        ):
            yield agent

    def count_spent(self, row: AgentSpec, part: RunFolder) -> None:
        """Count a row's earlier API spending against the budget."""
        if row.card:
            price = self._card(row).price_in(self._prices)
            usages = RecordedCalls(part.records(_calls(row))).usages
            self._budget.count(sum(map(price.of, usages)), part.path / f"{_calls(row)}.jsonl")

    def origin(self, row: AgentSpec, part: RunFolder, counted: Container[EpisodeKey]) -> Origin:
        """Return the origin of a row's answers, for the report.

        Args:
            row: with defaults filled in, see `BenchSpec.of`.
            part: folder of the API call journals.
            counted: the episodes that are in the rates; tokens and seconds are theirs.
        """
        temperature, length = _sampling(row)
        if row.card:
            card = self._card(row)
            # Without calls that were cut off when a run was killed: their answers are in no episode.
            ended = RecordedCalls(part.records(_calls(row))).ended
            usages = [usage for key, usage in ended if key in counted]
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
                system=message_digest(row.system),
            )
        if runs_here(row):
            return Origin(
                "local",
                model_of(row),
                self._fixed["adapters"].get(row.name, ""),
                training_seconds=spent_on(Path(row.adapter), self._fixed["machine"]) if row.adapter else 0.0,
                temperature=temperature,
                max_completion_length=length,
                stop_strings=row.stop_strings or (),
                max_context_length=row.max_context_length or 0,
                digest=self._fixed["models"][model_of(row)],
                system=message_digest(row.system),
                shots=row.shots,
            )
        if row.recorded:
            estimated = "" if read_usage(outputs(part, row)) else self._fixed.get("tokenizer", "")
            return Origin("recorded", Path(row.recorded).name.removesuffix(".jsonl"), tokenizer=estimated)
        return Origin()

    def describe(self, row: AgentSpec, kind: type[Env]) -> str:
        """Describe a row in a few words, for the report."""
        with_system = ", with a system message of its own" if row.system else ""
        if row.card:
            card = self._card(row)
            settings = "".join(f", {key} {value}" for key, value in sorted(card.request.items()))
            mode = card.mode if kind.harness is None else "the chats of " + kind.id.partition("@")[2]
            return f"{card.model} at {card.base_url}, by {mode}{settings}{with_system}"
        shown = with_system + (f", shown {row.shots} solved train tasks first" if row.shots else "")
        if row.adapter:
            return f"adapter {row.adapter} on {model_of(row)}{shown}"
        if row.recorded:
            return "outputs recorded elsewhere, graded here"
        if chosen := _baseline_of(row, kind):
            return chosen.description
        return f"{row.model}, untouched{shown}" if row.model else f"scripted: {row.script}"

    def differences_from_training(self, row: AgentSpec, max_turns: int) -> list[str]:
        """List settings that differ between a row and the training of its adapter, one sentence each.

        Empty if the adapter is not inside the run folder that trained it. The row has its defaults filled in;
        ``max_turns`` is the number of actions per episode.
        """
        run = training_run_of(Path(row.adapter)) if row.adapter else None
        if run is None:
            return []
        trained = {**_OLD_DEFAULTS, **run.manifest["plan"].get("train", {})}
        asked = {
            "stop_strings": [*(row.stop_strings or ())],
            "max_context_length": row.max_context_length,
            "max_turns": max_turns,
            "max_completion_length": row.max_completion_length,
            "dtype": self._fixed["machine"]["dtype"],
        }
        return [
            f"{row.name} was trained with {setting} {trained[setting]}, and is evaluated with {value}."
            for setting, value in asked.items()
            if trained.get(setting, value) != value
        ]

    def require_unchanged(self, row: AgentSpec) -> None:
        """Raise if a row's adapter or card has changed since the run began.

        Raises:
            StoreError: it has changed, or no longer exists.
        """
        if row.adapter:
            folder = Path(row.adapter)
            if not folder.is_dir() or weights_digest(folder) != self._fixed["adapters"][row.name]:
                raise StoreError(
                    f"{row.adapter} has changed since the run began, or is gone; restore it, or start a new "
                    "run"
                )
        if row.card and asdict(load_card(row.card)) != self._fixed["cards"][row.name]:
            raise StoreError(
                f"card {row.card} has changed since the run began; restore it, or start a new run"
            )

    def _card(self, row: AgentSpec) -> Card:
        """Return a row's card as the manifest stores it."""
        return Card(**self._fixed["cards"][row.name])

    def _rows_on(self, model: str) -> list[AgentSpec]:
        """Rows that run on a base model, with or without an adapter."""
        return [row for row in self._spec.agents if runs_here(row) and model_of(row) == model]

    def _load(self, model: str, max_turns: int) -> Policy:
        """Load a base model and the adapters of all rows that run on it."""
        from envkit.training.policy import Policy

        ref = resolve(model, self._display)
        if ref.digest != self._fixed["models"][model]:
            raise StoreError(
                f"the weights of {model} have changed since the run began; restore them, or start a new run"
            )
        policy = Policy(ref, dtype=str(self._fixed["machine"]["dtype"]), device=self._spec.device)
        rows = self._rows_on(model)
        for row in rows:
            if row.adapter:
                for sentence in self.differences_from_training(self._spec.of(row), max_turns):
                    self._display.say(sentence)
        policy.load_into_engine([Path(row.adapter) if row.adapter else None for row in rows])
        return policy


def message_digest(system: str) -> str:
    """SHA-256 of a system message, hex; empty if it is the environment's own."""
    return hashlib.sha256(system.encode()).hexdigest() if system else ""


def _baseline_of(row: AgentSpec, kind: type[Env]) -> Baseline | None:
    return next((one for one in kind.baselines if one.name == row.script), None)


def runs_here(row: AgentSpec) -> bool:
    """True if the row's model runs on this machine."""
    return bool(row.model or row.adapter)


def model_of(row: AgentSpec) -> str:
    """Base model of a row that runs on this machine; by default the one that its adapter was trained on."""
    return row.model or base_of([Path(row.adapter)]) or DEFAULT_MODEL


def tasks_to_show(row: AgentSpec, kind: type[Env], backend: SandboxBackend, display: Display) -> list[Task]:
    """Return the first train tasks, as many as a row is shown.

    Raises:
        ConfigError: there are fewer.
    """
    tasks = kind.tasks_of("train", backend, display=display)
    if len(tasks) < row.shots:
        raise ConfigError(
            f"agent {row.name}: shots is {row.shots}; environment {kind.id} has {len(tasks)} train tasks"
        )
    return list(tasks[: row.shots])


def outputs(part: RunFolder, row: AgentSpec) -> Path:
    """Path of a row's recorded outputs in an environment's folder."""
    return part.path / f"recorded-{row.name}.jsonl"


def require_usable(row: AgentSpec, prices: PriceTable) -> None:
    """Raise if a row cannot be played, whatever its tasks are.

    Raises:
        UsageError: no such card, no price for it or no key, an adapter folder that is none, or a setting of
            its own that would do nothing.
    """
    unused = [name for name in _SAMPLING_SETTINGS if getattr(row, name) is not None]
    if unused and (row.script or row.recorded):
        raise ConfigError(f"agent {row.name}: nothing is sampled for it; leave out {', '.join(unused)}")
    if row.card:
        card = load_card(row.card)
        if row.temperature is not None and not card.temperature:
            raise ConfigError(f"agent {row.name}: card {row.card} takes no temperature; leave it out")
        card.price_in(prices)
        Endpoint(card).close()
    if row.adapter and not (Path(row.adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"{row.adapter}: no adapter_config.json there; expected a PEFT adapter folder")


def _calls(row: AgentSpec) -> str:
    """Name of the journal of a row's API calls."""
    return f"calls-{row.name}"


def _sampling(row: AgentSpec) -> tuple[float, int]:
    """Return temperature and token limit of a row that has its defaults filled in."""
    if row.temperature is None or row.max_completion_length is None:
        raise ValueError(f"agent {row.name} has not been filled in; see BenchSpec.of")
    return row.temperature, row.max_completion_length
