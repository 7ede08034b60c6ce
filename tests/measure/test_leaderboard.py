"""The leaderboard's files: equal numbers in all three, no foreign script, atomic replacement."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sample_reports import report, sample_row

from envkit.measure.leaderboard.data import make_leaderboard
from envkit.measure.leaderboard.page import render, write_leaderboard
from envkit.measure.leaderboard.published import load_published
from envkit.measure.leaderboard.table import HEAD, line
from envkit.measure.number_text import NONE, bounds, percent
from envkit.measure.report.data import Origin, ReportData
from envkit.runtime.prices import load_prices


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    board = make_leaderboard([report(), report("bench-2", "sql-desk", voids=3)], load_prices(), "cpu-2-cores")
    return {name: content.decode() for name, content in render(board).items()}


def test_every_cell_stands_in_page_and_markdown(files: dict[str, str]) -> None:
    board = make_leaderboard([report()], load_prices(), "cpu-2-cores")
    for row in board.sections[0].rows:
        cells = line(row, board.sections[0].reference)
        assert len(cells) == len(HEAD)
        for cell in cells:
            assert html.escape(cell.text, quote=False) in files["leaderboard.html"]
        said = [f"{cell.text} {cell.interval}".strip() for cell in cells]
        plain = re.sub(r"\\(?=[<*|_])", "", files["leaderboard.md"])
        assert f"| {' | '.join(said)} |" in plain


def test_unknown_training_cost_says_not_known() -> None:
    found = report()
    trained = replace(found.rows[3], origin=replace(found.rows[3].origin, training_seconds=math.nan))
    made = make_leaderboard([replace(found, rows=(*found.rows[:3], trained, found.rows[4]))], load_prices())
    rows = made.sections[0].rows
    shown = {row.name: line(row, "")[HEAD.index("Training $")].text for row in rows}
    assert shown == {
        **dict.fromkeys(("big & <b>bold</b>", "base", "oracle", "no-op"), NONE),
        "SFT+RL": "not known",
    }
    page = render(made)["leaderboard.md"].decode()
    assert re.search(r"\n\| SFT\+RL \| big .* \| 3\d\.\d \| 9\d\.\d \| \$\S+ \| not known \|\n", page)


def test_scripts_that_compete_are_no_controls() -> None:
    found = report()
    rows = (*found.rows[:3], sample_row("enumerate", Origin(), 0.5))
    made = make_leaderboard([replace(found, rows=rows)], load_prices())
    shown = {row.name: line(row, "")[HEAD.index("Answers")].text for row in made.sections[0].rows}
    assert shown == {"enumerate": "script", "base": "ran here", "oracle": "control", "no-op": "control"}
    page = render(made)["leaderboard.html"].decode()
    kinds = re.findall(r'<tr data-kind="(\w+)"', page)
    assert sorted(kinds) == ["control", "control", "local", "script"]


def test_rows_without_an_amount_of_dollars_are_not_sorted_by_one() -> None:
    found = report()
    rows = (found.rows[3], replace(found.rows[2], name="none solved", results=found.rows[1].results))
    made = make_leaderboard([replace(found, rows=rows)], load_prices())
    cells = {row.name: line(row, "") for row in made.sections[0].rows}
    for column in ("$ per solved", "Training $"):
        assert cells["none solved"][HEAD.index(column)].value is None
        assert cells["SFT+RL"][HEAD.index(column)].value is not None


def test_seconds_are_empty_for_controls_and_recorded_outputs() -> None:
    rows = make_leaderboard([report()], load_prices()).sections[0].rows
    shown = {row.name: line(row, "")[HEAD.index("s per episode")].text for row in rows}
    assert shown == {
        **dict.fromkeys(("big & <b>bold</b>", "SFT+RL", "base"), "2.00"),
        **dict.fromkeys(("gpt-4-0613", "oracle", "no-op"), NONE),
    }


def test_the_csv_has_numbers_as_numbers_and_no_formulas(files: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["leaderboard.csv"])))
    assert len(rows) == 12
    first = rows[0]
    assert first["agent"] == "big & <b>bold</b>"
    assert float(first["pass_at_1"]) == int(first["solved"]) / int(first["samples"])
    assert float(first["usd_total"]) == pytest.approx(1.44)
    assert rows[1]["usd_total"] == ""
    hostile = replace(report(), rows=(replace(report().rows[2], name="=1+1"),))
    made = render(make_leaderboard([hostile], load_prices(), "cpu-2-cores"))["leaderboard.csv"].decode()
    assert "'=1+1" in made
    assert ",=1+1" not in made


def test_pass_at_k_curve_is_also_a_table(files: dict[str, str]) -> None:
    rows = {row["agent"]: row for row in csv.DictReader(io.StringIO(files["leaderboard.csv"]))}
    made = make_leaderboard([report()], load_prices())
    contestants = {row.name: row for row in made.sections[0].contestants}
    for name, row in contestants.items():
        known = {rate.k: rate.interval for rate in row.curve}
        assert set(known) == ({1} if name == "gpt-4-0613" else {1, 2, 4})
        cells: list[str] = []
        for k in (1, 2, 4):
            rate = known.get(k)
            cells.append(f"{percent(rate.estimate)} {bounds(rate)}" if rate else NONE)
            ends = [rows[name][f"pass_at_{k}{end}"] for end in ("", "_low", "_high")]
            assert ends == (
                ["", "", ""] if rate is None else [repr(x) for x in (rate.estimate, rate.low, rate.high)]
            )
        assert all(f">{cell}</td>" in files["leaderboard.html"] for cell in cells)
        plain = re.sub(r"\\(?=[<*|_])", "", files["leaderboard.md"])
        assert f"\n| {name} | {' | '.join(cells)} |\n" in plain
    once = replace(report(), rows=tuple(row for row in report().rows if row.name in ("oracle", "gpt-4-0613")))
    page = render(make_leaderboard([once], load_prices()))
    assert "one of k tries" not in page["leaderboard.md"].decode()
    assert b"pass_at_2" not in page["leaderboard.csv"]


def test_a_row_that_solves_all_or_nothing_is_not_certain(files: dict[str, str]) -> None:
    rows = {row["agent"]: row for row in csv.DictReader(io.StringIO(files["leaderboard.csv"]))}
    found = [float(rows[name][f"pass_at_1_{end}"]) for name in ("no-op", "oracle") for end in ("low", "high")]
    unseen = 1 - 0.025 ** (1 / 30)  # of 30 functions
    assert found == pytest.approx([0, unseen, 1 - unseen, 1])
    for name in ("leaderboard.html", "leaderboard.md"):
        text = files[name].replace("\u00a0", " ")
        assert "[88.4, 100.0]" in text
        assert "[0.0, 11.6]" in text
        assert "the exact one of Clopper and Pearson, with each source as one trial" in text


def test_the_page_runs_our_script_and_nothing_else(files: dict[str, str]) -> None:
    page = files["leaderboard.html"]
    [script] = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert "<b>bold</b>" not in page
    assert not re.findall(r"(?:src|href)=", page)


def test_every_row_says_where_it_comes_from(files: dict[str, str]) -> None:
    for text in (files["leaderboard.md"], files["leaderboard.csv"]):
        for fact in ("envkit bench spec.toml", "0.1.0 abc1234", "ada97e5ada97", "d19e57d19e57", "5ea1"):
            assert fact in text
    digest = report().conditions.digest  # type: ignore[union-attr]
    assert digest in files["leaderboard.csv"]


@pytest.mark.parametrize(
    ("certificate", "shown"),
    [
        ("none: it was audited with 3 turns an episode, this run has 9", "this run has 9"),
        (f"{'5ea1' * 10}beef", f"| {'5ea1' * 10} |"),
    ],
)
def test_a_reason_for_no_certificate_is_whole_and_a_digest_is_short(certificate: str, shown: str) -> None:
    made = make_leaderboard([replace(report(), certificate=certificate)], load_prices())
    page = render(made)["leaderboard.md"].decode()
    assert shown in page
    assert "beef" not in page


def head_of(*reports: ReportData, machine: str | None = None) -> str:
    """The Markdown before the first table."""
    page = render(make_leaderboard(reports, load_prices(), machine))["leaderboard.md"].decode()
    return re.sub(r"\\\\(?=[<*|_])", "", page[: page.index("## code-editor")])


def test_warnings_come_before_the_tables() -> None:
    broken = report(voids=5)
    lying = replace(broken.rows[0], results=tuple(replace(item, solved=0) for item in broken.rows[0].results))
    short = replace(broken.rows[2], results=broken.rows[2].results[:50])
    rows, early = (lying, short, broken.rows[3]), ("The run ended early (why).",)
    head = head_of(replace(broken, rows=rows, warnings=early, isolation="external"))
    assert "code-editor: The control oracle solved 0 of " in head
    assert "code-editor: SFT+RL: 5 of 245 samples were lost to broken machinery" in head
    assert "code-editor: base was not measured on 10 of the tasks, so it is ranked behind" in head
    void = tuple(replace(item, samples=0, solved=0, voids=4) for item in broken.rows[2].results[50:])
    rows = (replace(short, results=(*short.results, *void)), broken.rows[3])
    head = head_of(replace(broken, rows=rows, warnings=early, isolation="external"))
    assert "code-editor: base was not measured on 10 of the tasks, so it is ranked behind" in head
    assert "code-editor, run bench-1: The run ended early (why)." in head
    assert "code-editor, run bench-1: isolation is external." in head
    assert "different machines" not in head


def test_board_warns_of_few_functions_and_of_different_machines_at_one_price() -> None:
    first, second = (replace(report(run, tasks=40), rows=report(tasks=40).rows[:4]) for run in ("one", "two"))
    elsewhere = replace(second, machine=replace(second.machine, cpu="B CPU"))
    assert "different machines" not in head_of(first, second, machine="cpu-2-cores")
    assert "different machines" not in head_of(first, elsewhere)
    widened = replace(first, rows=first.rows[:3])  # of the 20 sources, few are solved
    assert "too narrow" not in head_of(widened)
    head = head_of(first, elsewhere, machine="cpu-2-cores")
    assert "rows ran on different machines, but all are priced as cpu-2-cores" in head
    assert "with 20 sources, intervals are too narrow to rely on: those of SFT+RL · " in head


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"a": 0.5, "b": 0.1}, "a solves most: "),
        (
            {"a": 0.5, "b": 0.5},
            r"[ab] and [ab] solve most: [\d.]+ % .* and [\d.]+ % .*\. The difference between them is "
            r"not significant",
        ),
        ({"a": 0.0, "b": 0.0}, r"No agent solved anything\.$"),
        ({"a": 0.5}, r"a solves [\d.]+ % "),
        ({}, "No agent was measured, only controls"),
    ],
)
def test_lead_claims_only_significant_differences(rates: dict[str, float], said: str) -> None:
    rows = [sample_row(name, Origin("local", "m"), rate, tasks=20) for name, rate in rates.items()]
    controls = report(tasks=20).rows[:2]
    page = render(make_leaderboard([replace(report(), rows=(*controls, *rows))], load_prices()))
    [_, lead] = page["leaderboard.md"].decode().split("## code-editor\n\n", 1)
    assert re.match(said, lead.partition("\n")[0])


def test_the_lead_names_ties_and_says_that_prices_are_missing() -> None:
    row = sample_row("a", Origin("local", "m"), 0.5, tasks=20)
    unknown = Origin("live", "no-such-model")
    rows = [replace(row, name=name, origin=unknown if name == "c" else row.origin) for name in "abc"]
    [_, lead] = (
        render(make_leaderboard([replace(report(), rows=tuple(rows))], load_prices()))["leaderboard.md"]
        .decode()
        .split("## code-editor\n\n", 1)
    )
    assert " c solves as many. Of the 2 with a known price, a is the cheapest" in lead.partition("\n")[0]


def test_published_rows_are_apart_and_sourced(files: dict[str, str]) -> None:
    rows = load_published()
    assert len(rows) >= 15
    ranked, published = files["leaderboard.md"].split("## Published elsewhere")
    for row in rows:
        assert row.source
        assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", row.date)
        assert f"{row.solved_percent:.1f}" in published
    assert "Aider" not in ranked


def test_equal_boards_give_equal_bytes_and_files_are_replaced_whole(tmp_path: Path) -> None:
    board = make_leaderboard([report()], load_prices(), "cpu-2-cores")
    assert render(board) == render(board)
    page = write_leaderboard(board, tmp_path)
    assert write_leaderboard(board, tmp_path) == page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.md",
    ]


def test_the_board_says_which_baselines_a_trained_row_clears() -> None:
    found = report()
    rates = {"chance": 0.05, "search": 0.34, "perfect": 1.0}
    rows = [sample_row(name, Origin(), rate) for name, rate in rates.items()]
    made = make_leaderboard([replace(found, rows=(*found.rows, *rows))], load_prices(), "cpu-2-cores")
    text = render(made)["leaderboard.md"].decode()
    assert re.search(r"\nSFT\+RL beats chance: \+\d", text)
    assert re.search(r"\nSFT\+RL is not shown to beat search: .*, which includes zero\.\n", text)
    assert re.search(r"\nSFT\+RL is worse than perfect: ", text)
    assert "beats chance" in render(made)["leaderboard.html"].decode()
    assert "base beats" not in text


def test_estimated_dollars_are_marked() -> None:
    found = report()
    counted = replace(found.rows[-1].origin, tokenizer="qwen2.5-coder-0.5b-q4")
    results = tuple(
        replace(item, prompt_tokens=500, completion_tokens=100, solved=1) for item in found.rows[-1].results
    )
    rows = (*found.rows[:-1], replace(found.rows[-1], origin=counted, results=results))
    made = make_leaderboard([replace(found, rows=rows)], load_prices(), "cpu-2-cores")
    [row] = [row for row in made.sections[0].rows if row.name == "gpt-4-0613"]
    assert line(row, "")[HEAD.index("$ per solved")].text.endswith(" (estimated)")
    assert "estimated: tokens of gpt-4-0613" in row.cost.basis
    assert row.cost.basis.endswith("counted with the tokenizer of qwen2.5-coder-0.5b-q4")


def test_recipes_and_unsolved_tasks_are_shown_where_asked_for(files: dict[str, str]) -> None:
    found = report()
    seed = sample_row("SFT+RL, seed 1", replace(found.rows[3].origin, adapter="0ther"), 0.4)
    made = [replace(found, rows=(*found.rows, seed))]
    board = make_leaderboard(made, load_prices(), "cpu-2-cores", unsolved_by="base", seeds=True)
    pages = {name: html.unescape(content.decode()) for name, content in render(board).items()}
    [recipe] = [recipe for recipe in board.sections[0].recipes if recipe.name == "SFT+RL"]
    assert recipe.mean is not None
    cells = (f"{percent(recipe.mean.estimate)} {bounds(recipe.mean)}", ", ".join(map(percent, recipe.each)))
    for name in ("leaderboard.html", "leaderboard.md"):
        assert "Only tasks that base never solved." in pages[name]
        assert "for other sources and training seeds" in pages[name]
        assert all(cell in pages[name].replace("\N{NO-BREAK SPACE}", " ") for cell in cells)
        assert "SFT+RL \N{MINUS SIGN} base" in pages[name]
        assert "Student's t" in pages[name]
        assert "for other sources and training seeds" not in files[name]
        assert "Student" not in files[name]
        assert "never solved" not in files[name]
    described = f"SFT+RL: {percent(recipe.mean.estimate)} %"  # by the chart
    assert described in pages["leaderboard.html"]
