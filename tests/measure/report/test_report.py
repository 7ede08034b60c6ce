"""The report: equal numbers in both files, escaped text, reproducible bytes."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import golden
import pytest

from envkit.errors import StoreError
from envkit.measure.number_text import points
from envkit.measure.report import tables
from envkit.measure.report.data import Excerpt, ReportData, Row, TaskResult
from envkit.measure.report.page import load_report, render, write_report
from envkit.measure.report.summary import summarise, summarise_row
from envkit.measure.report.text import headline, row_warnings, warnings
from envkit.runtime.plain import encode

VOID_TAGS = {"meta"}
#: Ten tasks, each solved in half of ten samples.
ITEMS = tuple(TaskResult(str(task), str(task), "", samples=10, solved=5) for task in range(10))


class Outline(HTMLParser):
    """Every tag with its attributes, and the visible text; fails on tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _pages(run: ReportData) -> tuple[str, str]:
    files = render(run)
    return files["report.html"].decode(), files["report.md"].decode()


def test_golden_report(run: ReportData) -> None:
    golden.expect("report", encode(summarise(run)))


def test_every_table_cell_stands_in_both_files(run: ReportData) -> None:
    page, markdown = _pages(run)
    summary = summarise(run)
    shown = [
        tables.results(run, summary),
        tables.rewards(run, summary),
        tables.differences(summary),
        tables.operators(run, summary),
        tables.training(run),
        tables.phases(run),
        tables.facts(run),
        tables.config(run.config),
    ]
    for table in shown:
        for row in table.rows:
            assert len(row) == len(table.head)
            in_html = "".join(rf"<t[hd][^>]*>{re.escape(html.escape(c, quote=False))}</t[hd]>" for c in row)
            assert re.search(in_html.replace("'", "(?:'|&\\#39;)"), page), row
            assert f"| {' | '.join(row)} |" in markdown, row


def test_the_headline_says_what_happened(run: ReportData) -> None:
    lead, own, undone = headline(run, summarise(run))
    assert re.fullmatch(
        r"SFT\+RL solves 37\.5 % of 80 held-out tasks \[[\d.]+, [\d.]+\], "
        r"against 2\.5 % \[[\d.]+, [\d.]+\] for base \(the untouched model\): "
        r"\+35\.0 points \[\+[\d.]+, \+[\d.]+\]\. The interval lies above zero: SFT\+RL is better "
        r"than base\.",
        lead,
    )
    assert own.startswith("RL's own part: 0.0 points [\N{MINUS SIGN}")
    assert "includes zero, so this run does not show a difference" in own
    assert undone.endswith("The interval lies below zero: base is worse than SFT.")
    page, markdown = _pages(run)
    for sentence in (lead, own, undone):
        assert sentence in markdown
        assert sentence in "".join(Outline(page).text).replace("\u00a0", " ")


def test_the_headline_names_every_contestant(run: ReportData) -> None:
    alone = replace(run, differences=())
    said = headline(alone, summarise(alone))
    assert [sentence.partition(" solves ")[0] for sentence in said] == ["base", "SFT", "SFT+RL"]
    some = replace(run, differences=run.differences[:1])
    lead, other = headline(some, summarise(some))
    assert lead.startswith("SFT+RL solves")
    assert re.fullmatch(r"SFT solves 37\.5 % of 80 held-out tasks \[[\d.]+, [\d.]+\]\.", other)
    controls = replace(run, rows=run.rows[3:], differences=())
    assert headline(controls, summarise(controls))[0].startswith("oracle solves 100.0 %")


def test_the_headline_of_an_unfinished_run(run: ReportData) -> None:
    base, oracle = run.rows[0], run.rows[3]
    nothing = replace(run, rows=(), differences=())
    assert headline(nothing, summarise(nothing)) == ("Nothing was measured: the run has no evaluation.",)
    one = replace(run, rows=(base, oracle), differences=())
    assert headline(one, summarise(one))[0].startswith("base solves 2.5 % of 80 held-out tasks [")
    unmeasured = replace(run, rows=(base, replace(run.rows[1], results=()), replace(run.rows[2], results=())))
    assert headline(unmeasured, summarise(unmeasured))[0].startswith("SFT+RL was not measured, against 2.5 %")
    for each in (nothing, one, unmeasured):
        Outline(_pages(each)[0])


