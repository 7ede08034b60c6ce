"""The viewer in a real browser, with hostile text."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_runs
from browser import Watched, browser, watched
from playwright.sync_api import Browser, Locator, Page, expect
from sample_runs import HOSTILE, played, turn

from envkit.errors import MissingExtraError, ModelError, StoreError
from envkit.measure.viewer.episode_index import EpisodeIndex
from envkit.measure.viewer.server import make_app
from envkit.measure.viewer.token_text import token_decoder
from envkit.measure.visible_text import visible
from envkit.runtime.store import RunFolder, trajectory_to_json
from envkit.types import Outcome, Tokens

TASK = "toolz/itertoolz.total/operator-b1110a"
FENCED_DIFF = "The sign.\n```diff\n@@ -4 +4 @@\n-        found -= number\n+        found += number\n```\nrun"
SEARCH = "<<<<<<< SEARCH\n        found -= number\n=======\n        found += number\n>>>>>>> REPLACE\n"
UNIFIED = "--- a/x.py\n+++ b/x.py\n@@ -4 +4 @@\n-        found -= number\n+        found += number\n\nDone."
#: Characters of several bytes, which a byte-level tokenizer takes apart.
SPOKEN = "The caf\u00e9 \N{GRINNING FACE} is \u65e5\u672c\u8a9e.\n```python\nreturn found\n```"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer that knows few words, so that most tokens are small."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sample_runs.SEEN, sample_runs.ANSWER], trainer)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sampled(model: Path, text: str) -> Tokens:
    """The tokens of a text and the likely end of the turn; of the text, one in five is unlikely."""
    tokenizer = token_decoder(str(model))._tokenizer
    ids, end = tokenizer.encode(text).ids, tokenizer.token_to_id("<|end|>")
    logprobs = (*(-3.5 if i % 5 == 4 else -0.01 for i in range(len(ids))), -0.01)
    return Tokens(tuple(range(9)), (*ids, end), logprobs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> RunFolder:
    """Three agents and a training run: solved, failed, void, hostile, long, and one that was played again."""
    again = played("played/again", Outcome.VOID, [], evidence="the sandbox broke")
    base = [
        played(
            TASK, Outcome.FAILED, [turn(text="I do not know.")], evidence="total([1]) gave -1, expected 1"
        ),
        again,
        replace(again, outcome=Outcome.FAILED, info={"verdict": "TAMPERED", "evidence": {}}),
        played(
            f"hostile/{HOSTILE}", Outcome.FAILED, [turn(HOSTILE, HOSTILE)], agent=HOSTILE, evidence=HOSTILE
        ),
    ]
    steps = [
        turn(text=FENCED_DIFF),
        turn(UNIFIED, SEARCH, stop="length"),
        turn("\n".join(f"line {i}" for i in range(40)), SPOKEN, 0.5, sampled(model, SPOKEN)),
        turn(reward=0.5, tokens=sampled(model, sample_runs.ANSWER)),
    ]
    other = Tokens((1, 2), (5, 6, 7), (-0.1, -0.2, -0.3))
    trained = [played(TASK, turns=steps, agent="trained"), played("ids/only", turns=[turn(tokens=other)])]
    training = [played(f"train/task-{i}", step=i, group=0, row=i % 2, agent="policy") for i in range(30)]
    journals = {
        "eval-base": base,
        "eval-SFT+RL": trained,
        "eval-oracle": [played(TASK)],
        "episodes": training,
    }
    return sample_runs.make(tmp_path_factory.mktemp("runs"), journals, str(model))


@contextmanager
def view(*arguments: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Run ``envkit view`` with these arguments; yields the process and the printed address."""
    command = [sys.executable, "-m", "envkit.cli", "view", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield process, json.loads(line)["url"]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(run: RunFolder) -> Iterator[str]:
    with view(str(run.path)) as (_, address):
        yield address


@pytest.fixture
def seen(chromium: Browser) -> Iterator[Watched]:
    """A page that must end without console errors or foreign requests."""
    with watched(chromium) as made:
        yield made
        assert made.complaints == []
        assert made.outside == []


def go(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("html[data-ready]")).to_be_attached()


def turns(page: Page) -> Locator:
    return page.locator(".turn")


def test_the_list_shows_all_and_filters_change_the_count(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, url)
    count, rows = page.locator("#count"), page.locator("#list [role=option]")
    expect(count).to_have_text("37 episodes, 33 solved")
    expect(rows.first).to_have_attribute("aria-setsize", "37")
    for name, value, wanted in (
        ("agent_or_phase", "base", "4 of 37 episodes, 0 solved"),
        ("outcome", "void", "1 of 37 episodes, 0 solved"),
        ("verdict", "TAMPERED", "1 of 37 episodes, 0 solved"),
    ):
        page.locator(f"select[name={name}]").select_option(value)
        expect(count).to_have_text(wanted)
        page.locator("#reset").click()
        expect(count).to_have_text("37 episodes, 33 solved")
    for field, value, wanted in (
        ("task", "TRAIN task-2", "11 of 37 episodes, 11 solved"),
        ("stepTo", "4", "4 of 37 episodes, 4 solved"),
        ("turnsFrom", "2", "1 of 37 episodes, 1 solved"),
        ("turnsTo", "0", "2 of 37 episodes, 0 solved"),
        ("task", "nothing like it", "0 of 37 episodes, 0 solved"),
    ):
        page.locator(f"[name={field}]").fill(value)
        expect(count).to_have_text(wanted)
        page.locator("#reset").click()
    expect(rows.first).to_contain_text("train/task-0")
    page.locator("select[name=sort]").select_option("turns")
    expect(rows.first).to_contain_text(TASK)
    expect(rows.first).to_contain_text("4 turns")
    table = page.locator("#reader table")
    expect(table.locator("tbody tr", has_text="SFT+RL").locator("td")).to_have_text(["2", "2", "0", "2"])


def test_keys_move_open_search_and_go_back(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, url)
    cursor = page.locator(".row.cursor")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("ArrowDown")
    expect(cursor).to_contain_text("train/task-2")
    expect(page.locator("#list")).to_have_attribute("aria-activedescendant", "row-2")
    page.keyboard.press("End")
    expect(cursor).to_have_attribute("aria-posinset", "37")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("article h2")).to_be_focused()
    expect(page.locator("article h2")).to_have_text("train/task-0")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("jk")  # in a field they are letters
    expect(page.locator("#search")).to_have_value("jk")
    page.locator("#search").fill("again")
    page.keyboard.press("Escape")
    expect(page.locator("#list")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("article h2")).to_have_text("played/again")
    expect(page.locator("article")).to_contain_text("Played again later; line 3 counts.")
    expect(page.locator("article .alarm pre")).to_have_text("the sandbox broke")
    page.keyboard.press("Escape")
    expect(page.locator("#list")).to_be_focused()
    page.go_back()
    expect(page.locator("article h2")).to_have_text("train/task-0")


