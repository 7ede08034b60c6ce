"""Benchmark specification: agents, environments and sampling, read strictly from a TOML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from envkit.errors import ConfigError
from envkit.runtime.files import read_toml
from envkit.runtime.plain import decode

#: Scripted agents of every environment, with the pass@1 that a sound one gives them.
SCRIPTS = {"oracle": 1.0, "no-op": 0.0}
#: Episodes per task. Tasks differ more than episodes of one task, so more tasks tell more.
DEFAULT_SAMPLES = 4
#: Seed of evaluation draws: the same for every run, so that runs compare item by item.
EVALUATION_SEED = 1
#: Token limit of a turn if neither spec nor card sets one.
_LENGTH = 384


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """Tasks to play.

    Args:
        name: name of the environment; `envkit list` shows them.
        tasks: a task file, or ``FORMAT:PATH`` for a published benchmark; empty for the environment's own
            held-out tasks.
        limit: number of tasks, counted from the first; ``None`` for all.
        split: of the environment's own tasks: ``"heldout"`` to choose by, or ``"test"`` for a final report.
        max_task_chars: longer tasks are left out before ``limit`` counts: those whose prompt and files have
            together more characters; ``None`` for all lengths.
    """

    name: str
    tasks: str = ""
    limit: int | None = None
    split: str = "heldout"
    max_task_chars: int | None = None

    def __post_init__(self) -> None:
        if self.split not in ("heldout", "test"):
            raise ConfigError(f"environment {self.name}: split is {self.split!r}; expected heldout or test")
        if self.tasks and self.split == "test":
            raise ConfigError(f"environment {self.name}: its tasks are named, so leave out split")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"environment {self.name}: limit is {self.limit}; it must be at least 1")
        if self.max_task_chars is not None and self.max_task_chars < 1:
            raise ConfigError(
                f"environment {self.name}: max_task_chars is {self.max_task_chars}; it must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One agent, which becomes one row. Set exactly one of script, model (or adapter), card and recorded.

    Args:
        name: name in the report.
        script: ``"oracle"``, ``"no-op"``, or a baseline of the environment.
        model: id or folder of a local model. If only ``adapter`` is set, the one that it was trained on.
        adapter: PEFT folder for the model.
        card: name or path of the card of a model behind an API; see `envkit.agents.cards`.
        recorded: name of a model whose outputs came with the tasks, or a file of outputs; see
            `envkit.agents.recorded`.
        samples: episodes per task; ``None`` for the spec's. Recorded outputs give one.
        temperature: sampling temperature; ``None`` for the spec's. Scripts and recorded outputs take none of
            this and the fields below.
        max_completion_length: token limit of a turn; ``None`` for the spec's or the card's.
        stop_strings: texts that end a local model's turn; ``None`` for the spec's.
        max_context_length: token limit of a local model's context; ``None`` for the spec's.
        shots: solved train tasks of the environment that a local model sees first (few-shot prompting).
        system: system message of a model, in place of the environment's.
    """

    name: str
    script: str = ""
    model: str = ""
    adapter: str = ""
    card: str = ""
    recorded: str = ""
    samples: int | None = None
    temperature: float | None = None
    max_completion_length: int | None = None
    stop_strings: tuple[str, ...] | None = None
    max_context_length: int | None = None
    shots: int = 0
    system: str = ""

    def __post_init__(self) -> None:
        players = [self.script, self.model or self.adapter, self.card, self.recorded]
        if sum(map(bool, players)) != 1:
            raise ConfigError(
                f"agent {self.name}: give one of script, model (with an adapter or not), card and recorded"
            )
        if self.card and (self.stop_strings or self.max_context_length):
            raise ConfigError(
                f"agent {self.name}: stop_strings and max_context_length are for models that run here; leave "
                "them out with a card"
            )
        if self.shots < 0 or (self.shots and not (self.model or self.adapter)):
            raise ConfigError(
                f"agent {self.name}: shots is {self.shots}; it must be at least 0, and is only for "
                "models that run here"
            )
        if self.system and (self.script or self.recorded):
            raise ConfigError(f"agent {self.name}: only a model has a system message; leave it out")
        if self.recorded and (self.samples or 1) > 1:
            raise ConfigError(
                f"agent {self.name}: samples is {self.samples}, but recorded outputs give one per task; "
                "leave it out"
            )
        bad = "/" in self.name or not self.name.isprintable() or not self.name.strip(". ")
        if bad or len(self.name.encode(errors="replace")) > 200:
            raise ConfigError(
                f"agent {self.name[:40]!r}: a name is printable, of at most 200 bytes and without a slash, "
                "because it names a file"
            )
        _check_sampling(f"agent {self.name}", self)


