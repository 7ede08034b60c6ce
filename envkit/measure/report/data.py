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

from envkit.runtime.plain import decode, encode, stored_as

Scalar: TypeAlias = str | int | float | bool | None

SCHEMA = 1

#: Kinds of `Origin`.
KINDS: Final = ("local", "live", "recorded", "script")
#: Limits for samples per task, counts and other numbers. Larger values mean that the file is damaged.
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
        source: the source, the cluster of all statistics.
        operator: kind of task, such as the mutation that made it; empty if it has none.
        samples: graded samples, voids left out.
        solved: how many of them solved the task, 0 <= solved <= samples.
        voids: samples lost to sandbox or provider failures.
        completion_tokens: tokens written, summed over the graded samples.
        prompt_tokens: tokens read, summed likewise.
        seconds: share of the row's wall time, grading and voids included. All shares add up to the wall time.
        cached_tokens: the part of ``prompt_tokens`` that the provider had in its cache.
        cut_off: graded samples with a turn that ended at the token limit.
        held_out: solved samples that the environment's held-out checks judged as well.
        held_out_failed: how many of these failed one, 0 <= held_out_failed <= held_out <= solved.
        raised: samples, voids included, in which the environment's own code raised, which is a bug.
        rewards: source of reward -> what it paid, summed over the graded samples. Sources are checks and
            those that `envkit.env` names. Empty in reports of earlier versions.
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
    held_out: int = 0
    held_out_failed: int = 0
    raised: int = 0
    rewards: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.solved <= self.samples <= _MAX_SAMPLES or not 0 <= self.voids <= _MAX_SAMPLES:
            raise ValueError(
                f"task {self.task}: {self.solved} solved of {self.samples} samples, {self.voids} voids; "
                f"expected 0 <= solved <= samples, voids >= 0, and none above {_MAX_SAMPLES}"
            )
        if not 0 <= self.held_out_failed <= self.held_out <= self.solved:
            raise ValueError(
                f"task {self.task}: {self.held_out_failed} of {self.held_out} samples failed a held-out "
                f"check, and {self.solved} are solved; expected 0 <= held_out_failed <= held_out <= solved"
            )
        _require_counts(self, "completion_tokens", "prompt_tokens", "cached_tokens", "cut_off", "raised")
        _require_amounts(self, "seconds")
        if not all(map(math.isfinite, self.rewards.values())):
            raise ValueError(f"task {self.task}: rewards are {dict(self.rewards)}; expected finite numbers")


