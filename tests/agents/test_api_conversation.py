"""The API agent's requests, its parsing of answers, and its concurrency."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable

import pytest
from api_playing import KEY, Playing, begin, key, turn
from api_server import Api, Say, completion, refusal
from starlette.responses import Response

from envkit.agents.scripted import noop
from envkit.errors import ContractError


def test_a_conversation_in_plain_text(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"action {n}"))
    with playing(api.url, request={"reasoning_effort": "low"}) as agent:
        session = begin(agent)
        first, second = turn(agent, "one é 🙂", session), turn(agent, "two", session)
        assert agent.collect() == []
    assert (first.text, first.stop, first.tokens) == ("action 0", "stop", None)
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (20, 3)
    assert second.text == "action 1"
    assert api.asked[1] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Play."},
            {"role": "user", "content": "one é 🙂"},
            {"role": "assistant", "content": "action 0"},
            {"role": "user", "content": "two"},
        ],
        "max_completion_tokens": 50,
        "temperature": 0.5,
        "reasoning_effort": "low",
    }
    assert api.headers[0]["authorization"] == f"Bearer {KEY}"


def test_card_sets_token_limit_field_and_temperature(
    serve: Callable[[Say], Api], playing: Playing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    api = serve(lambda body, n: completion())
    with playing(api.url, key_env="", token_limit="max_tokens", temperature=False) as agent:
        turn(agent)
    assert api.asked[0].keys() == {"model", "messages", "max_tokens"}
    assert KEY not in str(api.headers)
    assert "of-mine" not in str(api.headers), "another provider need not know"


@pytest.mark.parametrize(
    ("answer", "text", "stop"),
    [
        (lambda: completion("half an acti", finish="length"), "half an acti", "length"),
        (lambda: completion("", finish="length"), "", "length"),
        (lambda: completion(None), "", "stop"),
        (lambda: completion(None, refusal="I will not."), "I will not.", "stop"),
        (lambda: completion("Something filt", finish="content_filter"), "", "stop"),
        (lambda: completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", "stop"),
        (lambda: completion("lone \ud800 half"), "lone ? half", "stop"),
        (lambda: refusal(400, "flagged", "content_filter"), "", "stop"),
    ],
)
def test_truncated_filtered_and_empty_answers_are_turns(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[], Response], text: str, stop: str
) -> None:
    api = serve(lambda body, n: completion("next") if n else answer())
    with playing(api.url) as agent:
        session = begin(agent)
        found = turn(agent, "seen", session)
        assert (found.text, found.stop) == (text, stop)
        assert turn(agent, "again", session).text == "next"
    assert api.asked[1]["messages"][2]["content"], "providers refuse empty texts"
    assert len(api.asked) == 2


def test_requests_run_concurrently_and_answers_arrive_in_order_of_completion(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: slow() if "slow" in str(body) else quick())
    seen = threading.Event()
    held: list[bool] = []

    async def slow() -> Response:
        held.append(True)
        await until(seen.is_set)
        return completion("slow")

    async def quick() -> Response:
        await until(lambda: len(held) == 2)  # so that three are under way, whoever came first
        return completion("quick")

    async def until(done: Callable[[], bool]) -> None:
        while not done():
            await asyncio.sleep(0.005)

    with playing(api.url, concurrency=3) as agent:
        sessions = [begin(agent, row) for row in range(4)]
        for number, session in enumerate(sessions):
            agent.submit(session, "slow" if number < 2 else "quick")
        found = [agent.collect()]
        while sum(map(len, found)) < 2:
            found.append(agent.collect())
        assert {id(session) for batch in found for session, _ in batch} == set(map(id, sessions[2:]))
        seen.set()
        rest = list(itertools.chain.from_iterable(iter(agent.collect, [])))
    assert {id(session) for session, _ in rest} == set(map(id, sessions[:2]))
    assert api.most_at_once == 3


def test_session_of_another_agent_raises_contract_error(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    with playing("http://127.0.0.1:9/v1") as agent, pytest.raises(ContractError, match="another agent"):
        agent.submit(noop().start(key(), "Play."), "seen")
