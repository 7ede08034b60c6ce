"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from envkit.studies.founding import cost, forgetting, layers, multiplexing, rank, rare, steering
from envkit.studies.founding.cells import Grid
from envkit.studies.founding.finding import Finding


@dataclass(frozen=True, slots=True)
class Study:
    """A claim and how it is judged.

    Args:
        name: the study's name.
        claim: a sentence that may turn out to be wrong.
        arms: names of its arms.
        parts: what is measured of each; see `envkit.studies.founding.cells`.
        published: what others have measured.
        judge: computes the finding; raises `UsageError` if a cell is missing.
    """

    name: str
    claim: str
    arms: tuple[str, ...]
    parts: tuple[str, ...]
    published: tuple[str, ...]
    judge: Callable[[Grid], Finding]


STUDIES: Final[Mapping[str, Study]] = MappingProxyType(
    {
        name: Study(name, module.CLAIM, module.ARMS, module.PARTS, module.PUBLISHED, module.judge)
        for name, module in (
            ("rank", rank),
            ("steering", steering),
            ("rare", rare),
            ("forgetting", forgetting),
            ("multiplexing", multiplexing),
            ("layers", layers),
            ("cost", cost),
        )
    }
)
