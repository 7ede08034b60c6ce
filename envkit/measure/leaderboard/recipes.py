"""Recipes: rows whose adapters differ in the training seed alone, taken together.

Their names are equal, or equal up to an ending such as ``seed 1``, or ``@seed-1`` as a bench names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from envkit.errors import UsageError
from envkit.measure.report.data import Row
from envkit.measure.report.summary import solve_rates
from envkit.measure.stats import LEVEL, Floats, Interval, seeds_interval

#: Ending of a row's name that says its training seed.
_SEED = re.compile(r"(,? *seed |@seed-)\d+$")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The rows of one name.

    Args:
        name: their name, without its ending.
        tasks: ids of the tasks that all of them were measured on.
        sources: the tasks' sources.
        rates_ST: solve rate of each of S adapters on each of T tasks. Rows of the same adapter and system
            message are averaged.
        mean: pass@1, for other sources and seeds; ``None`` without tasks.
    """

    name: str
    tasks: tuple[str, ...]
    sources: tuple[str, ...]
    rates_ST: Floats
    mean: Interval | None

    @property
    def seeds(self) -> int:
        """S; 1 for rows without an adapter."""
        return len(self.rates_ST)

    @property
    def each(self) -> list[float]:
        """pass@1 of each adapter; empty without tasks."""
        return [float(rate) for rate in self.rates_ST.mean(axis=1)] if self.tasks else []


@dataclass(frozen=True, slots=True)
class RecipeDifference:
    """One recipe minus another, paired by task.

    Args:
        recipe, against: their names.
        interval: difference of pass@1, for other sources and seeds; ``None`` without a common task.
    """

    recipe: str
    against: str
    interval: Interval | None


def recipes_of(rows: Sequence[Row]) -> tuple[Recipe, ...]:
    """Take rows of equal names together, best recipe first; none if no recipe has several adapters.

    Raises:
        UsageError: rows of one name differ in base model or in a setting such as the temperature.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(_SEED.sub("", row.name) or row.name, []).append(row)
    for name, same in by_name.items():
        _require_equal_settings(name, same)
    recipes = [recipe_of(name, same) for name, same in by_name.items()]
    if all(recipe.seeds == 1 for recipe in recipes):
        return ()
    return tuple(sorted(recipes, key=lambda recipe: -recipe.mean.estimate if recipe.mean else 1.0))


def differences_of(recipes: Sequence[Recipe]) -> tuple[RecipeDifference, ...]:
    """Compare every two recipes of which one has several seeds, in the order of the recipes."""
    return tuple(
        RecipeDifference(one.name, other.name, difference_of(one, other))
        for one, other in combinations(recipes, 2)
        if one.seeds > 1 or other.seeds > 1
    )


def _require_equal_settings(name: str, rows: Sequence[Row]) -> None:
    for row in rows:
        if unequal := rows[0].origin.unequal_settings(row.origin):
            raise UsageError(
                f"rows named {name!r} are no seeds of one recipe: they differ in {', '.join(unequal)}; "
                "compare them without --seeds"
            )


def recipe_of(name: str, rows: Sequence[Row]) -> Recipe:
    """Take rows together, on the tasks that all of them have; at least one row.

    Raises:
        UsageError: they are of different base models.
    """
    models = {row.origin.model for row in rows}
    digests = {row.origin.digest for row in rows if row.origin.digest}
    if len(digests or models) > 1:
        raise UsageError(
            f"rows named {name!r} are no seeds of one recipe: their models are "
            f"{' and '.join(sorted(models))}; compare them without --seeds"
        )
    measured = [solve_rates(row.results) for row in rows]
    tasks = sorted(task for task in measured[0] if all(task in rates for rates in measured))
    by_origin: dict[tuple[str, str], list[list[float]]] = {}
    for row, rates in zip(rows, measured, strict=True):
        made = (row.origin.adapter, row.origin.system)
        by_origin.setdefault(made, []).append([rates[task] for task in tasks])
    rates_ST = np.array([np.mean(same, axis=0) for same in by_origin.values()])
    source = {result.task: result.source for result in rows[0].results}
    sources = tuple(source[task] for task in tasks)
    mean = seeds_interval(rates_ST, None, sources) if tasks else None
    return Recipe(name, tuple(tasks), sources, rates_ST, mean)


def difference_of(
    one: Recipe, other: Recipe, *, level: float = LEVEL, by_seed: bool = False
) -> Interval | None:
    """Mean of ``one`` minus ``other`` on their common tasks; ``None`` without one.

    Args:
        one, other: the recipes.
        level: of the interval.
        by_seed: see `envkit.measure.stats.seeds_interval`.
    """
    where = {task: index for index, task in enumerate(other.tasks)}
    mine = [index for index, task in enumerate(one.tasks) if task in where]
    if not mine:
        return None
    others = [where[one.tasks[index]] for index in mine]
    clusters = [one.sources[index] for index in mine]
    ours, theirs = one.rates_ST[:, mine], other.rates_ST[:, others]
    return seeds_interval(ours, theirs, clusters, level=level, by_seed=by_seed)
