"""The API agent against a real server: what is sent and read, what fails, what it costs, what is kept."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import USAGE, Api, Body, Say, call, completion, refusal
from guess import Backend, GuessEnv, halve
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from envkit import EpisodeKey, Outcome, Rollouts, Task, Turn, Usage, UsageError, check, tool
from envkit.agents import completions
from envkit.agents.api import ApiAgent
from envkit.agents.budget import Budget, BudgetError
from envkit.agents.calls import Recorded
from envkit.agents.cards import Card
from envkit.agents.endpoint import Backoff, ProviderError, retry_after_s
from envkit.agents.scripted import noop
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.environments.sql_desk.tasks import generate
from envkit.errors import AgentError, ContractError, MissingExtraError, StoreError
from envkit.prices import Price
from envkit.sandbox import SandboxBackend
from envkit.store import Journal, read_lines, trajectory_from_json, trajectory_to_json
from envkit.tools import Call, read, tools_of

KEY = "sk-test-0123456789/abcdef"
QUICK = Backoff(attempts=3, first_s=0.001, most_s=0.01)
PRICE = Price(1.0, 10.0, 0.1)


def key(row: int = 0, task: str = "t") -> EpisodeKey:
    return EpisodeKey(seed=1, step=2, group=3, row=row, task=task)


class Desk(GuessEnv):
    """`GuessEnv` with tools."""

    id = "desk"

    @tool
    def guess_number(self, number: int, why: str = "") -> str:
        """Guess.

        Args:
            number: from 0.
        """
        return super().apply(str(number)).observation

    @tool(ends=True)
    def give_up(self) -> str:
        """End it."""
        return "Bye."

    def apply(self, action: str) -> Any:
        return super(GuessEnv, self).apply(action)

    @check(weight=0)
    def says_why(self) -> bool:
        return True


TOOLS = [each.schema() for each in tools_of(Desk)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", KEY)


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def serve(server: Api) -> Iterator[Callable[[Say], Api]]:
    """Says how the server answers; what never ends, ends with the test."""
    yield server.begin
    server.end()


class Playing:
    """An agent on a server, and its journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budget = Budget()

    @contextmanager
    def __call__(
        self,
        url: str,
        *,
        backoff: Backoff = QUICK,
        budget: Budget | None = None,
        most: int = 50,
        tools: Sequence[Mapping[str, Any]] = (),
        price: Price = PRICE,
        **changes: Any,
    ) -> Iterator[ApiAgent]:
        self.budget = Budget() if budget is None else budget
        fields = {"mode": "tools" if tools else "text", "timeout_s": 60.0, "price": "m", **changes}
        card = Card(**{"name": "card", "model": "m", "base_url": url, "key_env": "TEST_API_KEY", **fields})
        recorded = self.records
        with (
            Journal(self.path) as journal,
            ApiAgent(
                "api",
                card,
                system="Play.",
                temperature=0.5,
                max_completion_tokens=most,
                price=price,
                budget=self.budget,
                journal=journal,
                tools=tools,
                recorded=recorded,
                backoff=backoff,
            ) as agent,
        ):
            yield agent

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.path)

    def kinds(self) -> list[str]:
        """What each record is."""
        return [
            next(word for word in ("asked", "answered", "failed") if word in each) for each in self.records
        ]


@pytest.fixture
def playing(tmp_path: Path) -> Playing:
    return Playing(tmp_path / "calls.jsonl")


def heard(agent: ApiAgent, seen: str = "seen", session: Any = None) -> Turn | AgentError:
    """The answer to one observation."""
    session = session or agent.start(key())
    agent.submit(session, seen)
    ((answered, answer),) = agent.collect()
    assert answered is session
    return answer


def turn(agent: ApiAgent, seen: str = "seen", session: Any = None) -> Turn:
    answer = heard(agent, seen, session)
    assert isinstance(answer, Turn), answer
    return answer


# What is sent, and what is read.


def test_a_conversation_in_plain_text(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"action {n}"))
    with playing(api.url, request={"reasoning_effort": "low"}) as agent:
        session = agent.start(key())
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


