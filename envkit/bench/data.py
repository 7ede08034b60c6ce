"""The measured facts of one run, as frozen data that survives a trip through ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeAlias, cast, get_args, get_origin, get_type_hints

Scalar: TypeAlias = str | int | float | bool | None

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Item:
    """What one arm did on one held-out task.

    Args:
        task: the task's id.
        source: the source function, the cluster of all statistics.
        operator: the mutation that made the task; empty where there is none.
        samples: graded samples, voids left out.
        solved: how many of them solved the task, 0 <= solved <= samples.
        voids: samples lost to broken machinery.
        completion_tokens: tokens written over the graded samples.
        prompt_tokens: tokens read over them.
        seconds: share of the arm's wall time, grading and voids included, so that items add up to it.
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

    def __post_init__(self) -> None:
        if not 0 <= self.solved <= self.samples or self.voids < 0:
            raise ValueError(
                f"task {self.task}: {self.solved} solved of {self.samples} samples, {self.voids} voids; "
                "expected 0 <= solved <= samples and voids >= 0"
            )


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the comparison.

    Args:
        name: short and unique, as charts show it.
        description: what it is, in a few words ("the untouched model").
        items: one per held-out task, task ids unique.
        expected: for a control the pass@1 that it must reach (oracle 1.0, no-op 0.0), else ``None``.
    """

    name: str
    description: str
    items: tuple[Item, ...]
    expected: float | None = None

    def __post_init__(self) -> None:
        if len({item.task for item in self.items}) != len(self.items):
            raise ValueError(f"arm {self.name} has two items for one task; merge their samples into one item")


@dataclass(frozen=True, slots=True)
class Difference:
    """A comparison to report: ``arm`` minus ``against``, paired by task.

    Args:
        arm: name of the arm that should be better.
        against: name of the arm that it is measured against.
        meaning: subject of the sentence in the report ("RL's own part").
    """

    arm: str
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


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One logged step of supervised training."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run with what it cost; ``tokens`` counts those sampled or trained on."""

    name: str
    seconds: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One episode to read: the prompt, what the model wrote and what grading said."""

    task: str
    arm: str
    prompt: str
    completion: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run took place. ``dtype`` is the model's, ``threads`` the compute threads used."""

    cpu: str
    cores: int
    threads: int
    dtype: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report says, measured once and never recomputed.

    Args:
        title: heading of the report.
        run: id of the run.
        created: ISO date of the run's end.
        command: the command line that repeats it.
        environment: registry id of the environment.
        isolation: ``"sandbox"`` or ``"external"``, as the application declares it.
        sandbox: name of the sandbox backend.
        model: id that names the exact weights.
        model_digest: digest of those weights.
        heldout_digest: digest of the held-out tasks that were played.
        machine: hardware.
        arms: in order of presentation, names unique.
        differences: the first one makes the headline.
        ks: which pass@k the table of arms shows; charts and differences use pass@1.
        training: reinforcement learning, by step.
        sft: supervised warm start, by logged step.
        phases: in order of time.
        examples: a few episodes.
        config: the run's settings, flat.
        warnings: what a reader must know first ("stopped early by the user").
        limits: what these numbers cannot tell, beside what every report says.
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
    arms: tuple[Arm, ...] = ()
    differences: tuple[Difference, ...] = ()
    ks: tuple[int, ...] = (1, 8)
    training: tuple[TrainPoint, ...] = ()
    sft: tuple[LossPoint, ...] = ()
    phases: tuple[Phase, ...] = ()
    examples: tuple[Example, ...] = ()
    config: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    warnings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arm names must be unique; found {', '.join(names)}")
        for pair in self.differences:
            if missing := {pair.arm, pair.against} - set(names):
                raise ValueError(f"a difference names {min(missing)}; the arms are {', '.join(names)}")
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {self.ks}; expected at least one k, each at least 1")

    def to_json(self) -> str:
        """Strict JSON: floats that are not finite become null."""
        document = {"schema": SCHEMA, **cast("dict[str, object]", _encode(self))}
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
        return cast("ReportData", _decode(cls, content, "report"))


def _encode(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [_encode(each) for each in cast("tuple[object, ...]", value)]
    if isinstance(value, Mapping):
        return {key: _encode(each) for key, each in cast("Mapping[str, object]", value).items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decode(kind: Any, value: object, where: str) -> object:
    """``value`` as the declared type ``kind``; every mismatch is a ValueError that names ``where``."""
    if is_dataclass(kind) and isinstance(value, dict):
        return _decode_fields(cast("type[Any]", kind), cast("dict[str, object]", value), where)
    if get_origin(kind) is tuple and isinstance(value, list):
        inner, entries = get_args(kind)[0], cast("list[object]", value)
        return tuple(_decode(inner, each, f"{where}[{i}]") for i, each in enumerate(entries))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        inner, content = get_args(kind)[1], cast("dict[str, object]", value)
        return {key: _decode(inner, each, f"{where}.{key}") for key, each in content.items()}
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(value) in kinds:  # exact: True is no int here
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if kind is float and value is None:
        return math.nan
    raise ValueError(f"{where} is {value!r:.60}; expected {getattr(kind, '__name__', kind)}")


def _decode_fields(kind: type[Any], content: Mapping[str, object], where: str) -> object:
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := content.keys() - known.keys():
        raise ValueError(f"{where} has the unknown field {min(unknown)!r}")
    for name, entry in known.items():
        if name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {name!r}")
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], each, f"{where}.{name}") for name, each in content.items()})
