"""Tool calls of the API agent: native for the provider, the same call as text for the environment."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from api_playing import TOOLS, Desk, Playing, begin, turn
from api_server import Api, Say, call, completion
from hypothesis import given
from hypothesis import strategies as st

from envkit import Usage, UsageError
from envkit.agents import chat_completions
from envkit.env.tools import ToolCall, find_tools, parse_calls


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
        session = begin(agent)
        both = """guess_number(number=4, why='it\\'s "4"')\ngive_up()"""
        assert turn(agent, "0..9", session).text == both
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
            "content": "The result of all calls is that of the first.",
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
def test_malformed_tool_call_reaches_the_environment(
    serve: Callable[[Say], Api], playing: Playing, arguments: str, action: str
) -> None:
    calls = [call("guess_number", arguments) | {"id": None}]
    api = serve(lambda body, n: completion("x") if n else completion(None, tool_calls=calls, finish="length"))
    with playing(api.url, tools=TOOLS) as agent:
        session = begin(agent)
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
def test_native_tool_call_round_trips_through_text(number: int, why: str) -> None:
    sent = {"number": number, "why": why}
    message = {"content": "give_up", "tool_calls": [call("guess_number", sent), call("give_up", {}, 1)]}
    body = {"choices": [{"message": message}]}
    reply = chat_completions.read_reply(json.loads(json.dumps(body)), Usage(1, 1), 0.0, tools=True)
    assert isinstance(reply, chat_completions.ChatAnswer)
    found, last = parse_calls(reply.text, find_tools(Desk))
    assert isinstance(found, ToolCall), found
    assert (found.tool.name, found.arguments) == ("guess_number", sent)
    assert isinstance(last, ToolCall), last
    assert last.tool.name == "give_up"


def test_card_with_tools_needs_an_environment_with_tools(playing: Playing) -> None:
    with pytest.raises(
        UsageError, match='card card has mode = "tools", but there are no tools to offer; set mode = "text"'
    ):
        playing("http://127.0.0.1:9/v1", mode="tools").__enter__()