#: Fields of `Origin` that say how a model was asked, and their names for people.
_SETTINGS = {
    "temperature": "temperature",
    "max_completion_length": "token limit of a turn",
    "stop_strings": "stop strings",
    "max_context_length": "token limit of the context",
    "shots": "number of shots",
    "system": "system message",
}


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
        prompt_tokens: tokens of all paid calls, with those that gave no graded answer; 0 if the results
            already have all tokens.
        completion_tokens: likewise.
        cached_tokens: likewise; the part of ``prompt_tokens`` that the provider had in its cache.
        seconds: wall time of all calls, divided by the concurrency; 0 if the results already have all time.
        price: the model's name in the price table; empty if it is the model's id.
        digest: digest of the model's weights, if it ran here.
        tokenizer: model whose tokenizer estimated the tokens; empty if they were counted.
        system: digest of the system message, if it was not the environment's own.
        shots: solved tasks that the model saw first.
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
    tokenizer: str = ""
    system: str = ""
    shots: int = 0

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

    def unequal_settings(self, other: Origin) -> tuple[str, ...]:
        """Name the settings of sampling that differ from another row's, with both values."""
        pairs = (
            # As text, because NaN differs from itself.
            (setting, str(getattr(self, field)), str(getattr(other, field)))
            for field, setting in _SETTINGS.items()
        )
        return tuple(
            f"{setting} ({one[:40] or 'none'} and {another[:40] or 'none'})"
            for setting, one, another in pairs
            if one != another
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One agent's results on the held-out tasks: a row of the report.

    Args:
        name: short and unique; charts show it.
        description: a few words ("the untouched model").
        results: one per held-out task, task ids unique.
        expected: for a control, the pass@1 that it must reach (oracle 1.0, no-op 0.0); else ``None``.
        origin: origin of its answers.
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
        against: name of the row that it is compared with.
        meaning: subject of the sentence in the report ("RL's own part").
        unsolved_by: only the tasks that this row never solved count; empty for all tasks.
    """

    row: str = field(metadata=stored_as("arm"))
    against: str
    meaning: str
    unsolved_by: str = ""


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One training step. NaN where a value was not measured.

    Args:
        step: counted from 1.
        reward: mean reward of the step's rollouts.
        mixed_share: share of groups whose episodes earned different rewards, in [0, 1].
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
    """A part of the run.

    Args:
        tokens: sampled or trained on.
        peak_memory_bytes: most memory that the run's process has had until its end; 0 if unknown.
    """

    name: str
    seconds: float
    tokens: int = 0
    peak_memory_bytes: int = 0

    def __post_init__(self) -> None:
        _require_counts(self, "tokens", "peak_memory_bytes")
        _require_amounts(self, "seconds")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The last turn of an episode, shown as an example in the report.

    Args:
        turns: number of turns of the episode.
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
    """Hardware of a run.

    Args:
        cpu: name of the processor.
        cores: cores that the run could use.
        threads: compute threads.
        dtype: data type of the model.
        card: name of the GPU that the model ran on; empty for none.
    """

    cpu: str
    cores: int
    threads: int
    dtype: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions that rows on one leaderboard must share: tasks, code, packages, turns and seed.

    Samples, temperature and length belong to the row; see `Origin`.

    Args:
        environment: name of the environment.
        code: digest of the environment's code and of envkit's code that poses and grades its tasks.
        tasks: digest of the tasks.
        max_turns: actions per episode.
        seed: seed of hidden inputs and random draws.
        lock: digest of what sandboxes held beside Python, see `envkit.sandbox.Lock`; empty for nothing.
    """

    environment: str
    code: str
    tasks: str
    max_turns: int
    seed: int
    lock: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, as hex."""
        fields = cast("dict[str, object]", encode(self))
        if not self.lock:  # so that earlier reports, which have no such field, keep their digest
            del fields["lock"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReportData:
    """All data of a report.

    Args:
        title: heading of the report.
        run: id of the run.
        created: ISO date of the run's end.
        command: command line that repeats the run.
        environment: registry id of the environment.
        isolation: the environment's `envkit.env.Env.isolation`; ``"none"`` if the backend does not isolate.
        sandbox: name of the sandbox backend.
        model: id that names the exact weights.
        model_digest: digest of those weights.
        heldout_digest: digest of the held-out tasks that were played.
        machine: hardware.
        rows: in order of presentation, names unique.
        differences: comparisons; the headline states the first one.
        ks: k of the pass@k in the tables; charts and differences use pass@1.
        training: training curve of the reinforcement learning, by step.
        sft: training curve of the supervised warm start, by logged step.
        phases: phases in order of time.
        examples: a few episodes.
        config: settings of the run, flat.
        warnings: warnings to show first ("stopped early by the user").
        limits: limits of these numbers, in addition to those that every report lists.
        conditions: conditions that all rows share; ``None`` in an older report, which no leaderboard accepts.
        commit: version of envkit, with the commit if it runs from a checkout.
        certificate: digest of the environment's certificate, or the reason why there is none.
        contents: versions and digest of what sandboxes held beside Python, as `envkit.sandbox.Lock` gives
            them; empty if that was nothing.
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
    contents: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"row names must be unique; found {', '.join(names)}")
        for pair in self.differences:
            if missing := {pair.row, pair.against, pair.unsolved_by or pair.row} - set(names):
                raise ValueError(f"a difference names {min(missing)}; the rows are {', '.join(names)}")
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {self.ks}; expected at least one k, each at least 1")

    def to_json(self) -> str:
        """Encode as strict JSON: NaN and infinite floats become null."""
        document = {"schema": SCHEMA, **cast("dict[str, object]", encode(self))}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ReportData:
        """Decode the output of `to_json`; null in the place of a float becomes NaN.

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
