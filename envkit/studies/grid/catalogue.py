"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from envkit.studies import cost, frontier, layers, passk, rank
from envkit.studies.forgetting import claim as forgetting
from envkit.studies.grid.arms import BASE, COMPUTED
from envkit.studies.grid.cells import CellFolder
from envkit.studies.grid.finding import StudyFinding
from envkit.studies.grid.grid import Grid
from envkit.studies.grid.measurements import DISTANCE, FRONTIER, MANY, ON, SOLVE, others_part
from envkit.studies.interference import claim as interference
from envkit.studies.multiplexing import claim as multiplexing
from envkit.studies.specialists import claim as specialists
from envkit.studies.steering import claim as steering

#: Parts whose tasks others answer too: scripts, and models whose answers came with the tasks.
_WITH_OTHERS: Final = (SOLVE, MANY, FRONTIER, *ON.values())


@dataclass(frozen=True, slots=True)
class Study:
    """A claim and how it is judged.

    Args:
        name: the study's name.
        claim: a sentence that may turn out to be wrong.
        arms: names of its arms.
        parts: what is measured of each; see `envkit.studies.grid.measurements`.
        published: what others have measured.
        judge: computes the finding; raises `UsageError` if a cell is missing.
    """

    name: str
    claim: str
    arms: tuple[str, ...]
    parts: tuple[str, ...]
    published: tuple[str, ...]
    judge: Callable[[Grid], StudyFinding]

    def needs(self, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
        """All that it needs: cells, seed by seed, and what is measured of each.

        Where held-out tasks are played, others answer them too. Computed arms come last: they may not exist.
        """
        cells = [cell for arm in self.arms for cell in grid.cells(arm)]
        for cell in sorted(cells, key=lambda cell: (cell.arm.kind == COMPUTED, cell.seed)):
            for part in self.parts:
                if part != DISTANCE or cell.arm.has_adapter:
                    yield cell, part
            if cell.arm.name == BASE:
                yield from ((cell, others_part(part)) for part in self.parts if part in _WITH_OTHERS)

    def missing(self, grid: Grid) -> Iterator[tuple[CellFolder, str]]:
        """Yield the parts of `needs` that are not measured yet."""
        return ((cell, part) for cell, part in self.needs(grid) if not grid.has(cell, part))


STUDIES: Final[Mapping[str, Study]] = MappingProxyType(
    {
        name: Study(name, module.CLAIM, module.ARMS, module.PARTS, module.PUBLISHED, module.judge)
        for name, module in (
            ("rank", rank),
            ("steering", steering),
            ("passk", passk),
            ("forgetting", forgetting),
            ("multiplexing", multiplexing),
            ("interference", interference),
            ("specialists", specialists),
            ("frontier", frontier),
            ("layers", layers),
            ("cost", cost),
        )
    }
)