def test_a_card_says_how_the_limit_is_called_and_whether_a_temperature_is_sent(
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
def test_odd_endings_are_turns(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[], Response], text: str, stop: str
) -> None:
    api = serve(lambda body, n: completion("next") if n else answer())
    with playing(api.url) as agent:
        session = agent.start(key())
        found = turn(agent, "seen", session)
        assert (found.text, found.stop) == (text, stop)
        assert turn(agent, "again", session).text == "next"
    assert api.asked[1]["messages"][2]["content"], "providers refuse empty texts"
    assert len(api.asked) == 2


def test_requests_run_at_once_and_answers_come_as_they_are_done(
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
        sessions = [agent.start(key(row)) for row in range(4)]
        for number, session in enumerate(sessions):
            agent.submit(session, "slow" if number < 2 else "quick")
        found = [agent.collect()]
        while sum(map(len, found)) < 2:
            found.append(agent.collect())
        assert {id(session) for each in found for session, _ in each} == set(map(id, sessions[2:]))
        seen.set()
        rest = list(itertools.chain.from_iterable(iter(agent.collect, [])))
    assert {id(session) for session, _ in rest} == set(map(id, sessions[:2]))
    assert api.most_at_once == 3


def test_a_session_of_another_agent_is_a_bug(serve: Callable[[Say], Api], playing: Playing) -> None:
    with playing("http://127.0.0.1:9/v1") as agent, pytest.raises(ContractError, match="another agent"):
        agent.submit(noop().start(key()), "seen")


# Tools.


def test_a_conversation_in_tool_calls(serve: Callable[[Say], Api], playing: Playing) -> None:
    opaque = {"reasoning_content": "Hm.", "extra_content": {"google": {"thought_signature": "c2ln"}}}
    calls = [
        call("guess_number", {"number": 4, "why": 'it\'s "4"'}, 0, extra_content={"sig": "x"}),
        call("give_up", "", 1),
    ]
    sent = {"tool_calls": calls, **opaque, "refusal": None, "annotations": []}
    answers = [
        completion(None, finish="tool_calls", **sent),
        completion("Words.", tool_calls=[]),
        completion("x"),
    ]
    api = serve(lambda body, n: answers[n])
    with playing(api.url, tools=TOOLS) as agent:
        session = agent.start(key())
        assert turn(agent, "0..9", session).text == """guess_number(number=4, why='it\\'s "4"')"""
        assert turn(agent, "5..9", session).text == "Words."
        turn(agent, "No call.", session)
    assert api.asked[0]["tools"] == TOOLS
    assert api.asked[2]["messages"][2:] == [
        {
            "role": "assistant",
            "content": None,
            **opaque,
            "tool_calls": [calls[0], call("give_up", "{}", 1)],
        },
        {"role": "tool", "tool_call_id": "id-0", "content": "5..9"},
        {
            "role": "tool",
            "tool_call_id": "id-1",
            "content": "Not carried out: one action at a time. Only the first call was.",
        },
        {"role": "assistant", "content": "Words."},
        {"role": "user", "content": "No call."},
    ]


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"number": 4', 'guess_number({"number": 4)'),
        ("[1]", "guess_number([1])"),
        ("number=4", "guess_number(number=4)"),
        ('{"number": NaN}', "guess_number(number=nan)"),
        ("[" * 100_000, f"guess_number({'[' * 100_000})"),
    ],
)
def test_a_call_that_is_none_is_the_environments_to_refuse(
    serve: Callable[[Say], Api], playing: Playing, arguments: str, action: str
) -> None:
    calls = [call("guess_number", arguments) | {"id": None}]
    api = serve(lambda body, n: completion("x") if n else completion(None, tool_calls=calls, finish="length"))
    with playing(api.url, tools=TOOLS) as agent:
        session = agent.start(key())
        found = turn(agent, "0..9", session)
        assert (found.text, found.stop) == (action, "length")
        turn(agent, "That is no call.", session)
    _, tool_message = api.asked[1]["messages"][-2:]
    (again,) = api.asked[1]["messages"][-2]["tool_calls"]
    assert isinstance(json.loads(again["function"]["arguments"]), dict), "providers refuse anything else"
    assert tool_message == {"role": "tool", "tool_call_id": again["id"], "content": "That is no call."}


