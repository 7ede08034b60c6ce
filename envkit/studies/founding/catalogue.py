"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from envkit.studies.founding import cost, forgetting, layers, multiplexing, rank, rare, steering
from envkit.studies.founding.arms import BASE
from envkit.studies.founding.cells import CHANCE, DISTANCE, SOLVE, CellFolder, Grid
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

    def needs(self, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
        """All that it needs: cells, seed by seed, and what is measured of each.

        Where held-out tasks are played, the environment's scripts play them too.
        """
        cells = [cell for arm in self.arms for cell in grid.cells(arm)]
        for cell in sorted(cells, key=lambda cell: cell.seed):
            for part in self.parts:
                if part != DISTANCE or cell.arm.has_adapter:
                    yield cell, part
            if cell.arm.name == BASE and SOLVE in self.parts:
                yield cell, CHANCE

    def missing(self, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
        """Yield the parts of `needs` that are not measured yet."""
        return ((cell, part) for cell, part in self.needs(grid) if not cell.has(part))


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
