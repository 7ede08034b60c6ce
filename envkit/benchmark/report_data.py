"""Data of a report, as it is stored in ``report.json``.

The file keeps the keys of its first version: rows are ``arms``, and a row's results are ``items``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from envkit.plain import decode, encode, stored_as

Scalar: TypeAlias = str | int | float | bool | None

SCHEMA = 1

#: Where answers can come from; see `Origin`.
KINDS: Final = ("local", "live", "recorded", "script")
#: Samples of one task, tokens, and values of a curve beyond these come from a damaged file.
_MAX_SAMPLES, _MAX_COUNT, _MAX_AMOUNT = 2**16, 2**53, 1e15


def _require_counts(data: object, *names: str) -> None:
    for name in names:
        if not 0 <= (value := getattr(data, name)) <= _MAX_COUNT:
            raise ValueError(f"{name} is {value}; expected a whole number from 0 to 2**53")


def _require_amounts(data: object, *names: str, or_nan: bool = False) -> None:
    for name in names:
        value: float = getattr(data, name)
        if not (0 <= value <= _MAX_AMOUNT or (or_nan and math.isnan(value))):
            raise ValueError(f"{name} is {value}; expected a number from 0 to {_MAX_AMOUNT:g}")


def _require_drawable(data: object, *names: str) -> None:
    for name in names:
        value: float = getattr(data, name)
        if math.isfinite(value) and abs(value) > _MAX_AMOUNT:
            raise ValueError(f"{name} is {value}; expected at most {_MAX_AMOUNT:g} in size")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Results of one row on one held-out task.

    Args:
        task: the task's id.
        source: the source function, the cluster of all statistics.
        operator: kind of task, such as the mutation that made it; empty if it has none.
        samples: graded samples, voids left out.
        solved: how many of them solved the task, 0 <= solved <= samples.
        voids: samples lost to broken machinery.
        completion_tokens: tokens written over the graded samples.
        prompt_tokens: tokens read over them.
        seconds: share of the row's wall time, grading and voids included. The shares add up to it.
        cached_tokens: those of ``prompt_tokens`` that a provider found in its cache.
        cut_off: graded samples with a turn that ended at its limit of tokens.
    """

    task: str
    source: str
    operator: str
    samples: int
    solved: int
    voids: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    cached_tokens: int = 0
    cut_off: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.solved <= self.samples <= _MAX_SAMPLES or not 0 <= self.voids <= _MAX_SAMPLES:
            raise ValueError(
                f"task {self.task}: {self.solved} solved of {self.samples} samples, {self.voids} voids; "
                f"expected 0 <= solved <= samples, voids >= 0, and none above {_MAX_SAMPLES}"
            )
        _require_counts(self, "completion_tokens", "prompt_tokens", "cached_tokens", "cut_off")
        _require_amounts(self, "seconds")


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a row's answers: the model, its sampling, and what its cost is computed from.

    Args:
        kind: ``"script"``, ``"local"`` (a model on this machine), ``"live"`` (a provider asked during the
            run) or ``"recorded"`` (outputs of an earlier day, graded here).
        model: id of the model.
        adapter: digest of the adapter's weights; empty for none.
        machine: name of its hardware in the price table, if hours are paid instead of tokens.
        training_seconds: time to train the adapter, warm start included; NaN if unknown.
        temperature: of sampling; NaN for the provider's default.
        max_completion_length: token limit of a turn; 0 if unknown.
        stop_strings: texts that end a turn, beside the model's own end-of-turn token.
        max_context_length: token limit of the context; 0 for no limit.
        prompt_tokens: of all calls that were paid for, those without a graded answer included; 0 where the
            items say it all.
        completion_tokens: likewise.
        cached_tokens: likewise; those of ``prompt_tokens`` that a provider had in its cache.
        seconds: of all calls, over how many were made at once; 0 where the items say it all.
        price: name of the model in the price table; empty for its id.
        digest: of the model's weights, where it ran here.
    """

    kind: str = "script"
    model: str = ""
    adapter: str = ""
    machine: str = ""
    training_seconds: float = 0.0
    temperature: float = 0.0
    max_completion_length: int = 0
    stop_strings: tuple[str, ...] = ()
    max_context_length: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    price: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of: {', '.join(KINDS)}")
        _require_counts(
            self,
            "max_completion_length",
            "max_context_length",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
        )
        _require_amounts(self, "seconds")
        _require_amounts(self, "training_seconds", "temperature", or_nan=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One agent's results on the held-out tasks: a row of the report.

    Args:
        name: short and unique, as charts show it.
        description: what it is, in a few words ("the untouched model").
        items: one per held-out task, task ids unique.
        expected: for a control the pass@1 that it must reach (oracle 1.0, no-op 0.0), else ``None``.
        origin: where its answers come from.
    """

    name: str
    description: str
    results: tuple[TaskResult, ...] = field(metadata=stored_as("items"))
    expected: float | None = None
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        if len({result.task for result in self.results}) != len(self.results):
            raise ValueError(f"row {self.name} has two results for one task; merge their samples")
        if self.expected is not None and not 0 <= self.expected <= 1:
            raise ValueError(f"expected is {self.expected}; it must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Difference:
    """A comparison of two rows: ``row`` minus ``against``, paired by task.

    Args:
        row: name of the row that should be better.
        against: name of the row that it is measured against.
        meaning: subject of the sentence in the report ("RL's own part").
    """

    row: str = field(metadata=stored_as("arm"))
    against: str
    meaning: str


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One training step. NaN where a value was not measured.

    Args:
        step: counted from 1.
        reward: mean reward of the step's rollouts.
        mixed_share: share of groups with both solved and failed samples, in [0, 1].
        loss: the policy loss.
        tokens_per_s: tokens sampled per wall second.
    """

    step: int
    reward: float
    mixed_share: float
    loss: float
    tokens_per_s: float

    def __post_init__(self) -> None:
        _require_drawable(self, "step", "reward", "mixed_share", "loss", "tokens_per_s")


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One logged step of supervised training."""

    step: int
    loss: float

    def __post_init__(self) -> None:
        _require_drawable(self, "step", "loss")


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run with what it cost; ``tokens`` counts those sampled or trained on."""

    name: str
    seconds: float
    tokens: int = 0

    def __post_init__(self) -> None:
        _require_counts(self, "tokens")
        _require_amounts(self, "seconds")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The last turn of an episode: prompt, answer and verdict, for people to read.

    Args:
        turns: of the episode.
    """

    task: str
    row: str = field(metadata=stored_as("arm"))
    prompt: str
    completion: str
    verdict: str
    turns: int = 1

    @property
    def title(self) -> str:
        """Task, row, turn (if there were several) and verdict."""
        turn = [f"turn {self.turns} of {self.turns}"] if self.turns > 1 else []
        return " · ".join([self.task, self.row, *turn, self.verdict])


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run took place.

    Args:
        cpu: its name.
        cores: that the run might use.
        threads: of computing.
        dtype: the model's.
        card: name of the GPU that the model was on, if it was on one.
    """

    cpu: str
    cores: int
    threads: int
    dtype: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions that rows on one leaderboard must share: tasks, environment code, turns and seed.

    Samples, temperature and length belong to the row; see `Origin`.

    Args:
        environment: name of the environment.
        code: digest of its code, and of what envkit poses and grades with.
        tasks: digest of the tasks.
        max_turns: actions per episode.
        seed: of hidden inputs and draws.
    """

    environment: str
    code: str
    tasks: str
    max_turns: int
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 over all of them, as hex."""
        return hashlib.sha256(json.dumps(encode(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report states.

    Args:
        title: heading of the report.
        run: id of the run.
        created: ISO date of the run's end.
        command: the command line that repeats it.
        environment: registry id of the environment.
        isolation: as the environment declares it (`envkit.env.Env.isolation`); ``"none"`` where the backend
            does not isolate.
        sandbox: name of the sandbox backend.
        model: id that names the exact weights.
        model_digest: digest of those weights.
        heldout_digest: digest of the held-out tasks that were played.
        machine: hardware.
        rows: in order of presentation, names unique.
        differences: the first one makes the headline.
        ks: which pass@k the tables of rows and of kinds show; charts and differences use pass@1.
        training: reinforcement learning, by step.
        sft: supervised warm start, by logged step.
        phases: in order of time.
        examples: a few episodes.
        config: the run's settings, flat.
        warnings: what a reader must know first ("stopped early by the user").
        limits: what these numbers cannot tell, beside what every report says.
        conditions: what its rows share; ``None`` in an older report, which no leaderboard accepts.
        commit: version of envkit, and the commit where it runs from a checkout.
        certificate: digest of the environment's certificate, or why it has none.
    """

    title: str
    run: str
    created: str
    command: str
    environment: str
    isolation: str
    sandbox: str
    model: str
    model_digest: str
    heldout_digest: str
    machine: Machine
    rows: tuple[Row, ...] = field(default=(), metadata=stored_as("arms"))
    differences: tuple[Difference, ...] = ()
    ks: tuple[int, ...] = (1, 8)
    training: tuple[TrainPoint, ...] = ()
    sft: tuple[LossPoint, ...] = ()
    phases: tuple[Phase, ...] = ()
    examples: tuple[Excerpt, ...] = ()
    config: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    warnings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    conditions: Conditions | None = None
    commit: str = ""
    certificate: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"row names must be unique; found {', '.join(names)}")
        for pair in self.differences:
            if missing := {pair.row, pair.against} - set(names):
                raise ValueError(f"a difference names {min(missing)}; the rows are {', '.join(names)}")
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {self.ks}; expected at least one k, each at least 1")

    def to_json(self) -> str:
        """Strict JSON: floats that are not finite become null."""
        document = {"schema": SCHEMA, **cast("dict[str, object]", encode(self))}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ReportData:
        """The inverse of `to_json`; null where a float belongs is NaN.

        Raises:
            ValueError: not JSON, another schema, or a field of the wrong type (the message names it).
        """
        document: object = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"expected a JSON object, found {type(document).__name__}")
        content = cast("dict[str, object]", document)
        if (schema := content.pop("schema", None)) != SCHEMA:
            raise ValueError(f"schema is {schema!r}; this version of envkit reads schema {SCHEMA}")
        return decode(cls, content, "report")