HOSTILE = st.text() | st.sampled_from(
    ["```\n", "'''", '"', "\\", "give_up\n", "\u2028\x85\x0c", "🙂", ")", "\0"]
)


@given(st.integers(-(10**30), 10**30), st.lists(HOSTILE).map("".join))
def test_a_native_call_is_the_same_call_in_words(number: int, why: str) -> None:
    sent = {"number": number, "why": why}
    message = {"content": "give_up", "tool_calls": [call("guess_number", sent), call("give_up", {}, 1)]}
    body = {"choices": [{"message": message}]}
    reply = completions.read_reply(json.loads(json.dumps(body)), Usage(1, 1), 0.0, tools=True)
    assert isinstance(reply, completions.Reply)
    found = read(reply.text, tools_of(Desk))
    assert isinstance(found, Call), found
    assert (found.tool.name, found.arguments) == ("guess_number", sent)


def test_a_card_with_tools_needs_an_environment_with_some(playing: Playing) -> None:
    with pytest.raises(UsageError, match='card card offers tools, and there are none; set mode = "text"'):
        playing("http://127.0.0.1:9/v1", mode="tools").__enter__()


# Faults that pass, and those that do not.


def test_what_passes_is_tried_again(serve: Callable[[Say], Api], playing: Playing) -> None:
    faults = [refusal(500, "boom"), refusal(529, "full"), completion("done")]
    api = serve(lambda body, n: faults[n])
    with playing(api.url) as agent:
        assert turn(agent).text == "done"
    assert len(api.asked) == 3
    assert api.asked[0] == api.asked[2]
    assert playing.kinds() == ["asked", "failed", "asked", "failed", "asked", "answered"]
    assert [each["reason"] for each in playing.records if "failed" in each] == ["500: boom", "529: full"]


@pytest.mark.parametrize(
    ("answer", "reason", "paid"),
    [
        (lambda api: refusal(429, "slow down", retry_after="1000"), "429: slow down", False),
        (lambda api: refusal(503, "down", retry_after="Wed, 21 Oct 2099 07:28:00 GMT"), "503: down", False),
        (lambda api: Response("<html>Bad gateway</html>", 502), "502: <html>Bad gateway</html>", True),
        (lambda api: JSONResponse([1], 504), "504: [1]", True),
        (lambda api: api.hang(), "no answer within 0.3 s", True),
        (lambda api: api.drip(), "no answer within 0.3 s", True),
        (lambda api: Response('{"choices": [{"mess'), "an answer that is not JSON", True),
        (lambda api: Response("\x1f\x8b garbage"), "an answer that is not JSON", True),
        (lambda api: Response("xxxx" * 99, headers={"content-encoding": "br"}), "not JSON", True),
        (lambda api: Response("xxxx" * 99, headers={"content-encoding": "gzip"}), "(DecodingError", True),
        (lambda api: Response("[" * 9000 + "]" * 9000), "an answer that is not JSON", True),
        (lambda api: Response("[" * 200 + "]" * 200), "(more than 100 levels deep)", True),
        (lambda api: Response('{"choices": NaN}'), "NaN is no JSON", True),
        (lambda api: Response('{"choices": 1e999}'), "inf is no number", True),
        (lambda api: Response("[" + "1," * 2**23 + "1]"), "an answer of more than 16777216 bytes", True),
        (lambda api: JSONResponse({"error": {"message": "no"}}), "not a chat completion: {'error'", True),
        (lambda api: JSONResponse({"choices": []}), "not a chat completion: {'choices': []}", True),
        (lambda api: JSONResponse([3]), "not a chat completion: [3]", True),
        (lambda api: completion(5), "not a chat completion", True),
    ],
)
def test_what_does_not_pass_makes_the_episode_void(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[Api], Any], reason: str, paid: bool
) -> None:
    api = serve(lambda body, n: answer(api))
    timeout_s = 0.3 if "0.3 s" in reason else 60.0
    with playing(api.url, timeout_s=timeout_s, backoff=Backoff(2, 0.001, 0.01)) as agent:
        found = heard(agent)
        spent = playing.budget.spent_usd
    assert isinstance(found, AgentError)
    assert str(found).startswith("agent api: no answer to 2 requests: ")
    assert reason in str(found)
    assert len(api.asked) == 2
    most = Usage(**playing.records[0]["most"])
    assert spent == pytest.approx(2 * PRICE.cost_usd(most.prompt_tokens, 50) if paid else 0.0)


