"""Do many specialists behind a router on one base beat any single adapter?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Final

from envkit.errors import UsageError
from envkit.measure.leaderboard.recipes import Recipe, recipe_of
from envkit.measure.number_text import number, percent
from envkit.measure.report.data import Row
from envkit.measure.report.tables import Table
from envkit.measure.stats import LEVEL
from envkit.studies.grid.arms import BASE, ENVIRONMENTS, SPECIALISTS
from envkit.studies.grid.finding import (
    FAILED,
    HELD,
    StudyFinding,
    all_above,
    all_of,
    detectable_between,
    in_points,
    only_if,
    seeds_sentence,
)
from envkit.studies.grid.grid import Grid, require_difference
from envkit.studies.grid.measurements import ON, RoutedTasks
from envkit.studies.interference.claim import (
    all_learned,
    bars,
    learned_sentence,
    rates,
    scripts_sentences,
)

_SPECIALISTS: Final = tuple(arm.name for arm in SPECIALISTS.values())
_SINGLE: Final = (*_SPECIALISTS, "joint")
ARMS: Final = (BASE, *_SINGLE, "routed")
PARTS: Final = tuple(ON.values())
CLAIM: Final = (
    "One base carries many specialists: with a router, they solve 5 points more than any single adapter, the "
    "joint one too, and their files have a tenth of the base's bytes at most."
)
PUBLISHED: Final = (
    "LoRA Land: 25 adapters of Mistral-7B on one A100; fine-tuned models were 10 points above GPT-4 on "
    "average over 31 tasks (arXiv:2405.00732).",
)
_MARGIN, _SIZE = 0.05, 0.1


def judge(grid: Grid) -> StudyFinding:
    """See `CLAIM`."""
    routed, base = _pooled(grid, "routed"), _pooled(grid, BASE)
    single = {arm: _pooled(grid, arm) for arm in _SINGLE}
    compare = {arm: partial(require_difference, routed, one) for arm, one in single.items()}
    compared = "; ".join(f"{arm} {in_points(each(LEVEL))}" for arm, each in compare.items())
    chosen = {name: _chosen(grid, part) for name, part in ON.items()}
    found = [each for some in chosen.values() for each in some]
    size = _adapter_bytes(grid) / found[0].base_bytes
    return StudyFinding(
        only_if(
            all_learned(grid),
            verdict=all_of([all_above([*compare.values()], _MARGIN), HELD if size <= _SIZE else FAILED]),
        ),
        (
            detectable_between(routed, single["joint"], _MARGIN),
            f"Routed minus single adapters, on the tasks of all environments: {compared} points. Minus "
            f"base: {in_points(require_difference(routed, base))}.",
            f"{learned_sentence(grid)} Unless each is above {percent(_MARGIN)}, nothing is decided.",
            *scripts_sentences(grid),
            f"The files of the specialists and the router have {percent(size)} % of the "
            f"{number(found[0].base_bytes / 1e6, 0)} MB of the base's.",
            f"The router learned from {number(found[0].learned, 0)} prompts, and reads one in "
            f"{number(mean(each.read_ms for each in found), 0)} ms.",
            "Prompts of an environment that a router has not seen should go to the base: 'Base, % if "
            "unknown' says how many do, of train tasks whose sources no router learned from.",
            "Every environment counts by its number of tasks. A specialist knows one of them, so the joint "
            "adapter is the harder rival.",
            "The claim was first made of four kinds of bugs. A prompt does not tell these apart, so "
            "environments stand for them here, which a router tells apart easily.",
            seeds_sentence(grid, ARMS, PARTS[0]),
        ),
        (rates(grid, ARMS), _confusion(chosen)),
        bars(grid, ("joint", "routed")),
    )


def _pooled(grid: Grid, arm: str) -> Recipe:
    """An arm's seeds on the tasks of all environments, as far as they are measured in all.

    Raises:
        UsageError: none is.
    """
    rows: list[Row] = []
    for cell in grid.cells(arm):
        found = {name: grid.measured(cell, part) for name, part in ON.items()}
        rows_by_name = {name: each.row for name, each in found.items() if each is not None}
        if len(rows_by_name) < len(ON):
            continue
        results = tuple(
            replace(each, task=f"{name}/{each.task}", source=f"{name}/{each.source}")
            for name, row in rows_by_name.items()
            for each in row.results
        )
        origin = rows_by_name[ENVIRONMENTS[0]].origin
        rows.append(Row(cell.name, cell.arm.meaning, results, None, origin))
    if not rows:
        raise UsageError(f"arm {arm} is not measured in all environments yet; run the study to measure it")
    return recipe_of(arm, rows)


def _chosen(grid: Grid, part: str) -> list[RoutedTasks]:
    """Choices of the routers of all seeds, for the tasks of a part."""
    return [found for cell in grid.cells("routed") if (found := cell.chosen(part)) is not None]


def _adapter_bytes(grid: Grid) -> float:
    """Bytes of all specialists and a router: the mean of the seeds."""
    made = [cell.made for arm in _SPECIALISTS for cell in grid.cells(arm)]
    sizes = [each.control.size_bytes for each in made if each is not None]
    routers = [each.size_bytes for each in _chosen(grid, PARTS[0])]
    return len(_SPECIALISTS) * mean(sizes) + mean(routers)


def _confusion(chosen: dict[str, list[RoutedTasks]]) -> Table:
    """Count which arm answers the held-out prompts of each environment."""
    lines: list[tuple[str, ...]] = []
    for name, found in chosen.items():
        answering = [arm for each in found for arm in each.arms.values()]
        counts = [answering.count(arm) for arm in (*_SPECIALISTS, BASE)]
        own = answering.count(SPECIALISTS[name].name) / len(answering)
        unknown = mean(each.unknown for each in found)
        lines.append((name, *(number(count, 0) for count in counts), percent(own), percent(unknown)))
    return Table(
        "Who answers the held-out prompts, over all seeds",
        ("Prompts of", *_SPECIALISTS, BASE, "Own specialist, %", "Base, % if unknown"),
        tuple(lines),
    )
