"""Make the README's table and plot of the results on the test split, from the committed reports.

python benchmarks/headline.py    # prints the table, writes docs/results/test/solved.svg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envkit.benchmark.number_text import NONE, bounds, percent, points
from envkit.benchmark.recipes import Recipe, difference_of, recipe_of
from envkit.benchmark.report import load_report
from envkit.benchmark.report_data import Row
from envkit.benchmark.svg_charts import Bar, bars, svg_file
from envkit.store import write_atomic

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

    def recipe(self, temperature: str) -> Recipe | None:
        """All seeds together; ``None`` if they were not measured at this temperature."""
        seeds = self.greedy if self.greedy and temperature == GREEDY else self.seeds
        rows = [_row(folder.format(temperature), name) for folder, name in seeds]
        measured = [row for row in rows if row is not None]
        if len(measured) not in (0, len(rows)):
            raise ValueError(f"{self.label}: found {len(measured)} seeds, expected {len(rows)}")
        return recipe_of(self.label, measured) if measured else None


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
#: Scripts play no temperature; both folders have them.
LINES = (
    Line("one random mutation, no model", "random mutation", (("{}", "blind-mutant"),)),
    Line("search until the examples hold, no model", "search, no model", (("{}", "enumerate"),)),
    Line("base", "base", (("{}", "base"),)),
    Line("base, shown three solved tasks", "base, 3 shown", (("sft-alone/{}", "base, 3-shot"),)),
    _WARM_START,
    Line(
        "after SFT alone, 60 minutes, two seeds",
        "SFT, 60 minutes",
        (("sft-alone/{}", "sft"), ("sft-alone/seed-1/{}", "sft")),
        1,
    ),
    _TRAINED,
    Line(
        "Qwen2.5-Coder-1.5B, three times the size, untouched",
        "1.5B, untouched",
        (("trained-1.5b/{}", "base"),),
        greedy=(("untouched-1.5b/{}", "qwen2.5-coder-1.5b-q4"),),
    ),
    Line(
        "Qwen2.5-Coder-1.5B after SFT and RL, one seed",
        "1.5B, SFT+RL",
        (("trained-1.5b/{}", "step-000024"),),
        1,
        greedy=(("trained-1.5b/{}", "trained"),),
    ),
)
#: Scripts, of which a greedy figure says nothing.
_SCRIPTS = LINES[:2]


def table() -> str:
    """The README's table, in Markdown."""
    lines = [
        "| row | pass@1 at temperature 0.7 | 95 % interval | at 0 |",
        "| --- | ---: | --- | ---: |",
    ]
    for line in LINES:
        sampled = line.recipe(SAMPLED)
        greedy = None if line in _SCRIPTS else line.recipe(GREEDY)
        interval = "" if sampled is None else bounds(sampled.mean).strip("[]").replace(", ", " to ")
        cells = (line.label, _rate(sampled), interval, _rate(greedy))
        lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    return "\n".join(lines) + "\n"


def differences() -> str:
    """Trained minus each other line at both temperatures, in points."""
    found: list[str] = []
    for line in LINES:
        if line is _TRAINED:
            continue
        for temperature in (SAMPLED, GREEDY):
            ours, theirs = _TRAINED.recipe(temperature), line.recipe(temperature)
            if ours is None or theirs is None:
                continue
            # The warm start of each seed is what its RL began with.
            difference = difference_of(ours, theirs, by_seed=line is _WARM_START)
            assert difference is not None
            found.append(
                f"{_TRAINED.short} - {line.short}, {temperature}: {points(difference.estimate)} "
                f"{bounds(difference, signed=True)}"
            )
    return "\n".join(found) + "\n"


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
    """Write the plot; print the table, and all differences."""
    write_atomic(RESULTS / "solved.svg", plot().encode())
    print(f"{table()}\n{differences()}", end="")


def _row(folder: str, name: str) -> Row | None:
    """A row of a committed report; ``None`` if there is none."""
    if not (RESULTS / folder / "report.json").exists():
        return None
    return next((row for row in load_report(RESULTS / folder).rows if row.name == name), None)


def _rate(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    return NONE if recipe.mean is None else f"{percent(recipe.mean.estimate)} %"


if __name__ == "__main__":
    main()