def test_an_answer_that_breaks_off_is_one_without_connection(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    class Broken(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-length", b"100"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"choices"'})

    api = serve(lambda body, n: completion("whole") if n else Broken())
    with playing(api.url) as agent:
        assert turn(agent).text == "whole"
    (failed,) = [each for each in playing.records if "failed" in each]
    assert failed["reason"].startswith("no connection (RemoteProtocolError: ")
    assert failed["usage"]["completion_tokens"] == 50, "it may have to be paid for"


def test_nobody_there_is_void_and_free(playing: Playing) -> None:
    with playing("http://127.0.0.1:9/v1") as agent:
        assert "no answer to 3 requests: no connection (ConnectError: " in str(heard(agent))
        assert playing.budget.spent_usd == 0.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda: refusal(401, f"Bad key: {KEY}"),
            "the key in TEST_API_KEY is refused (401); check that it may use m",
        ),
        (lambda: refusal(403, f"Bad key: {KEY}"), "the key in TEST_API_KEY is refused (403)"),
        (lambda: refusal(404, "gone"), "there is no model 'm' (404: gone); check model and base_url"),
        (lambda: refusal(400, f"Bearer {KEY} is\nodd " + "x" * 900), "refused (400: Bearer [key] is odd xxx"),
        (lambda: JSONResponse({"detail": [KEY]}, 422), "refused (422: {'detail': ['[key]']})"),
        (lambda: refusal(400, "too long", "context_length_exceeded"), "refused (400: too long)"),
        (lambda: refusal(429, "no credit", "insufficient_quota"), "refused (429: no credit)"),
    ],
)
def test_what_is_wrong_for_all_ends_the_run_at_once(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[], Response], message: str
) -> None:
    api = serve(lambda body, n: answer())
    with playing(api.url, concurrency=1) as agent:
        for row in range(5):
            agent.submit(agent.start(key(row)), "seen")
        with pytest.raises(ProviderError) as raised:
            agent.collect()
    said = str(raised.value)
    assert message in said
    assert len(said) < 500
    assert "\n" not in said
    assert KEY not in said
    assert raised.value.__context__ is None, "which could hold the key"
    assert len(api.asked) <= 2, "those that wait are not asked"
    assert playing.budget.spent_usd == 0.0


def test_a_server_without_keys_that_wants_one(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: refusal(401, "who?"))
    with (
        playing(api.url, key_env="") as agent,
        pytest.raises(ProviderError, match=r"without a key \(see key_env"),
    ):
        heard(agent)


