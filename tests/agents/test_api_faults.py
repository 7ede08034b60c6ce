"""Failures between the API agent and a provider: each is retried, voids an episode or ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from api_playing import KEY, PRICE, Playing, begin, heard, turn
from api_server import Api, Say, completion, refusal
from starlette.responses import JSONResponse, Response

from envkit import Usage
from envkit.agents.api import ApiAgent
from envkit.agents.endpoint import Backoff, ProviderError, retry_after_s
from envkit.errors import AgentError


def test_transient_failures_are_retried(serve: Callable[[Say], Api], playing: Playing) -> None:
    faults = [refusal(500, "boom"), refusal(529, "full"), completion("done")]
    api = serve(lambda body, n: faults[n])
    with playing(api.url) as agent:
        assert turn(agent).text == "done"
    assert len(api.asked) == 3
    assert api.asked[0] == api.asked[2]
    assert playing.kinds() == ["asked", "failed", "asked", "failed", "asked", "answered"]
    assert [record["reason"] for record in playing.records if "failed" in record] == [
        "500: boom",
        "529: full",
    ]


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
        (lambda api: Response('{"choices": NaN}'), "NaN is not JSON", True),
        (lambda api: Response('{"choices": 1e999}'), "inf is not finite", True),
        (lambda api: Response("[" + "1," * 2**23 + "1]"), "an answer of more than 16777216 bytes", True),
        (lambda api: JSONResponse({"error": {"message": "no"}}), "not a chat completion: {'error'", True),
        (lambda api: JSONResponse({"choices": []}), "not a chat completion: {'choices': []}", True),
        (lambda api: JSONResponse([3]), "not a chat completion: [3]", True),
        (lambda api: completion(5), "not a chat completion", True),
    ],
)
def test_lasting_failures_make_the_episode_void(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[Api], Any], reason: str, paid: bool
) -> None:
    api = serve(lambda body, n: answer(api))
    timeout_s = 0.3 if "0.3 s" in reason else 60.0
    with playing(api.url, timeout_s=timeout_s, backoff=Backoff(2, 0.001, 0.01)) as agent:
        found = heard(agent)
        spent = playing.spent_usd
    assert isinstance(found, AgentError)
    assert str(found).startswith("agent api: no answer to 2 requests: ")
    assert reason in str(found)
    assert len(api.asked) == 2
    most = Usage(**playing.records[0]["most"])
    assert spent == pytest.approx(2 * PRICE.cost_usd(most.prompt_tokens, 50) if paid else 0.0)


def test_broken_off_answer_counts_as_lost_connection(serve: Callable[[Say], Api], playing: Playing) -> None:
    class Broken(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-length", b"100"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"choices"'})

    api = serve(lambda body, n: completion("whole") if n else Broken())
    with playing(api.url) as agent:
        assert turn(agent).text == "whole"
    (failed,) = [record for record in playing.records if "failed" in record]
    assert failed["reason"].startswith("no connection (RemoteProtocolError: ")
    assert failed["usage"]["completion_tokens"] == 50, "it may have to be paid for"


def test_a_retry_is_reported_after_the_first_failure_and_not_for_every_conversation(playing: Playing) -> None:
    lines: list[str] = []
    with playing("http://127.0.0.1:9/v1", on_retry=lines.append) as agent:
        for row in range(3):
            agent.submit(begin(agent, row), "seen")
        while agent.collect():
            pass
    [line] = lines
    assert line.startswith(
        "api: request 1 of at most 3 to http://127.0.0.1:9/v1 failed: no connection (ConnectError: "
    )
    assert line.endswith(". The next follows in 0 s.")


def test_unreachable_server_is_void_and_costs_nothing(playing: Playing) -> None:
    with playing("http://127.0.0.1:9/v1") as agent:
        assert "no answer to 3 requests: no connection (ConnectError: " in str(heard(agent))
        assert playing.spent_usd == 0.0


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
        (lambda: refusal(429, "no credit", "insufficient_quota"), "refused (429: no credit)"),
    ],
)
def test_refusal_of_key_or_model_ends_the_run(
    serve: Callable[[Say], Api], playing: Playing, answer: Callable[[], Response], message: str
) -> None:
    api = serve(lambda body, n: answer())
    with playing(api.url, concurrency=1) as agent:
        for row in range(5):
            agent.submit(begin(agent, row), "seen")
        with pytest.raises(ProviderError) as raised:
            agent.collect()
    said = str(raised.value)
    assert message in said
    assert len(said) < 500
    assert "\n" not in said
    assert KEY not in said
    assert raised.value.__context__ is None, "which could hold the key"
    assert len(api.asked) <= 2, "those that wait are not asked"
    assert playing.spent_usd == 0.0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refusal_of_one_conversation_voids_only_that_episode(
    serve: Callable[[Say], Api], playing: Playing, status: int
) -> None:
    refused = refusal(status, "too long", "context_length_exceeded")
    api = serve(lambda body, n: refused if "long" in body["messages"][-1]["content"] else completion("x"))
    with playing(api.url, concurrency=1) as agent:
        sessions = [begin(agent, row) for row in range(3)]
        for session, seen in zip(sessions, ("short", "long", "short"), strict=True):
            agent.submit(session, seen)
        answers: dict[int, object] = {}
        while len(answers) < 3:
            answers |= {sessions.index(session): turn for session, turn in agent.collect()}
    assert [type(answers[row]).__name__ for row in range(3)] == ["Turn", "AgentError", "Turn"]
    assert f"refused ({status}: too long)" in str(answers[1])


def test_tasks_that_do_not_fit_the_context_are_void_and_end_no_run(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    refused = refusal(400, "too long", "context_length_exceeded")
    api = serve(lambda body, n: completion("x") if "short" in body["messages"][-1]["content"] else refused)
    with playing(api.url, concurrency=1) as agent:
        for row in range(20):
            assert "refused (400: too long)" in str(heard(agent, "long", begin(agent, row)))
        assert turn(agent, "short", begin(agent, 20)).text == "x"


TOO_LONG = [
    ("too long", "context_length_exceeded"),
    ("This model's maximum context length is 512 tokens. However, you requested 600 tokens.", None),
    ("prompt is too long: 200534 tokens > 200000 maximum", None),
    ("input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000", None),
    ("The input token count (1048577) exceeds the maximum number of tokens allowed (1048575).", None),
    ("the request exceeds the available context size (4096 tokens), try increasing it", None),
]


@pytest.mark.parametrize(("words", "code"), TOO_LONG, ids=range(len(TOO_LONG)))
def test_context_overflow_gives_an_empty_turn_with_stop_length(
    serve: Callable[[Say], Api], playing: Playing, words: str, code: str | None
) -> None:
    """A void would not count, so a model that writes too much would gain by it."""
    api = serve(lambda body, n: refusal(400, words, code) if n else completion("much"))
    with playing(api.url) as agent:
        session = begin(agent)
        assert turn(agent, "seen", session).text == "much"
        for _ in range(2):
            cut = turn(agent, "go on", session)
            assert (cut.text, cut.stop, cut.usage.completion_tokens) == ("", "length", 0)
    assert playing.spent_usd > 0.0
    spent = playing.spent_usd
    with playing(api.url) as again:
        session = begin(again)
        assert [turn(again, seen, session).stop for seen in ("seen", "go on", "go on")] == [
            "stop",
            "length",
            "length",
        ]
    assert len(api.asked) == 3
    assert playing.spent_usd == pytest.approx(spent)


def test_consecutive_refusals_end_the_run(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: refusal(400, "no credit") if n else completion("x"))

    def all_of(agent: ApiAgent) -> None:
        while agent.collect():
            pass

    with playing(api.url, concurrency=1) as agent:
        for row in range(40):
            agent.submit(begin(agent, row), "seen")
        with pytest.raises(ProviderError, match=r"refused \(400: no credit\)"):
            all_of(agent)
    assert len(api.asked) < 25


def test_refusal_without_key_names_key_env(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: refusal(401, "who?"))
    with (
        playing(api.url, key_env="") as agent,
        pytest.raises(ProviderError, match=r"without a key \(see key_env"),
    ):
        heard(agent)


def test_delays_double_with_jitter_up_to_a_limit() -> None:
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
def test_retry_after_header_is_parsed(header: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": header}, now=50.0) == seconds
    assert retry_after_s({}, now=50.0) is None


def test_retry_waits_for_retry_after(
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
