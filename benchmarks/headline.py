"""Make the tables and the plot of the results on the test split, from the committed reports.

python benchmarks/headline.py    # prints the tables, writes docs/results/test/solved.svg

The first two tables are the README's, the others are in the pages of docs/results/test, whose archive
`raw.tar.xz` holds the reports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pack_results import NAME, unpacked

from envkit.measure.leaderboard.recipes import Recipe, difference_of, recipe_of
from envkit.measure.number_text import MINUS, NONE, bounds, percent, points
from envkit.measure.report.data import ReportData, Row
from envkit.measure.report.svg_charts import Bar, bars, svg_file
from envkit.runtime.store import write_atomic

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "test"
#: Temperature of the table's interval and of the plot; the other is greedy.
SAMPLED, GREEDY = "temperature-0.7", "temperature-0"
_SEED_1, _SEED_2 = "seed-1/{}/", "seed-2/{}/"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Args:
        label: its name there.
        short: its name in the plot.
        seeds: (folder of a report, name of its row), one for each seed; ``{}`` stands for the temperature.
        series: colour in the plot: 0 without training, 1 with.
        greedy: ``seeds`` at temperature 0, if they are named otherwise there.
    """

    label: str
    short: str
    seeds: tuple[tuple[str, str], ...]
    series: int = 0
    greedy: tuple[tuple[str, str], ...] = ()

    def rows(self, temperature: str) -> list[Row]:
        """The row of each seed; none if they were not measured at this temperature."""
        seeds = self.greedy if self.greedy and temperature == GREEDY else self.seeds
        found = [_row(folder.format(temperature), name) for folder, name in seeds]
        measured = [row for row in found if row is not None]
        if len(measured) not in (0, len(found)):
            raise ValueError(f"{self.label}: found {len(measured)} seeds, expected {len(found)}")
        return measured

    def recipe(self, temperature: str, tasks: Collection[str] | None = None) -> Recipe | None:
        """All seeds together, on some of the tasks or all; ``None`` if none was measured."""
        rows = self.rows(temperature)
        if tasks is not None:
            rows = [replace(row, results=tuple(r for r in row.results if r.task in tasks)) for row in rows]
        return recipe_of(self.label, rows) if rows else None


_WARM_START = Line(
    "after SFT, 20 minutes, three seeds",
    "SFT, 20 minutes",
    (("{}", "sft"), (_SEED_1 + "sft", "sft"), (_SEED_2 + "sft", "sft")),
    1,
)
_TRAINED = Line(
    "after SFT and RL, 60 minutes, three seeds",
    "SFT+RL, 60 minutes",
    (
        ("{}", "step-000050"),
        (_SEED_1 + "step-000050", "step-000050"),
        (_SEED_2 + "step-000050", "step-000050"),
    ),
    1,
)
_BASE = Line("base", "base", (("{}", "base"),))
_SFT_ALONE = Line(
    "after SFT alone, all known solutions, two seeds",
    "SFT alone",
    (("sft-alone/{}", "sft"), ("sft-alone/seed-1/{}", "sft")),
    1,
)
_LARGER = Line(
    "Qwen2.5-Coder-1.5B, three times the size, untouched",
    "1.5B, untouched",
    (("untouched-1.5b/{}", "qwen2.5-coder-1.5b-q4"),),
)
_LARGER_TRAINED = Line(
    "Qwen2.5-Coder-1.5B after SFT and RL, two seeds",
    "1.5B, SFT+RL",
    (("trained-1.5b/{}", "step-000024"), ("trained-1.5b/seed-1/{}", "trained")),
    1,
    greedy=(("trained-1.5b/{}", "trained"), ("trained-1.5b/seed-1/{}", "trained")),
)
#: Scripts play no temperature; both folders have them.
_MUTANT = Line("one random mutation, no model", "random mutation", (("{}", "blind-mutant"),))
_SEARCH = Line("search until the examples hold, no model", "search, no model", (("{}", "enumerate"),))
LINES = (
    _MUTANT,
    _SEARCH,
    _BASE,
    Line("base, shown three solved tasks", "base, 3 shown", (("sft-alone/{}", "base, 3-shot"),)),
    _WARM_START,
    _SFT_ALONE,
    _TRAINED,
    _LARGER,
    _LARGER_TRAINED,
)


#: The lines of the README's table.
SHORT = (_SEARCH, _BASE, _SFT_ALONE, _TRAINED, _LARGER, _LARGER_TRAINED)


def table() -> str:
    """The table of solve rates on the page of results, in Markdown."""
    lines = [
        "| row | pass@1 at temperature 0.7 | 95 % interval | at 0 |",
        "| --- | ---: | --- | ---: |",
    ]
    for line in LINES:
        greedy = None if line in (_MUTANT, _SEARCH) else line.recipe(GREEDY)
        lines.append(_line(line.label, *_sampled(line), _rate(greedy)))
    return "\n".join(lines) + "\n"