def test_warnings_from_the_numbers_of_rows(run: ReportData) -> None:
    assert warnings(run, summarise(run)) == run.warnings
    oracle = run.rows[3]
    broken = replace(oracle, results=(replace(oracle.results[0], solved=7), *oracle.results[1:]))
    voided = replace(run.rows[1], results=tuple(replace(item, voids=1) for item in run.rows[1].results))
    few = replace(run.rows[2], results=run.rows[2].results[:10])
    troubled = replace(run, isolation="external", rows=(run.rows[0], voided, few, broken))
    found = "\n".join(warnings(troubled, summarise(troubled)))
    assert "outside the sandbox (isolation: external)" in found
    assert " samples instead of 100.0 %. Unless it needs more turns than it had" in found
    assert "SFT: 80 of 720 samples were lost" in found
    assert "SFT+RL minus base: 70 tasks are left out: only one of the two has results" in found
    assert "SFT+RL minus SFT: with 5 sources" in found
    alike = replace(troubled, rows=(run.rows[0], replace(few, name="SFT"), few, broken))
    found = "\n".join(warnings(alike, summarise(alike)))
    assert "base minus SFT: with 5 sources" in found
    assert "SFT+RL minus SFT: with" not in found, "which is exact, however few there are"


def test_rows_that_were_asked_differently_are_warned_of(run: ReportData) -> None:
    rows = {row.name: replace(row, origin=replace(row.origin, kind="local")) for row in run.rows}
    trained = rows["SFT+RL"]
    asked = replace(trained.origin, temperature=0.25, max_completion_length=64)
    unequal = replace(run, rows=tuple({**rows, "SFT+RL": replace(trained, origin=asked)}.values()))
    found = [line for line in warnings(unequal, summarise(unequal)) if line not in run.warnings]
    assert found == [
        f"SFT+RL minus {other}: the two were not asked alike. They differ in temperature (0.25 and 0.0), "
        "token limit of a turn (64 and 0)."
        for other in ("base", "SFT")
    ]


def test_few_sources_are_warned_of_once_a_row_unless_the_interval_was_widened(run: ReportData) -> None:
    for tasks, sources in ((10, 5), (40, 20)):
        few = replace(run.rows[1], results=run.rows[1].results[:tasks])
        alone = replace(run, rows=(few,), differences=())
        said = f"SFT: with {sources} sources the interval is too narrow to rely on."
        assert warnings(alone, summarise(alone)) == (*run.warnings, said)
    nearly_alike = replace(run.rows[0], results=run.rows[0].results[:38])  # 8 of 19 sources are above 0
    widened = replace(run, rows=(nearly_alike,), differences=())
    assert warnings(widened, summarise(widened)) == run.warnings


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("a", "", ITEMS), []),
        (Row("a", "", (replace(ITEMS[0], voids=1), *ITEMS[1:])), []),  # 1 of 101
        (
            Row("a", "", (replace(ITEMS[0], voids=2), *ITEMS[1:])),
            ["a there: 2 of 102 samples were lost to broken machinery or to a provider that did not answer"],
        ),
        (Row("a", "", (replace(ITEMS[0], cut_off=5), *ITEMS[1:])), []),
        (
            Row("a", "", (replace(ITEMS[0], cut_off=6), *ITEMS[1:])),
            ["a there: 6 of 100 samples were cut off at the token limit"],
        ),
        (Row("a", "", (replace(ITEMS[0], raised=1), *ITEMS[1:])), []),
        (
            Row("a", "", (replace(ITEMS[0], raised=2), *ITEMS[1:])),
            ["a there: the environment raised an exception in 2 of 100 samples, which is a bug in it."],
        ),
        (Row("a", "", ITEMS, expected=0.5), []),
        (
            Row("a", "", ITEMS, expected=1.0),
            ["The control a there solved 50 of 100 samples instead of "],
        ),
        (Row("a", "", (replace(ITEMS[0], cut_off=9), *ITEMS[1:]), expected=0.5), []),
        (Row("a", "", ()), []),
    ],
)
def test_warnings_of_one_row(row: Row, said: list[str]) -> None:
    found = row_warnings("a there", row, summarise_row(row, (1,)))
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_both_files_explain_the_exact_interval(run: ReportData) -> None:
    page, markdown = _pages(run)
    for text in ("".join(Outline(page).text).replace("\u00a0", " "), markdown):
        assert "[91.2, 100.0]" in text, "of the oracle, on 40 functions"
        assert "the exact one of Clopper and Pearson, with each source as one trial" in text
        assert "[100.0, 100.0]" not in text