def test_hostile_text_stays_text_to_the_letter(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, f"{url}#eval-base/4")
    shown = visible(HOSTILE)
    assert "\u202e" not in shown
    expect(page.locator("article h2")).to_be_visible()
    assert page.locator("article h2").text_content() == f"hostile/{shown}"
    assert page.locator(".observation pre").text_content() == shown
    assert page.locator(".action pre").text_content() == shown
    assert page.locator("td.v").text_content() == shown
    assert page.title() == f"hostile/{shown}".replace("\n", " ")
    expect(page.locator("#list [aria-selected=true] .task")).to_have_text(f"hostile/{shown}")
    assert page.evaluate("window.hacked") is None
    assert page.locator("article :is(script, img, svg, a, b)").count() == 0
    assert not set("\u202e\u2066\u200b\x00\x1b") & set(page.content())


def test_content_security_policy_blocks_injected_scripts(chromium: Browser, url: str) -> None:
    with watched(chromium) as seen:
        go(seen.page, url)
        seen.page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const image = document.createElement("img");
            image.src = "http://203.0.113.1/leak";
            document.body.append(script, image);
            const handler = "<b style='color: red' onclick='window.hacked = 2'>x</b>";
            document.body.insertAdjacentHTML("beforeend", handler);
            document.body.lastChild.click();
        }""")
        assert seen.page.evaluate("window.hacked") is None
        assert seen.outside == []
        assert len([said for said in seen.complaints if "Content Security Policy" in said]) >= 4


def test_turns_are_shown_as_recorded(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, f"{url}#eval-SFT%2BRL/1")
    expect(turns(page)).to_have_count(4)
    expect(turns(page).nth(0).locator("details")).to_have_attribute("open", "")
    expect(turns(page).nth(1).locator("details")).not_to_have_attribute("open", "")
    first, second = turns(page).nth(0).locator(".action pre"), turns(page).nth(1).locator(".action pre")
    assert turns(page).nth(0).locator(".observation pre").text_content() == sample_runs.SEEN
    assert first.text_content() == FENCED_DIFF
    expect(first.locator("del")).to_have_text("-        found -= number\n")
    expect(first.locator("ins")).to_have_text("+        found += number\n")
    assert second.text_content() == SEARCH
    assert second.locator("del").text_content() == "        found -= number\n"
    assert second.locator("ins").text_content() == "        found += number\n"
    seen_then = turns(page).nth(1).locator(".observation pre")
    assert seen_then.text_content() == UNIFIED
    assert (seen_then.locator("ins").count(), seen_then.locator("del").count()) == (1, 1)
    expect(turns(page).nth(1)).to_contain_text("ended by: length")
    expect(page.locator("article")).to_contain_text("reward 1")
    expect(page.locator("td.v")).to_have_text("all 16 calls answered as expected")
    page.emulate_media(media="print")
    expect(page.locator(".finder")).not_to_be_visible()
    expect(page.locator(".top")).not_to_be_visible()
    expect(first).to_be_visible()


def test_changes_view_compares_the_two_code_blocks(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, f"{url}#eval-SFT%2BRL/1")
    last = turns(page).nth(3)
    expect(turns(page).nth(0).locator("[data-view=changes]")).to_have_count(0)  # a diff already
    expect(turns(page).nth(2).locator("[data-view=changes]")).to_have_count(0)  # no block was shown
    last.locator("[data-view=changes]").click()
    expect(last.locator("del")).to_have_text("        found -= number\n")
    expect(last.locator("ins")).to_have_text("        found += number\n")
    kept = last.locator(".action .l.plain").all_text_contents()
    assert "".join(kept) == sample_runs.CODE.replace("        found {} number\n", "")


def test_tokens_are_coloured_by_probability(seen: Watched, url: str, model: Path) -> None:
    page = seen.page
    go(page, f"{url}#eval-SFT%2BRL/1")
    tokens = sampled(model, SPOKEN)
    box = turns(page).nth(2).locator(".tokens")
    spans = box.locator("[role=option]")
    expect(spans).to_have_count(len(tokens.completion_ids))
    assert box.text_content() == f"{SPOKEN}<|end|>"
    expect(box.locator(".p0")).to_have_count(sum(p == -0.01 for p in tokens.logprobs))
    expect(box.locator(".p4")).to_have_count(sum(p == -3.5 for p in tokens.logprobs))
    expect(box.locator(".special")).to_have_text(["<|end|>"])
    assert box.locator(".part").count() >= 3 + 3 * 2  # bytes of the face, and of three characters
    said = f'"<|end|>", id {tokens.completion_ids[-1]}, probability 0.99, log-probability \u22120.01'
    expect(spans.last).to_have_attribute("title", said)
    expect(spans.last).to_have_attribute("aria-label", said)
    box.focus()
    page.keyboard.press("End")
    expect(spans.last).to_have_attribute("aria-selected", "true")
    expect(turns(page).nth(2).locator(".readout")).to_have_text(
        f"Token {len(tokens.completion_ids)} of {len(tokens.completion_ids)}: {said}"
    )
    expect(page.locator(".legend")).to_have_count(1)
    turns(page).nth(2).locator("[data-view=text]").click()
    assert turns(page).nth(2).locator(".action pre").text_content() == SPOKEN
    expect(page.locator(".tokens")).to_have_count(0)  # the choice is one for all turns


def test_undecodable_tokens_show_ids_and_the_reason(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, f"{url}#eval-SFT%2BRL/2")
    assert page.locator(".action pre").text_content() == sample_runs.ANSWER
    page.locator("[data-view=tokens]").click()
    expect(page.locator(".tokens [role=option]")).to_have_text(["5 ", "6 ", "7 "])
    expect(page.locator(".note")).to_contain_text("does not decode these ids to the recorded text")


def test_the_same_task_stands_side_by_side(seen: Watched, url: str) -> None:
    page = seen.page
    go(page, f"{url}#eval-base/1")
    expect(page.locator(".others a")).to_have_text(["oracle", "SFT+RL"])
    page.locator(".others a", has_text="SFT+RL").click()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article .line strong")).to_have_text(["base", "SFT+RL"])
    left, right = (page.locator("article").nth(i).bounding_box() for i in (0, 1))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    go(page, page.url)
    expect(page.locator("article")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("article")).to_have_count(1)
    assert page.url.endswith("#eval-base/1")


def test_unknown_episode_in_the_address_shows_an_error(seen: Watched, url: str) -> None:
    go(seen.page, f"{url}#eval-base/99")
    expect(seen.page.locator("[role=alert]")).to_contain_text("This run has no episode eval-base/99.")
    expect(seen.page.locator("#count")).to_have_text("37 episodes, 33 solved")


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (390, True)], ids=["light", "dark", "narrow"]
)
def test_axe_finds_no_serious_violation(
    chromium: Browser, url: str, tmp_path: Path, width: int, dark: bool
) -> None:
    with watched(chromium, dark=dark, width=width) as seen:
        page = seen.page
        go(page, url)
        assert seen.violations() == []
        page.locator("[name=task]").fill("nothing like it")
        assert seen.violations() == []
        for name in ("eval-base/2", "eval-base/4", "eval-SFT%2BRL/1", "eval-base/1&eval-SFT%2BRL/1"):
            page.evaluate("name => { location.hash = name }", name)
            expect(page.locator("article")).to_have_count(1 + name.count("&"))
            for view in ("tokens", "text", "changes"):
                if (button := page.locator(f"[data-view={view}]").last).count():
                    button.click()
                assert seen.violations() == [], (name, view)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        assert seen.screenshot(tmp_path, "last").stat().st_size > 0
        assert seen.is_quiet()


def test_ten_thousand_episodes(seen: Watched, tmp_path: Path) -> None:
    run = sample_runs.large(tmp_path, 10_000)
    with view(str(run.path)) as (_, address):
        page = seen.page
        go(page, address)
        expect(page.locator("#count")).to_contain_text("10,000 episodes")
        rows = page.locator(".row")
        assert 5 < rows.count() < 60
        page.locator("#list").focus()
        page.keyboard.press("End")
        expect(page.locator(".row.cursor")).to_have_attribute("aria-posinset", "10000")
        assert rows.count() < 60
        page.evaluate("document.getElementById('list').scrollTop = 56 * 5000")
        expect(page.locator("#row-5003")).to_be_visible()
        assert rows.count() < 60
        assert page.locator("*").count() < 400
        page.locator("[name=task]").fill("function_624/")
        expect(page.locator("#count")).to_contain_text("16 of 10,000 episodes")


def test_reload_shows_new_episodes_of_a_running_run(seen: Watched, tmp_path: Path) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one")]})
    path = run.path / "eval-base.jsonl"
    with view(str(run.path)) as (_, address):
        page = seen.page
        go(page, f"{address}#eval-base/1")
        expect(page.locator("#count")).to_have_text("1 episode, 1 solved")
        whole = json.dumps({"schema": 1, **trajectory_to_json(played("two", Outcome.FAILED))})
        with path.open("a") as file:
            file.write(whole[:100])
        page.locator("#reload").click()
        expect(page.locator("#count")).to_have_text("1 episode, 1 solved")
        with path.open("a") as file:
            file.write(f"{whole[100:]}\n")
        with run.journal("eval-late") as journal:
            journal.append(trajectory_to_json(played("three", Outcome.FAILED)))
        page.locator("#reload").click()
        expect(page.locator("#count")).to_have_text("3 episodes, 1 solved")
        expect(page.locator("article h2")).to_have_text("one")
        page.locator("select[name=agent_or_phase]").select_option("late")
        expect(page.locator(".row")).to_contain_text(["three"])


def test_a_run_of_several_environments(seen: Watched, tmp_path: Path, model: Path) -> None:
    run = sample_runs.make(tmp_path, {})
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(
        json.dumps({**manifest, "models": {"absent": "", str(model): ""}})
    )
    steps = [turn(tokens=sampled(model, sample_runs.ANSWER))]
    for name, task in (("code-editor", "one"), ("sql-desk", "two")):
        part = run.part(name, {"kind": "bench-part"})
        (part.path / "tasks.jsonl").write_text('{"format": "no journal"}\n')
        with part.journal("eval-base") as journal:
            journal.append(trajectory_to_json(replace(played(task, turns=steps), env=name)))
    with view(str(run.path)) as (_, address):
        page = seen.page
        go(page, f"{address}#sql-desk%2Feval-base/1")
        expect(page.locator("article h2")).to_have_text("two")
        assert page.locator(".tokens").text_content() == f"{sample_runs.ANSWER}<|end|>"
        expect(page.locator("#count")).to_have_text("2 episodes, 2 solved")
        page.locator("select[name=env]").select_option("code-editor")
        expect(page.locator(".row .task")).to_have_text(["one"])


def test_a_run_without_episodes_and_a_server_that_is_gone(chromium: Browser, tmp_path: Path) -> None:
    run = sample_runs.make(tmp_path, {})
    with watched(chromium) as seen:
        with view(str(run.path)) as (_, address):
            go(seen.page, address)
            expect(seen.page.locator("#count")).to_have_text("No episode is recorded yet.")
            assert seen.is_quiet()
            assert seen.violations() == []
        seen.page.locator("#reload").click()
        expect(seen.page.locator("[role=alert]")).to_contain_text("start envkit view again")


def test_browser_checks_catch_a_bad_page(chromium: Browser) -> None:
    with watched(chromium) as seen:
        seen.page.set_content(
            "<html><body><img src='http://203.0.113.1/x.png'><img src='http://example.com/y.png'>"
            "<script>console.error('said'); setTimeout(() => { throw new Error('thrown') })</script>"
        )
        seen.page.wait_for_timeout(100)
        assert seen.outside == ["http://203.0.113.1/x.png", "http://example.com/y.png"]
        assert "said" in seen.complaints
        assert "thrown" in seen.complaints
        assert {line.split()[0] for line in seen.violations()} >= {"image-alt", "html-has-lang"}


# Without a browser.


def port_of(url: str) -> str:
    return url.split("/")[2].rpartition(":")[2]


def answer(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    host, token = url.removeprefix("http://").rstrip("/").split("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.putrequest(method, f"/{token}{path}", skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/api/run", "/api/episodes/eval-base/1", "/viewer.js"])
def test_requests_for_other_host_names_are_refused(url: str, path: str) -> None:
    port = port_of(url)
    for host in ("127.0.0.1", f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST"):
        status, headers, _ = answer(url, path, Host=host)
        assert status == 200
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "//" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "",
        "localhost.",
        "[::1]",
    ):
        status, headers, body = answer(url, path, Host=host)
        assert status == 400, host
        assert b"eval-base" not in body
        assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["", "api/run", "api/episodes/eval-base/1", "viewer.js", "//", "%00/"])
@pytest.mark.parametrize("change", [lambda token: "", lambda token: token[:-1], lambda token: f"{token}x"])
def test_requests_without_the_token_get_403(url: str, path: str, change: Callable[[str], str]) -> None:
    base, token = url.rstrip("/").rsplit("/", 1)
    wrong = change(token)
    status, headers, body = answer(f"{base}/{wrong or 'api'}/", f"/{path}")
    assert status == 403
    assert b"eval-base" not in body
    assert b"open the whole address that envkit view printed" in body
    assert "default-src 'none'" in headers["content-security-policy"]


def test_every_server_has_its_own_token(run: RunFolder, url: str) -> None:
    with view(str(run.path)) as (_, other):
        tokens = {address.rstrip("/").rsplit("/", 1)[1] for address in (url, other)}
    assert len(tokens) == 2
    assert all(len(token) >= 40 for token in tokens)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_methods_other_than_get_are_refused(url: str, method: str) -> None:
    assert answer(url, "/api/run", method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/api/episodes/metrics/1",
        "/api/episodes/eval-base/0",
        "/api/episodes/eval-base/99",
        "/api/episodes/..%2Feval-base/1",
        "/api/episodes/%2Fetc%2Fpasswd/1",
        "/manifest.json",
        "/viewer.py",
        "/../viewer.py",
    ],
)
def test_paths_outside_the_index_give_404(url: str, path: str) -> None:
    assert answer(url, path)[0] == 404


def test_it_listens_on_loopback_and_ends_cleanly_on_ctrl_c(run: RunFolder) -> None:
    with view(str(run.path)) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert answer(url, "/")[0] == 200
        port = int(port_of(url))
        hex_ports = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert {place for place in hex_ports if place.endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert (out, err) == ("", "")


def refused(*arguments: str) -> str:
    command = [sys.executable, "-m", "envkit.cli", "view", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    return done.stderr


def test_bad_input_gives_one_line_and_exit_2(run: RunFolder, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a run folder" in refused(str(tmp_path))
    assert "is not a run folder" in refused(str(tmp_path / "missing"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused(
            str(run.path), "--port", str(port)
        )
    corrupt = sample_runs.make(tmp_path, {"eval-base": [played("one")]})
    with (corrupt.path / "eval-base.jsonl").open("a") as file:
        file.write("{torn\n")
    assert "eval-base.jsonl:2: not JSON" in refused(str(corrupt.path))


def test_open_hides_the_token_from_other_users(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user can read the command line of a browser, so it names a file that only its owner can read."""
    script, log = tmp_path / "browser", tmp_path / "log"
    script.write_text(
        f'#!/bin/sh\n{{ echo "$@"; stat -c %a "${{1#file://}}"; cat "${{1#file://}}"; }} > {log}\n'
    )
    script.chmod(0o700)
    os.mkfifo(log)  # reading it waits for the browser
    monkeypatch.setenv("BROWSER", f"{script} %s")
    with view(str(run.path), "--open") as (process, url):
        command, mode, page = log.read_text().split("\n", 2)
        file = Path(command.removeprefix("file://"))
        assert url.split("/")[3] not in command
        assert (mode, file.parent.stat().st_mode & 0o777) == ("600", 0o700)
        assert f"url={url}" in page
        assert answer(url, "/")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert not file.parent.exists()