def test_delays_double_are_spread_and_bounded() -> None:
    backoff = Backoff(first_s=2.0, most_s=20.0)
    assert [backoff.delay_s(n, None, 0.0) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert [backoff.delay_s(n, None, 1.0) for n in (1, 2, 9)] == [2.0, 4.0, 20.0]
    assert backoff.delay_s(1, 7.0, 0.0) == 7.0
    assert backoff.delay_s(1, 7000.0, 0.0) == 20.0
    assert backoff.delay_s(4, 1.0, 0.0) == 8.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        *[(odd, None) for odd in ("", "soon", "nan", "inf", "Thu, 99 Jan 1970 00:00:10 GMT")],
    ],
)
def test_how_long_a_provider_wants_to_be_left_alone(header: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": header}, now=50.0) == seconds
    assert retry_after_s({}, now=50.0) is None


def test_a_retry_waits_as_long_as_the_provider_wants(
    serve: Callable[[Say], Api], playing: Playing, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[int, float | None, float]] = []

    def delay_s(self: Backoff, failures: int, after_s: float | None, draw: float) -> float:
        waited.append((failures, after_s, draw))
        return 0.0

    monkeypatch.setattr(Backoff, "delay_s", delay_s)
    api = serve(lambda body, n: refusal(429, "wait", retry_after="7") if n % 3 < 2 else completion())
    with playing(api.url) as agent:
        turn(agent)
        turn(agent)
    assert [(failures, after_s) for failures, after_s, _ in waited] == [(1, 7.0), (2, 7.0)] * 2
    draws = [draw for _, _, draw in waited]
    assert draws[:2] == draws[2:], "drawn from the episode's key"
    assert draws[0] != draws[1]


# Money.


def usage(**counts: Any) -> Any:
    return completion("x", usage={**USAGE, **counts})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: usage(), (20, 3, 0)),
        (lambda: usage(prompt_tokens_details={"cached_tokens": 8}), (20, 3, 8)),
        (lambda: usage(prompt_cache_hit_tokens=8, prompt_tokens_details=None), (20, 3, 8)),
        (lambda: usage(total_tokens=53), (20, 33, 0)),
        (lambda: usage(total_tokens=None), (20, 3, 0)),
        *[
            (lambda odd=odd: odd, None)
            for odd in (
                completion("x", usage=None),
                completion("x", usage=[1]),
                usage(prompt_tokens=-1),
                usage(completion_tokens=-5),
                usage(completion_tokens=51),
                usage(prompt_tokens=10**6),
                usage(prompt_tokens=10**30),
                usage(prompt_tokens="20"),
                usage(prompt_tokens=2.5),
                usage(completion_tokens=True),
                usage(total_tokens=10**6),
                usage(prompt_tokens_details={"cached_tokens": 21}),
                usage(prompt_tokens_details={"cached_tokens": -1}),
            )
        ],
    ],
)
def test_only_a_usage_that_can_be_is_believed(
    serve: Callable[[Say], Api],
    playing: Playing,
    answer: Callable[[], Response],
    expected: tuple[int, int, int] | None,
) -> None:
    api = serve(lambda body, n: answer())
    with playing(api.url) as agent:
        found = turn(agent).usage
        spent = playing.budget.spent_usd
    asked, answered = playing.records
    assert (answered["remark"] == "") == (expected is not None)
    wanted = expected or (asked["most"]["prompt_tokens"], 50, 0)
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == wanted
    assert spent == pytest.approx(PRICE.cost_usd(*wanted))
    assert "usd" not in str(playing.records)


@given(st.text(), st.text(), st.integers(1, 99))
def test_no_text_has_more_tokens_than_bytes(system: str, seen: str, most: int) -> None:
    card = Card("n", "m", "https://h/v1", "", price="m")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": seen}]
    request = completions.request_of(card, messages, TOOLS, 1.0, most)
    found = completions.most_of(card, request)
    words = [system, seen, *(f"{each['function']}" for each in TOOLS)]
    assert found.prompt_tokens >= sum(len(text.encode()) for text in words)
    assert found.completion_tokens == most


