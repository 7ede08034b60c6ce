"""The leaderboard in a real browser: sorting, filtering, keyboard, accessibility and print."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from browser import Watched, browser, watched
from playwright.sync_api import Browser, Page, expect
from sample_reports import report

from envkit.measure.leaderboard.data import make_leaderboard
from envkit.measure.leaderboard.page import write_leaderboard
from envkit.runtime.prices import load_prices


@pytest.fixture(scope="module")
def chromium() -> Generator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    reports = [report(), report("bench-2", "sql-desk", voids=3)]
    board = make_leaderboard(reports, load_prices(), "cpu-2-cores")
    return write_leaderboard(board, tmp_path_factory.mktemp("board")).as_uri()


@pytest.fixture
def seen(chromium: Browser, page_url: str) -> Generator[Watched]:
    with watched(chromium) as page:
        page.page.goto(page_url)
        yield page
        assert page.is_quiet(), page


def names(page: Page) -> list[str]:
    """Agents of the first table, from top to bottom, those that are shown."""
    return page.locator("table.sortable").first.locator("tbody th:visible").all_inner_texts()


def test_filters_that_do_nothing_without_javascript_are_hidden(chromium: Browser, page_url: str) -> None:
    page = chromium.new_page(java_script_enabled=False)
    page.goto(page_url)
    expect(page.locator("table.sortable").first).to_be_visible()
    expect(page.locator("#filters")).to_be_hidden()
    page.close()


def test_columns_sort_both_ways_and_unknown_values_stay_last(seen: Watched) -> None:
    page = seen.page
    ranked = names(page)
    assert ranked[:2] == ["big & <b>bold</b>", "gpt-4-0613"]
    dollars = page.get_by_role("button", name="$ per solved").first
    dollars.click()
    assert names(page)[:3] == ["big & <b>bold</b>", "base", "SFT+RL"]  # the dearest first
    dollars.click()
    assert names(page)[:3] == ["SFT+RL", "base", "big & <b>bold</b>"]
    heads = page.locator("table.sortable").first.locator("thead th")
    assert [head.get_attribute("aria-sort") for head in heads.all()].count("ascending") == 1
    page.get_by_role("button", name="Agent").first.click()
    assert names(page) == sorted(ranked, key=str.lower)


def test_enter_sorts_like_a_click(seen: Watched) -> None:
    page = seen.page
    page.get_by_role("button", name="Tries").first.focus()
    page.keyboard.press("Enter")
    tries = page.locator("table.sortable").first.locator("tbody tr td:nth-of-type(10)").all_inner_texts()
    assert tries == sorted(tries, reverse=True)


def test_a_sort_arrow_stands_beside_its_title(chromium: Browser, page_url: str) -> None:
    """An arrow alone on a line would make the button a line higher than its text."""
    with watched(chromium, width=1200) as seen:
        seen.page.goto(page_url)
        below = seen.page.eval_on_selector_all(
            "th button",
            """buttons => buttons.map(button => {
                const text = document.createRange();
                text.selectNodeContents(button);
                return button.getBoundingClientRect().bottom - text.getBoundingClientRect().bottom;
            })""",
        )
        assert len(below) == 26
        assert max(below) < 5  # px; a line has 18
        assert seen.is_quiet()


def test_filters_hide_other_rows(seen: Watched) -> None:
    page = seen.page
    shown = page.locator("#shown")
    page.get_by_label("control").uncheck()
    expect(shown).to_have_text("8 rows")
    page.get_by_label("Environment").select_option("sql-desk")
    expect(shown).to_have_text("4 rows")
    expect(page.locator("section[data-environment=code-editor]")).to_be_hidden()
    page.get_by_label("Agent", exact=True).fill("gpt-4")
    expect(shown).to_have_text("1 rows")
    page.get_by_label("recorded outputs").uncheck()
    expect(shown).to_have_text("0 rows")


def test_names_are_text(seen: Watched) -> None:
    assert seen.page.locator("b").count() == 0
    assert "big & <b>bold</b>" in seen.page.inner_text("main")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_no_serious_violation(
    chromium: Browser, page_url: str, tmp_path: Path, width: int, dark: bool
) -> None:
    with watched(chromium, dark=dark, width=width) as seen:
        seen.page.goto(page_url)
        for summary in seen.page.locator("summary").all():
            summary.click()
        assert seen.violations() == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        assert seen.screenshot(tmp_path, "board").stat().st_size > 0
        assert seen.is_quiet()


def test_print_shows_all_rows_and_no_controls(seen: Watched) -> None:
    seen.page.emulate_media(media="print")
    expect(seen.page.locator("#filters")).to_be_hidden()
    assert len(names(seen.page)) == 6