def test_an_absent_extra_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingExtraError, match=r"pip install --editable '\.\[serve\]'"):
        make_app(run, "token")


def test_the_index_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one"), played("two", row=1)]})
    episodes = EpisodeIndex(run)
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    with run.journal("eval-base") as journal:
        journal.append(trajectory_to_json(played("three")))
    assert [entry.task for entry in episodes.refresh()] == ["one", "two", "three"]
    assert len([line for line in parsed if b'"steps"' in line]) == 1
    found = episodes.load("eval-base", 3)
    assert found is not None
    assert found[1] == played("three")
    assert episodes.load("eval-base", 4) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"outcome": "won"}, "not a trajectory"),
        ({"key": {"task": "x"}}, "not a trajectory"),
        ({"info": []}, "not a trajectory"),
        ({"steps": [{"observation": "", "turn": None, "reward": 0}]}, "not a trajectory"),
        (
            {"steps": [{**trajectory_to_json(played("x"))["steps"][0], "reward": 1e999}]},
            "expected a finite number",
        ),
    ],
)
def test_broken_record_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one")]})
    record = {"schema": 1, **trajectory_to_json(played("two")), **change}
    with (run.path / "eval-base.jsonl").open("a") as file:
        file.write(f"{json.dumps(record)}\n")
    with pytest.raises(StoreError, match=f"eval-base.jsonl:2: .*{said}"):
        EpisodeIndex(run)


