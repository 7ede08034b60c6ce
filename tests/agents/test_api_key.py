"""The API key is required, checked, and never shown."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest
from api_playing import KEY, TOOLS, Playing, begin, heard, turn
from api_server import Api, Say, call, completion, refusal
from starlette.responses import JSONResponse, Response

from envkit import UsageError
from envkit.agents.endpoint import ProviderError
from envkit.errors import MissingExtraError


def test_key_appears_in_no_record_message_or_error(
    serve: Callable[[Say], Api], playing: Playing, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if the server repeats it in an answer or an error."""
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
        session = begin(agent)
        told = [turn(agent, "seen", session), heard(agent, "seen", session)]
        with pytest.raises(ProviderError) as refused:
            heard(agent)
        shown = [agent, session, *told, refused.value, vars(agent), vars(agent)["_card"], playing.budget]
    assert len(api.asked) == len(answers)
    assert all(KEY in record["authorization"] for record in api.headers)
    places = [repr(shown), str(refused.value), playing.path.read_text()]
    # What the transport says of the server's own headers is not ours.
    places += [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    for place in places:
        assert KEY not in place
        assert KEY[:20] not in place, "nor a part of it"
    assert "[key]" in places[2]


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_missing_key_is_refused_before_any_request(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEST_API_KEY")
    if value is not None:
        monkeypatch.setenv("TEST_API_KEY", value)
    with pytest.raises(UsageError, match="card card: TEST_API_KEY is not set; put the provider's key there"):
        playing("http://127.0.0.1:9/v1").__enter__()


@pytest.mark.parametrize("value", ["short", "sk-with a blank", "sk-with\nline", "sk-é-123456"])
def test_malformed_key_is_refused_and_not_shown(
    playing: Playing, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEST_API_KEY", value)
    with pytest.raises(UsageError, match="TEST_API_KEY does not hold an API key") as raised:
        playing("http://127.0.0.1:9/v1").__enter__()
    assert value not in str(raised.value)


def test_missing_client_names_the_extra(playing: Playing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install --editable '\.\[api\]'"):
        playing("http://127.0.0.1:9/v1").__enter__()