@dataclass(frozen=True, slots=True)
class BenchSpec:
    """A benchmark: environments, agents and sampling.

    Args:
        environments: one report is made for each.
        agents: rows of every report, names unique.
        samples: episodes per task; oracle and no-op play one.
        temperature: sampling temperature.
        max_turns: actions per episode; ``None`` for each environment's own number.
        max_completion_length: token limit of a turn; ``None`` for the card's limit, or 384 without one.
        stop_strings: texts that end a local model's turn, beside its end-of-turn token.
        max_context_length: token limit of a local model's context; see `envkit.agents.local.LocalAgent`. 0
            for the model's own.
        budget_usd: limit for the cost of all API calls together.
        title: heading of the reports.
        device: of local models: ``"cpu"``, or ``"cuda"`` for one NVIDIA GPU.
    """

    environments: tuple[EnvironmentSpec, ...]
    agents: tuple[AgentSpec, ...]
    samples: int = DEFAULT_SAMPLES
    temperature: float = 0.7
    max_turns: int | None = None
    max_completion_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    max_context_length: int = 0
    budget_usd: float = 1.0
    title: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for what, names in (
            ("environments", [environment.name for environment in self.environments]),
            ("agents", [agent.name for agent in self.agents]),
        ):
            if not names:
                raise ConfigError(f"there are no {what}; name at least one")
            if len(set(names)) != len(names):
                raise ConfigError(f"names of {what} must be unique; found {', '.join(names)}")
        if self.max_turns is not None and self.max_turns < 1:
            raise ConfigError(f"max_turns is {self.max_turns}; it must be at least 1")
        if not 0 <= self.budget_usd < math.inf:
            raise ConfigError(f"budget_usd is {self.budget_usd}; expected dollars, at least 0")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; expected cpu or cuda")
        _check_sampling("the spec", self)

    def of(self, agent: AgentSpec) -> AgentSpec:
        """Fill in the defaults of the spec for one agent."""
        once = bool(agent.recorded) or agent.script in SCRIPTS
        length, context = agent.max_completion_length, agent.max_context_length
        local = not agent.card
        return replace(
            agent,
            samples=agent.samples or (1 if once else self.samples),
            temperature=self.temperature if agent.temperature is None else agent.temperature,
            max_completion_length=length or self.max_completion_length or _LENGTH,
            stop_strings=self.stop_strings if local and agent.stop_strings is None else agent.stop_strings,
            max_context_length=self.max_context_length if local and context is None else context,
        )


def from_toml(path: Path) -> BenchSpec:
    """Read a TOML file of `BenchSpec` fields; ``[[environments]]`` and ``[[agents]]`` are its tables.

    Paths in it are relative to the file's folder.

    Raises:
        ConfigError: no such file, not TOML, or a field is missing, unknown or wrong; names file and field.
    """
    values = read_toml(path)
    try:
        return _with_absolute_paths(decode(BenchSpec, values, "the spec"), path.parent)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _with_absolute_paths(spec: BenchSpec, folder: Path) -> BenchSpec:
    """Make the existing paths in a spec absolute. Other values are names and stay."""

    def path(value: str) -> str:
        format_name, colon, rest = value.rpartition(":")
        if "\0" in rest:
            raise ConfigError(f"{value!r} holds a null byte; expected a name or a path")
        found = folder / rest
        return f"{format_name}{colon}{found.resolve()}" if rest and found.exists() else value

    return replace(
        spec,
        environments=tuple(
            replace(environment, tasks=path(environment.tasks)) for environment in spec.environments
        ),
        agents=tuple(
            replace(
                agent,
                model=path(agent.model),
                adapter=path(agent.adapter),
                card=path(agent.card),
                recorded=path(agent.recorded),
            )
            for agent in spec.agents
        ),
    )


def _check_sampling(owner: str, settings: AgentSpec | BenchSpec) -> None:
    if settings.samples is not None and settings.samples < 1:
        raise ConfigError(f"{owner}: samples is {settings.samples}; it must be at least 1")
    if settings.temperature is not None and not 0 <= settings.temperature < math.inf:
        raise ConfigError(f"{owner}: temperature is {settings.temperature}; it must be finite and at least 0")
    length = settings.max_completion_length
    if length is not None and length < 1:
        raise ConfigError(f"{owner}: max_completion_length is {length}; it must be at least 1")
    if (settings.max_context_length or 0) < 0:
        raise ConfigError(
            f"{owner}: max_context_length is {settings.max_context_length}; expected at least 0 (no limit)"
        )
    if "" in (settings.stop_strings or ()):
        raise ConfigError(f"{owner}: stop_strings has an empty text, which would end every turn at once")
