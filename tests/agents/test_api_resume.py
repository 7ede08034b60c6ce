"""The API agent's journal: a resumed run repeats no answered request."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from api_playing import PRICE, TOOLS, Playing, begin, heard, key, play_three, turn
from api_server import Api, Body, Say, call, completion
from starlette.responses import Response

from envkit.agents.call_journal import RecordedCalls
from envkit.errors import AgentError, StoreError


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_recorded_answers_are_not_requested_again(
    serve: Callable[[Say], Api], playing: Playing, tools: Sequence[Any]
) -> None:
    answers = itertools.count()
    api = serve(
        lambda body, n: completion(
            f"t{next(answers)}", tool_calls=[call("guess_number", {"number": n}, n)], signature=str(n)
        )
    )
    with playing(api.url, tools=tools) as agent:
        first = play_three(agent)
        spent = playing.spent_usd
    with playing(api.url, tools=tools) as agent:
        assert playing.spent_usd == pytest.approx(spent), "what was paid is spent"
        assert play_three(agent) == first
        assert playing.spent_usd == pytest.approx(spent)
    assert len(api.asked) == 9
    assert len(playing.records) == 18


def test_interrupted_call_is_repeated_and_marked(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"t{n}"))
    with playing(api.url) as agent:
        play_three(agent)
    records = playing.records
    # As killed: one answer never arrived.
    lost = next(n for n, record in enumerate(records) if record.get("answered", {}).get("turn") == 2)
    which = records.pop(lost)["answered"]
    playing.path.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = next(record for record in records if record.get("asked") == which)
    with playing(api.url) as agent:
        spent = 8 * PRICE.cost_usd(20, 3) + PRICE.cost_usd(asked["most"]["prompt_tokens"], 50)
        assert playing.spent_usd == pytest.approx(spent), "it may have been paid for"
        said = play_three(agent)
    assert said[which["key"]["row"]][2] == "t9"
    assert len(api.asked) == 10
    again = playing.records[len(records) :]
    assert [record.get("asked", record.get("answered")) for record in again] == [which | {"attempt": 1}] * 2
    assert [record["repeated"] for record in again] == [True, True]
    assert not any("repeated" in record for record in records)
    with playing(api.url) as agent:
        assert play_three(agent) == said
    assert len(api.asked) == 10


#: Three conversations of three turns, in a process of its own, which is killed in the middle.
CHILD = """
import sys
sys.path[:0] = [sys.argv[1] + "/servers", sys.argv[1] + "/environments", sys.argv[1]]
from pathlib import Path
from api_playing import Playing, play_three
with Playing(Path(sys.argv[3]))(sys.argv[2], concurrency=2) as agent:
    play_three(agent)
"""


def test_killed_run_resumes_without_repeating_answered_calls(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    dead = threading.Event()

    def say(body: Body, number: int) -> Response:
        if number == 5 and not dead.is_set():
            child.kill()
            child.wait()
            dead.set()
        return completion(f"t{number}")

    api = serve(say)
    folder = str(Path(__file__).parents[1] / "helpers")
    child = subprocess.Popen([sys.executable, "-c", CHILD, folder, api.url, str(playing.path)])
    assert child.wait() == -signal.SIGKILL
    before, asked = playing.records, list(api.asked)
    answered = [record["answered"] for record in before if "answered" in record]
    unanswered = [
        record["asked"] for record in before if "asked" in record and record["asked"] not in answered
    ]
    assert len(answered) >= 4
    assert len(unanswered) >= 1
    with playing(api.url) as agent:
        said = play_three(agent)
    now = playing.records[len(before) :]
    again = [record["asked"] for record in now if "asked" in record]
    assert len(api.asked) - len(asked) == len(again) == 9 - len(answered), (
        "what was answered is not asked again"
    )
    repeated = [record["asked"] for record in now if "asked" in record and record.get("repeated")]
    assert sorted(repeated, key=str) == sorted((record | {"attempt": 1} for record in unanswered), key=str)
    assert [len(texts) for texts in said] == [3, 3, 3]


def test_changed_request_of_the_same_turn_is_sent(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"t{n}"))
    with playing(api.url) as agent:
        turn(agent, "one")
    for changes in ({}, {"most": 51}, {"model": "other"}):
        with playing(api.url, **changes) as agent:
            turn(agent, "two")
    assert len(api.asked) == 4
    assert [record["asked"]["attempt"] for record in playing.records if "asked" in record] == [0, 1, 2, 3]


def test_failed_call_is_repeated_and_its_cost_is_kept(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion() if n == 3 else Response("garbage"))
    with playing(api.url) as agent:
        assert isinstance(heard(agent), AgentError)
        spent = playing.spent_usd
    with playing(api.url) as agent:
        assert playing.spent_usd == pytest.approx(spent)
        assert turn(agent).text == "hello"
    assert not any("repeated" in record for record in playing.records), "it was answered"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"asked": 3, "digest": ""},
        {"asked": {"key": {}, "turn": 0, "attempt": 0}, "digest": ""},
        {"answered": {"key": asdict(key()), "turn": 0, "attempt": 0}, "digest": "d", "usage": {}},
    ],
)
def test_a_journal_of_something_else_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"record 1 of the calls is not of a call"):
        RecordedCalls([record])


def test_pending_answers_are_journaled_when_the_run_ends(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def slow() -> Response:
        asked.set()
        while not go_on.is_set():
            await asyncio.sleep(0.005)
        return completion("kept")

    api = serve(lambda body, n: slow())

    def interrupted() -> None:
        with playing(api.url, concurrency=1) as agent:
            for row in range(3):
                agent.submit(begin(agent, row), "seen")
            asked.wait()
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert playing.kinds() == ["asked", "answered"]
    assert playing.records[1]["text"] == "kept"