def test_html_needs_nothing_from_outside(run: ReportData) -> None:
    page, _ = _pages(run)
    outline = Outline(page)
    assert "://" not in page
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "img", "iframe", "object"}
    assert not [tag for tag, attributes in outline.tags if {"src", "href", "style"} & attributes.keys()]


def test_html_is_accessible(run: ReportData) -> None:
    page, _ = _pages(run)
    outline = Outline(page)
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = outline.all("svg")
    assert len(charts) == 7
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(ids)
    assert len(outline.all("caption")) == len(outline.all("table"))
    assert all(cell["scope"] in ("col", "row") for cell in outline.all("th"))


def test_hostile_text_stays_text(run: ReportData) -> None:
    hostile = '</pre><script>alert("1")</script>|`*_x_*[a](b)\n````\n# h\u202e'
    items = (TaskResult(hostile, hostile, hostile, 1, 1),)
    odd = replace(
        run,
        title=hostile,
        command=hostile,
        rows=(Row(hostile, hostile, items),),
        differences=(),
        examples=(Excerpt(hostile, hostile, hostile, hostile, hostile),),
        config={hostile: hostile},
        warnings=(hostile,),
    )
    page, markdown = _pages(odd)
    plain = {tag for tag, _ in Outline(_pages(run)[0]).tags}
    assert {tag for tag, _ in Outline(page).tags} <= plain
    assert "\u202e" not in page + markdown
    fence, text = "`" * 5, hostile.replace("\u202e", "\\u202e")
    assert f"{fence}\n{text}\n{fence}" in markdown
    outside = re.sub(rf"^{fence}\n.*?\n{fence}$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(|^# h", outside, flags=re.MULTILINE)


def test_unmeasured_curves_are_not_drawn(run: ReportData) -> None:
    nan = float("nan")
    unknown = replace(run, training=tuple(replace(p, loss=nan, tokens_per_s=nan) for p in run.training))
    page, _ = _pages(unknown)
    assert len(Outline(page).all("svg")) == 5
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_a_run_without_a_model_leaves_no_gap_for_it(run: ReportData) -> None:
    for page in _pages(replace(run, model="")):
        assert "2026-01-01 · envkit/CodeEditor-v0 · run demo-1" in page


def test_equal_data_gives_equal_bytes(run: ReportData) -> None:
    assert render(run) == render(ReportData.from_json(run.to_json()))


def test_a_report_is_written_once(run: ReportData, tmp_path: Path) -> None:
    path = write_report(run, tmp_path)
    assert path == tmp_path / "report.html"
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert before == render(run)
    write_report(run, tmp_path)
    with pytest.raises(StoreError, match=r"report\.json is a different report; nothing was written"):
        write_report(replace(run, title="Another"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write_report(replace(run, title="Another"), tmp_path, overwrite=True)
    assert load_report(tmp_path).title == "Another"


def test_a_report_is_rebuilt_from_its_data_alone(run: ReportData, tmp_path: Path) -> None:
    page = write_report(run, tmp_path)
    original = page.read_bytes()
    page.unlink()
    assert write_report(load_report(tmp_path), tmp_path).read_bytes() == original


def test_a_folder_without_a_usable_report_is_named(tmp_path: Path, run: ReportData) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*report\.json"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text(run.to_json().replace('"demo-1"', "7"))
    with pytest.raises(StoreError, match=r"report\.json: report\.run is 7; expected str"):
        load_report(tmp_path)
    with pytest.raises(StoreError, match="cannot write"):
        write_report(run, tmp_path / "absent")


def test_points_are_signed() -> None:
    assert [points(x) for x in (0.373, -0.021, 0.0, -0.0001)] == ["+37.3", "\N{MINUS SIGN}2.1", "0.0", "0.0"]
