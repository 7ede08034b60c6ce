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
MERGED: Final = "merged"
ROUTED: Final = "routed"
PROMPTED: Final = "prompted"
WARM: Final = "warm"
#: Name of the arm that is no change at all.
BASE: Final = "base"
#: Environments of the studies of several tasks. One turn is enough for each.
ENVIRONMENTS: Final = ("code-editor", "sql-desk", "service-desk")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to change the base, which may be no change at all.

    Args:
        name: short and unique; it names the arm's folder.
        meaning: a few words for the pages.
        kind: ``"untouched"``; ``"trained"``; ``"warm"``: what `RL_ARM` of the same seed was before its RL;
            ``"computed"``: a steering vector, from what the base plays; ``"prompted"``: the base with a
            system message that was searched for; ``"merged"`` of the specialists' adapters of the same seed,
            without training; or ``"routed"``: a router gives each prompt to one of the specialists, or to the
            base.
        settings: fields of `envkit.training.config.TrainConfig`, on top of the budget's.
        imitated: if above 0, SFT alone, on this multiple of the known answers of the budget's warm start.
        shots: solved train tasks that the model sees first.
        environments: what it is trained on; empty for the budget's environment.
        merging: how it is merged; see `envkit.training.merging.METHODS`.
    """

    name: str
    meaning: str
    kind: str = TRAINED
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    imitated: int = 0
    shots: int = 0
    environments: tuple[str, ...] = ()
    merging: str = ""

    @property
    def has_seeds(self) -> bool:
        """True if it is made once for each seed."""
        return self.kind != UNTOUCHED

    @property
    def has_adapter(self) -> bool:
        """True if it has an adapter of its own."""
        return self.kind in (TRAINED, WARM, COMPUTED, MERGED)


#: The arm whose RL is compared with what it was before.
RL_ARM: Final = "r16"
#: Multiples of the warm start's known answers, for arms of SFT alone: one should solve about as much as RL.
_IMITATED: Final = (1, 3, 6)

_ALL: Final = (
    Arm(BASE, "the untouched model", UNTOUCHED),
    Arm("shots", "the base, shown 3 solved train tasks", UNTOUCHED, shots=3),
    Arm("prompt", "the base with a system message that it wrote itself, by reward", PROMPTED),
    Arm("vector", "a steering vector, computed from what the base solves and fails", COMPUTED),
    Arm(
        "steering",
        "one trained vector a layer",
        settings={"control": "steering", "learning_rate": 1e-3, "sft_learning_rate": 5e-3},
    ),
    Arm("r1", "LoRA on all linear layers, rank 1", settings={"lora_r": 1}),
    Arm("r8", "LoRA on all linear layers, rank 8", settings={"lora_r": 8}),
    Arm(RL_ARM, "LoRA on all linear layers, rank 16", settings={"lora_r": 16}),
    Arm("warm", f"{RL_ARM} before RL: its warm start", WARM),
    Arm(
        "full",
        "full fine-tuning of all linear layers",
        settings={"control": "full", "learning_rate": 1e-5, "sft_learning_rate": 5e-5},
    ),
    Arm(
        "attention",
        "LoRA on attention alone, of as many numbers as r8",
        settings={"control": "attention"},
    ),
    *(
        Arm(
            f"sft-{times}x",
            "SFT on as many known answers as the warm start"
            if times == 1
            else f"SFT on {times} times the known answers of the warm start",
            imitated=times,
        )
        for times in _IMITATED
    ),
    *(Arm(f"only-{name}", f"trained on {name} alone", environments=(name,)) for name in ENVIRONMENTS),
    Arm("joint", "trained on all environments", environments=ENVIRONMENTS),
    Arm(
        "joint-worst",
        "trained on all environments, more often on those that are solved rarely",
        settings={"worst_task_weight": 4.0},
        environments=ENVIRONMENTS,
    ),
    *(
        Arm(f"merged-{method}", f"the specialists merged by {method}", MERGED, merging=method)
        for method in ("linear", "ties")
    ),
    Arm("routed", "a router picks a specialist by the prompt", ROUTED),
)
ARMS: Final[Mapping[str, Arm]] = MappingProxyType({arm.name: arm for arm in _ALL})
#: Arms that are trained on one of `ENVIRONMENTS`, in their order.
SPECIALISTS: Final[Mapping[str, Arm]] = MappingProxyType(
    {name: ARMS[f"only-{name}"] for name in ENVIRONMENTS}
)