def test_what_may_cost_too_much_is_not_asked_and_what_was_is_kept(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    """Room for three calls at worst, which turn out cheap: more fit, until what is spent leaves no room."""
    api = serve(lambda body, n: usage(prompt_tokens=1000, completion_tokens=50, total_tokens=1050))
    with playing(api.url, budget=Budget(0.006)) as agent:
        for row in range(9):
            agent.submit(agent.start(key(row)), "seen")
        answers: list[Turn | AgentError] = []

        def collect_all() -> None:
            for found in iter(agent.collect, []):
                answers.extend(answer for _, answer in found)

        with pytest.raises(BudgetError, match=r"the budget of \$0\.006 is used up: \$0\.0045 are spent, and"):
            collect_all()
        with pytest.raises(BudgetError):
            agent.collect()
    assert len(answers) == len(api.asked) == 3
    assert playing.kinds().count("answered") == 3
    assert playing.budget.spent_usd == pytest.approx(0.0045)


def test_calls_under_way_never_exceed_the_budget_together() -> None:
    budget, held, most = Budget(1.0), [0.0], [0.0]
    lock = threading.Lock()

    def spend() -> None:
        for _ in range(5):
            with budget.hold(0.4) as hold:
                with lock:
                    held[0] += 0.4
                    most[0] = max(most[0], held[0])
                hold.usd = 0.02
                with lock:
                    held[0] -= 0.4

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.spent_usd == pytest.approx(0.4)
    assert most[0] < 1.0


def test_a_call_that_breaks_costs_all_that_it_may() -> None:
    budget = Budget(1.0)
    with pytest.raises(ZeroDivisionError), budget.hold(0.75):
        raise ZeroDivisionError
    assert budget.spent_usd == 0.75
    with pytest.raises(BudgetError, match="the next call may cost"), budget.hold(0.5):
        pass
    with pytest.raises(UsageError, match="at least 0"):
        Budget(float("nan"))


def test_old_usages_still_load() -> None:
    step = {"observation": "o", "turn": {"text": "t", "tokens": None, "stop": "stop"}, "reward": 0.0}
    step["turn"]["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "seconds": 0.5}  # type: ignore[index]
    data = {"key": vars_of(key()), "env": "e", "agent": "a", "outcome": "failed", "scores": {}, "info": {}}
    found = trajectory_from_json({**data, "steps": [step]})
    assert found.steps[0].turn.usage == Usage(3, 2, 0.5, cached_tokens=0)
    assert trajectory_from_json(trajectory_to_json(found)) == found


def vars_of(episode: EpisodeKey) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in ("seed", "step", "group", "row", "task")}


# Going on.


def play_three(agent: ApiAgent) -> list[list[str]]:
    """Three conversations of three turns; what was said in each."""
    sessions = [agent.start(key(row)) for row in range(3)]
    said: dict[int, list[str]] = {id(session): [] for session in sessions}
    for session in sessions:
        agent.submit(session, "seen 0")
    while answers := agent.collect():
        for session, answer in answers:
            assert isinstance(answer, Turn), answer
            said[id(session)].append(answer.text)
            if len(said[id(session)]) < 3:
                agent.submit(session, f"seen {len(said[id(session)])} after {answer.text}")
    return [said[id(session)] for session in sessions]


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_what_is_recorded_is_not_asked_again(
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
        spent = playing.budget.spent_usd
    with playing(api.url, tools=tools) as agent:
        assert playing.budget.spent_usd == pytest.approx(spent), "what was paid is spent"
        assert play_three(agent) == first
        assert playing.budget.spent_usd == pytest.approx(spent)
    assert len(api.asked) == 9
    assert len(playing.records) == 18


def test_a_call_that_was_cut_off_is_asked_again_and_marked(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: completion(f"t{n}"))
    with playing(api.url) as agent:
        play_three(agent)
    records = playing.records
    # As killed: one answer never arrived.
    lost = next(n for n, each in enumerate(records) if each.get("answered", {}).get("turn") == 2)
    which = records.pop(lost)["answered"]
    playing.path.write_text("".join(json.dumps(each) + "\n" for each in records))
    asked = next(each for each in records if each.get("asked") == which)
    with playing(api.url) as agent:
        spent = 8 * PRICE.cost_usd(20, 3) + PRICE.cost_usd(asked["most"]["prompt_tokens"], 50)
        assert playing.budget.spent_usd == pytest.approx(spent), "it may have been paid for"
        said = play_three(agent)
    assert said[which["key"]["row"]][2] == "t9"
    assert len(api.asked) == 10
    again = playing.records[len(records) :]
    assert [each.get("asked", each.get("answered")) for each in again] == [which | {"attempt": 1}] * 2
    assert [each["repeated"] for each in again] == [True, True]
    assert not any("repeated" in each for each in records)
    with playing(api.url) as agent:
        assert play_three(agent) == said
    assert len(api.asked) == 10


#: Three conversations of three turns, in a process of its own, which is killed in the middle.
CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from test_api import Playing, play_three
with Playing(Path(sys.argv[4]))(sys.argv[3], concurrency=2) as agent:
    play_three(agent)
"""


def test_a_killed_run_goes_on_where_it_was(serve: Callable[[Say], Api], playing: Playing) -> None:
    dead = threading.Event()

    def say(body: Body, number: int) -> Response:
        if number == 5 and not dead.is_set():
            child.kill()
            child.wait()
            dead.set()
        return completion(f"t{number}")

    api = serve(say)
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *folders, api.url, str(playing.path)])
    assert child.wait() == -signal.SIGKILL
    before, asked = playing.records, list(api.asked)
    answered = [each["answered"] for each in before if "answered" in each]
    cut_off = [each["asked"] for each in before if "asked" in each and each["asked"] not in answered]
    assert len(answered) >= 4
    assert len(cut_off) >= 1
    with playing(api.url) as agent:
        said = play_three(agent)
    now = playing.records[len(before) :]
    again = [each["asked"] for each in now if "asked" in each]
    assert len(api.asked) - len(asked) == len(again) == 9 - len(answered), (
        "what was answered is not asked again"
    )
    repeated = [each["asked"] for each in now if "asked" in each and each.get("repeated")]
    assert sorted(repeated, key=str) == sorted((each | {"attempt": 1} for each in cut_off), key=str)
    assert [len(each) for each in said] == [3, 3, 3]


def test_another_request_of_the_same_turn_is_asked(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"t{n}"))
    with playing(api.url) as agent:
        turn(agent, "one")
    for changes in ({}, {"most": 51}, {"model": "other"}):
        with playing(api.url, **changes) as agent:
            turn(agent, "two")
    assert len(api.asked) == 4
    assert [each["asked"]["attempt"] for each in playing.records if "asked" in each] == [0, 1, 2, 3]


def test_what_failed_is_asked_again_and_its_cost_is_kept(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: completion() if n == 3 else Response("garbage"))
    with playing(api.url) as agent:
        assert isinstance(heard(agent), AgentError)
        spent = playing.budget.spent_usd
    with playing(api.url) as agent:
        assert playing.budget.spent_usd == pytest.approx(spent)
        assert turn(agent).text == "hello"
    assert not any("repeated" in each for each in playing.records), "it was not cut off"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"asked": 3, "digest": ""},
        {"asked": {"key": {}, "turn": 0, "attempt": 0}, "digest": ""},
        {"answered": {"key": vars_of(key()), "turn": 0, "attempt": 0}, "digest": "d", "usage": {}},
    ],
)
def test_a_journal_of_something_else_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"record 1 of the calls is not of a call"):
        Recorded([record])


def test_answers_under_way_are_kept_when_the_run_ends(serve: Callable[[Say], Api], playing: Playing) -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def slow() -> Response:
        import asyncio

        asked.set()
        while not go_on.is_set():
            await asyncio.sleep(0.005)
        return completion("kept")

    api = serve(lambda body, n: slow())

    def interrupted() -> None:
        with playing(api.url, concurrency=1) as agent:
            for row in range(3):
                agent.submit(agent.start(key(row)), "seen")
            asked.wait()
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert playing.kinds() == ["asked", "answered"]
    assert playing.records[1]["text"] == "kept"


# The key.


def test_the_key_is_nowhere(
    serve: Callable[[Say], Api], playing: Playing, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the server sends it back, whatever the answer."""
    caplog.set_level(logging.DEBUG)
    echo = f"you sent Authorization: Bearer {KEY}"
    answers = [
        refusal(500, echo),
        Response(f"<{echo}>"),
        completion(echo, tool_calls=[call("guess_number", {"why": echo})], **{KEY: echo}),
        JSONResponse({"error": echo}),
        refusal(503, echo, KEY, x_key=KEY),
        refusal(429, "x" * 290 + echo),
        refusal(401, echo),
    ]
    api = serve(lambda body, n: answers[n])
    with playing(api.url, tools=TOOLS) as agent:
        session = agent.start(key())
        told = [turn(agent, "seen", session), heard(agent, "seen", session)]
        with pytest.raises(ProviderError) as refused:
            heard(agent)
        shown = [agent, session, *told, refused.value, vars(agent), vars(agent)["_card"], playing.budget]
    assert len(api.asked) == len(answers)
    assert all(KEY in each["authorization"] for each in api.headers)
    places = [repr(shown), str(refused.value), playing.path.read_text()]
    # What the transport says of the server's own headers is not ours.
    places += [each.getMessage() for each in caplog.records if not each.name.startswith("httpcore")]
    for place in places:
        assert KEY not in place
        assert KEY[:20] not in place, "nor a part of it"
    assert "[key]" in places[2]


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_key_is_said_before_anything_is_asked(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEST_API_KEY")
    if value is not None:
        monkeypatch.setenv("TEST_API_KEY", value)
    with pytest.raises(UsageError, match="card card: TEST_API_KEY is not set; put the provider's key there"):
        playing("http://127.0.0.1:9/v1").__enter__()


@pytest.mark.parametrize("value", ["short", "sk-with a blank", "sk-with\nline", "sk-é-123456"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEST_API_KEY", value)
    with pytest.raises(UsageError, match="what TEST_API_KEY holds is no key") as raised:
        playing("http://127.0.0.1:9/v1").__enter__()
    assert value not in str(raised.value)


def test_the_client_is_an_extra(playing: Playing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'envkit\[api\]'"):
        playing("http://127.0.0.1:9/v1").__enter__()


# Whole episodes.


def halving(body: Body) -> str:
    """The number that halves what is left."""
    ranges = re.findall(r"\d+\.\.\d+", str(body["messages"]))
    return halve(ranges[-1])


def plays(agent: AbstractContextManager[ApiAgent], env: Callable[..., Any], rows: int) -> list[Any]:
    keys = [key(row, task) for task in ("below-10", "below-90") for row in range(rows)]
    backend = Backend()
    with Rollouts(lambda: env(sandbox=backend, max_turns=8)) as rollouts, agent as agent_:
        played = rollouts.play(agent_, keys)
    assert not backend.open
    return played


@pytest.mark.parametrize("native", [False, True])
def test_whole_episodes_are_played_and_replayed(
    serve: Callable[[Say], Api], playing: Playing, native: bool
) -> None:
    known: list[str] = []

    def say(body: Body, number: int) -> Response:
        known.append(str(body))
        if known.count(known[-1]) == 1 and len(set(known)) % 3 == 0:  # never twice the same
            return refusal(503, "busy")
        guessed = halving(body)
        if native:
            return completion(None, tool_calls=[call("guess_number", {"number": int(guessed)}, number)])
        return completion(guessed)

    api = serve(say)
    env, tools = (Desk, TOOLS) if native else (GuessEnv, ())
    played = plays(playing(api.url, tools=tools), env, rows=3)
    assert [each.solved for each in played] == [True] * 6
    assert all(each.agent == "api" for each in played)
    turns = [step.turn for each in played for step in each.steps]
    assert {each.usage.prompt_tokens for each in turns} == {20}
    answered = playing.kinds().count("answered")
    assert answered == len(turns) > 6
    asked = len(api.asked)
    assert plays(playing(api.url, tools=tools), env, rows=3) == played
    assert len(api.asked) == asked, "all was recorded"


def test_an_episode_without_answer_is_void_and_the_others_go_on(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    def say(body: Body, number: int) -> Response:
        talk = str(body["messages"])
        return refusal(500, "boom") if "..89" in talk and "assistant" in talk else completion(halving(body))

    api = serve(say)
    played = plays(playing(api.url), GuessEnv, rows=2)
    assert [each.outcome for each in played[:2]] == [Outcome.SOLVED] * 2
    for each in played[2:]:
        if each.outcome is not Outcome.VOID:
            continue
        assert len(each.steps) >= 1
        assert each.info == {"error": "agent api: no answer to 3 requests: 500: boom"}
    assert Outcome.VOID in {each.outcome for each in played[2:]}


def test_a_real_environment_is_played_with_tools(
    serve: Callable[[Say], Api], playing: Playing, backend: SandboxBackend
) -> None:
    tasks: list[Task] = list(generate("starter"))[:2]
    wanted = {task.prompt: str(task.hidden["reference"]) for task in tasks}

    def say(body: Body, number: int) -> Response:
        first = str(body["messages"][1]["content"])
        sql = next(reference for prompt, reference in wanted.items() if first.startswith(prompt))
        tried = any(message["role"] == "tool" for message in body["messages"])
        name, text = ("submit", sql) if tried else ("query", "SELECT 'it''s'")
        return completion(None, tool_calls=[call(name, {"sql": text}, number)])

    api = serve(say)
    tools = [each.schema() for each in SqlDeskEnv.tools]
    with (
        Rollouts(lambda: SqlDeskEnv(tasks=tasks, sandbox=backend, max_turns=3)) as rollouts,
        playing(api.url, tools=tools) as agent,
    ):
        played = rollouts.play(agent, [key(0, task.id) for task in tasks])
    assert [each.outcome for each in played] == [Outcome.SOLVED] * 2
    assert ["it's" in each.steps[1].observation for each in played] == [True, True]
    assert len(api.asked) == 4
