"""Benchmark specification: agents, environments and sampling, read strictly from a TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from envkit.errors import ConfigError
from envkit.files import read_settings
from envkit.plain import decode

#: Scripted agents and the pass@1 that an honest environment gives them; ``None``: none in particular.
SCRIPTS = {"oracle": 1.0, "no-op": 0.0, "random": None}
#: Seed of evaluation draws: the same for every run, so that runs compare item by item.
EVALUATION_SEED = 1
#: Token limit of a turn if neither spec nor card sets one.
_LENGTH = 128


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """Tasks to play.

    Args:
        name: of the environment, as `envkit list` has it.
        tasks: a task file, or ``FORMAT:PATH`` for a benchmark that others have published; empty for the
            environment's own held-out tasks.
        limit: only the first so many.
    """

    name: str
    tasks: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"environment {self.name}: limit is {self.limit}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One agent, which becomes one row. Set exactly one of script, model (or adapter), card and recorded.

    Args:
        name: in the report.
        script: ``"oracle"``, ``"no-op"`` or ``"random"``.
        model: id or folder of a model to run here; with ``adapter`` alone, the default one.
        adapter: PEFT folder on top of it.
        card: name or path of the card of a model behind an API; see `envkit.agents.cards`.
        recorded: a model whose outputs came with the tasks, or a file of outputs; see
            `envkit.agents.recorded`.
        samples: episodes per task, if not as many as for the others. Recorded outputs give one.
        temperature: if not as for the others. Scripts and recorded outputs take neither it nor what follows.
        max_completion_length: most tokens per turn, if not as for the others.
        stop_strings: of a model that runs here, if not as for the others.
        max_context_length: likewise.
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

    def __post_init__(self) -> None:
        whose = [self.script, self.model or self.adapter, self.card, self.recorded]
        if sum(map(bool, whose)) != 1:
            raise ConfigError(
                f"agent {self.name}: give one of script, model (with an adapter or not), card and recorded"
            )
        if self.script and self.script not in SCRIPTS:
            raise ConfigError(f"agent {self.name}: no script {self.script!r}; expected {', '.join(SCRIPTS)}")
        if self.card and (self.stop_strings or self.max_context_length):
            raise ConfigError(
                f"agent {self.name}: stop_strings and max_context_length are for models that run here; leave "
                "them out with a card"
            )
        if self.recorded and (self.samples or 1) > 1:
            raise ConfigError(
                f"agent {self.name}: samples is {self.samples}, and recorded outputs give one each; leave it "
                "out"
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
    """What to measure.

    Args:
        environments: each is reported by itself.
        agents: the rows of every report, names unique.
        samples: episodes per task; scripts whose result is known play one.
        temperature: of sampling.
        max_turns: actions per episode.
        max_completion_length: most tokens per turn; if ``None`` what a card says, or else 128.
        stop_strings: texts that end a turn of a model that runs here as well as its own end of turn does.
        max_context_length: tokens that a turn of a model that runs here is asked with; see
            `envkit.agents.local.LocalAgent`. 0 for no bound but the model's own.
        budget_usd: what all calls of APIs may cost together.
        title: heading of the reports.
    """

    environments: tuple[EnvironmentSpec, ...]
    agents: tuple[AgentSpec, ...]
    samples: int = 4
    temperature: float = 0.7
    max_turns: int = 1
    max_completion_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    max_context_length: int = 0
    budget_usd: float = 1.0
    title: str = ""

    def __post_init__(self) -> None:
        for what, names in (
            ("environments", [one.name for one in self.environments]),
            ("agents", [one.name for one in self.agents]),
        ):
            if not names:
                raise ConfigError(f"there are no {what}; name at least one")
            if len(set(names)) != len(names):
                raise ConfigError(f"two {what} of one name among: {', '.join(names)}")
        if self.max_turns < 1:
            raise ConfigError(f"max_turns is {self.max_turns}; it must be at least 1")
        if not 0 <= self.budget_usd < math.inf:
            raise ConfigError(f"budget_usd is {self.budget_usd}; expected dollars, at least 0")
        _check_sampling("the spec", self)

    def of(self, agent: AgentSpec) -> AgentSpec:
        """Fill in the defaults of the spec for one agent."""
        once = bool(agent.recorded) or SCRIPTS.get(agent.script) is not None
        length, longest = agent.max_completion_length, agent.max_context_length
        here = not agent.card
        return replace(
            agent,
            samples=agent.samples or (1 if once else self.samples),
            temperature=self.temperature if agent.temperature is None else agent.temperature,
            max_completion_length=length or self.max_completion_length or _LENGTH,
            stop_strings=self.stop_strings if here and agent.stop_strings is None else agent.stop_strings,
            max_context_length=self.max_context_length if here and longest is None else longest,
        )


def from_toml(path: Path) -> BenchSpec:
    """Read a TOML file of `BenchSpec` fields; ``[[environments]]`` and ``[[agents]]`` are its tables.

    Paths in it are seen from the folder that the file is in.

    Raises:
        ConfigError: no such file, not TOML, or a field is missing, unknown or wrong; names file and field.
    """
    try:
        values = tomllib.loads(read_settings(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    try:
        return _seen_from(decode(BenchSpec, values, "the spec"), path.parent)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _seen_from(spec: BenchSpec, folder: Path) -> BenchSpec:
    """The spec with every path that is there made absolute; other words are names."""

    def path(word: str) -> str:
        format_name, colon, rest = word.rpartition(":")
        if "\0" in rest:
            raise ConfigError(f"{word!r} holds a NUL; no path does")
        there = folder / rest
        return f"{format_name}{colon}{there.resolve()}" if rest and there.exists() else word

    return replace(
        spec,
        environments=tuple(replace(one, tasks=path(one.tasks)) for one in spec.environments),
        agents=tuple(
            replace(
                one,
                model=path(one.model),
                adapter=path(one.adapter),
                card=path(one.card),
                recorded=path(one.recorded),
            )
            for one in spec.agents
        ),
    )


def _check_sampling(whose: str, one: AgentSpec | BenchSpec) -> None:
    if one.samples is not None and one.samples < 1:
        raise ConfigError(f"{whose}: samples is {one.samples}; it must be at least 1")
    if one.temperature is not None and not 0 <= one.temperature < math.inf:
        raise ConfigError(f"{whose}: temperature is {one.temperature}; it must be finite and at least 0")
    length = one.max_completion_length
    if length is not None and length < 1:
        raise ConfigError(f"{whose}: max_completion_length is {length}; it must be at least 1")
    if (one.max_context_length or 0) < 0:
        raise ConfigError(
            f"{whose}: max_context_length is {one.max_context_length}; it must be at least 0, for no bound"
        )
    if "" in (one.stop_strings or ()):
        raise ConfigError(f"{whose}: stop_strings has an empty one, with which every turn would end at once")