def short_table() -> str:
    """The README's table of solve rates, in Markdown."""
    lines = ["| row | solved, temperature 0.7 | 95 % interval |", "| --- | ---: | --- |"]
    return "\n".join(lines + [_line(line.label, *_sampled(line)) for line in SHORT]) + "\n"


def _sampled(line: Line) -> tuple[str, str]:
    """Solve rate and its interval at temperature 0.7."""
    found = line.recipe(SAMPLED)
    interval = "" if found is None else bounds(found.mean).strip("[]").replace(", ", " to ")
    return _rate(found), interval


def _line(*cells: str) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def differences() -> str:
    """The table of differences on the page of results, in Markdown."""
    return _differences(
        "difference in points",
        {
            "trained minus base": _BASE,
            "trained minus the untouched 1.5B": _LARGER,
            "RL minus its own warm start": _WARM_START,
            "SFT and RL minus SFT alone": _SFT_ALONE,
        },
    )


def seeds() -> str:
    """The table of the three seeds together in docs/results/test, in Markdown."""
    sampled, greedy = (
        f"{percent(recipe.mean.estimate)} {bounds(recipe.mean)}"
        for recipe in (_TRAINED.recipe(SAMPLED), _TRAINED.recipe(GREEDY))
        if recipe is not None and recipe.mean is not None
    )
    [search] = _SEARCH.rows(SAMPLED)
    unsolved = {result.task for result in search.results if not result.solved}
    first, rule, *lines = _differences(
        "three seeds, for other seeds too",
        {
            "SFT+RL - base": _BASE,
            "SFT+RL - SFT": _WARM_START,
            "SFT+RL - SFT alone, two seeds": _SFT_ALONE,
            "SFT+RL - enumerate": _SEARCH,
            "SFT+RL - blind-mutant": _MUTANT,
            "SFT+RL - the 1.5B, untouched": _LARGER,
        },
    ).splitlines()
    *_, last = _differences(
        "", {f"SFT+RL - base, on the {len(unsolved)} tasks that enumerate does not solve": _BASE}, unsolved
    ).splitlines()
    return "\n".join((first, rule, f"| SFT+RL | {sampled} | {greedy} |", *lines, last)) + "\n"


def larger() -> str:
    """The table of the 1.5B's two seeds together in its page there, in Markdown."""
    return _differences(
        "two seeds, for other seeds too",
        {
            "SFT+RL - base": _LARGER,
            "SFT+RL - enumerate": _SEARCH,
            "SFT+RL - blind-mutant": _MUTANT,
            "SFT+RL - the 0.5B's SFT+RL of an hour, three seeds": _TRAINED,
        },
        ours=_LARGER_TRAINED,
    )


def _differences(
    title: str, others: Mapping[str, Line], tasks: Collection[str] | None = None, ours: Line = _TRAINED
) -> str:
    """A trained line minus others at both temperatures, on some of the tasks or all."""
    lines = [f"| {title} | at temperature 0.7 | at 0 |", "| --- | --- | --- |"]
    for label, line in others.items():
        cells = [label]
        for temperature in (SAMPLED, GREEDY):
            one, other = ours.recipe(temperature, tasks), line.recipe(temperature, tasks)
            assert one is not None
            assert other is not None
            # The warm start of each seed is what its RL began with.
            found = difference_of(one, other, by_seed=line is _WARM_START)
            assert found is not None
            cells.append(f"{points(found.estimate)} {bounds(found, signed=True)}".replace(MINUS, "-"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot() -> str:
    """Solve rates at the sampling temperature, as an SVG file."""
    rows: list[Bar] = []
    for line in LINES:
        recipe = line.recipe(SAMPLED)
        if recipe is not None and recipe.mean is not None:
            mean = recipe.mean
            rows.append(
                Bar(
                    line.series,
                    line.short,
                    100 * mean.estimate,
                    100 * mean.low,
                    100 * mean.high,
                    f"{percent(mean.estimate)} %",
                )
            )
    title = "Solved of 300 test tasks, %, at temperature 0.7, with 95 % intervals"
    return svg_file(bars("solved", title, "; ".join(f"{bar.name} {bar.label}" for bar in rows), rows))


def main() -> None:
    """Write the plot; print the tables."""
    write_atomic(RESULTS / "solved.svg", plot().encode())
    print(f"{table()}\n{differences()}\n{seeds()}\n{larger()}", end="")


def _row(folder: str, name: str) -> Row | None:
    """A row of a committed report; ``None`` if there is none."""
    return next((row for row in _rows(folder.strip("/")) if row.name == name), None)


@cache
def _rows(folder: str) -> tuple[Row, ...]:
    """The rows of a folder's report; none if it has no report."""
    report = _files().get(f"{folder}/report.json")
    return () if report is None else ReportData.from_json(report.decode()).rows


@cache
def _files() -> dict[str, bytes]:
    return unpacked(RESULTS / NAME)


def _rate(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    return NONE if recipe.mean is None else f"{percent(recipe.mean.estimate)} %"


if __name__ == "__main__":
    main()