def test_a_fifo_or_a_device_named_like_a_journal_is_skipped(tmp_path: Path) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one")]})
    os.mkfifo(run.path / "eval-pipe.jsonl")
    (run.path / "eval-zero.jsonl").symlink_to("/dev/zero")
    read: list[str] = []
    reader = threading.Thread(
        target=lambda: read.extend(entry.task for entry in EpisodeIndex(run).refresh()), daemon=True
    )
    reader.start()
    reader.join(timeout=60)
    assert read == ["one"]


def test_endless_line_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one")]})
    with (run.path / "eval-huge.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StoreError, match=r"eval-huge.jsonl:1: the line is longer than 64 MiB"):
        EpisodeIndex(run)


def test_replaced_journal_is_indexed_again(tmp_path: Path) -> None:
    run = sample_runs.make(tmp_path, {"eval-base": [played("one"), played("two")]})
    episodes = EpisodeIndex(run)
    path = run.path / "eval-base.jsonl"
    path.rename(path.with_suffix(".old"))
    with run.journal("eval-base") as journal:
        journal.append(trajectory_to_json(played("other")))
    with pytest.raises(StoreError, match="the file has changed"):
        episodes.load("eval-base", 1)
    assert [entry.task for entry in episodes.refresh()] == ["other"]


def test_decoded_pieces_join_to_the_text_or_are_none(model: Path) -> None:
    decoder = token_decoder(str(model))
    for text in (SPOKEN, HOSTILE.replace("\ud800", ""), "\N{REPLACEMENT CHARACTER}" * 3 + "x", ""):
        ids = decoder._tokenizer.encode(text).ids
        pieces = decoder.decode(ids, text)
        assert pieces is not None
        assert len(pieces) == len(ids)
        assert "".join(piece.text for piece in pieces) == text
        assert decoder.decode(ids, f"{text}!") is None
    half = decoder._tokenizer.encode("\N{GRINNING FACE}").ids[:2]
    assert decoder.decode(half, "\N{REPLACEMENT CHARACTER}") is not None
    assert decoder.decode([2**40], "") is None


@pytest.mark.parametrize("name", ["no-such-model", "owner/name", "..", "a\0b", "", "x" * 5000])
def test_missing_tokenizer_is_not_fetched(name: str) -> None:
    with pytest.raises(ModelError, match="is not on this machine"):
        token_decoder(name)


def test_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not a tokenizer"):
        token_decoder(str(tmp_path))
