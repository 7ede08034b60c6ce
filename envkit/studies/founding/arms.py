"""Arms: ways to change the base model that the studies compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

#: Kinds of `Arm`.
UNTOUCHED: Final = "untouched"
TRAINED: Final = "trained"
COMPUTED: Final = "computed"
#: Name of the arm that is no change at all.
BASE: Final = "base"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to change the base, which may be no change at all.

    Args:
        name: short and unique; it names the arm's folder.
        meaning: a few words for the pages.
        kind: ``"untouched"``, ``"trained"``, or ``"computed"``: a steering vector, from what the base plays.
        settings: fields of `envkit.training.config.TrainConfig`, on top of the budget's.
        shots: solved train tasks that the model sees first.
    """

    name: str
    meaning: str
    kind: str = TRAINED
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    shots: int = 0

    @property
    def has_seeds(self) -> bool:
        """True if it is trained once for each seed."""
        return self.kind == TRAINED

    @property
    def has_adapter(self) -> bool:
        """True if it changes the model, not only what it is asked."""
        return self.kind != UNTOUCHED


#: Known answers of the arms that imitate, from few to many: one of them solves about as much as RL does.
_IMITATED: Final = (24, 60, 240)

_ALL: Final = (
    Arm(BASE, "the untouched model", UNTOUCHED),
    Arm("shots", "the base, shown 3 solved train tasks", UNTOUCHED, shots=3),
    Arm("vector", "a steering vector, computed from what the base solves and fails", COMPUTED),
    Arm("steering", "RL of one vector a layer", settings={"control": "steering", "learning_rate": 1e-3}),
    Arm("r1", "RL of LoRA on all linear layers, rank 1", settings={"lora_r": 1}),
    Arm("r8", "RL of LoRA on all linear layers, rank 8", settings={"lora_r": 8}),
    Arm("r16", "RL of LoRA on all linear layers, rank 16", settings={"lora_r": 16}),
    Arm(
        "attention",
        "RL of LoRA on attention alone, of as many numbers as r8",
        settings={"control": "attention"},
    ),
    *(
        Arm(f"sft-{count}", f"SFT on {count} known answers", settings={"sft_examples": count, "max_steps": 0})
        for count in _IMITATED
    ),
)
ARMS: Final[Mapping[str, Arm]] = MappingProxyType({arm.name: arm for arm in _ALL})
