"""Whole chats of a harness, answered by the API agent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from api_playing import Playing, heard, key, turn
from api_server import Api, Say, call, completion, refusal
from hypothesis import given
from hypothesis import strategies as st

from envkit.agents.chat_completions import AnswerKey, Message, answer_key, chat_text, with_opaque
from envkit.agents.endpoint import ProviderError
from envkit.errors import AgentError
from envkit.openai_api.messages import request_message, template_message
from envkit.openai_api.schemas import Message as MessageBody
from envkit.openai_api.text import FunctionCall, ToolCallStream

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def seen(*messages: Message, tools: list[Any] | None = None) -> str:
    """Return an observation: messages in the API's form, as a harness sends them."""
    read = [template_message(MessageBody.model_validate(message)) for message in messages]
    return json.dumps({"messages": read} | ({"tools": tools} if tools else {}))


def test_the_api_gets_the_programs_messages_and_no_others(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: completion(f"said {n}"))
    rules = {"role": "system", "content": "Be short."}
    with playing(api.url) as agent:
        session = agent.start_chats(key())
        assert turn(agent, seen(rules, {"role": "user", "content": "a"}), session).text == "said 0"
        assert turn(agent, seen({"role": "user", "content": "other"}), session).text == "said 1"
    assert [asked["messages"] for asked in api.asked] == [
        [rules, {"role": "user", "content": "a"}],
        [{"role": "user", "content": "other"}],
    ]
    assert "tools" not in api.asked[0]


@pytest.mark.parametrize("mode", ["tools", "text"])
def test_a_programs_tools_are_offered_and_calls_come_back_with_opaque_fields(
    serve: Callable[[Say], Api], playing: Playing, mode: str
) -> None:
    opaque = {"reasoning_content": "Hm."}
    spelled = '{"n":1,"why":"\u00e9"}'  # a provider's spelling, which no repetition keeps
    sent = {"tool_calls": [call("add", spelled, 7, extra_content={"signature": "x"})], **opaque}
    api = serve(lambda body, n: completion("end") if n else completion("I add.", finish="tool_calls", **sent))
    ask: Message = {"role": "user", "content": "Add."}
    with playing(api.url, tools=[ADD] if mode == "tools" else ()) as agent:
        session = agent.start_chats(key())
        text = turn(agent, seen(ask, tools=[ADD]), session).text
        stream = ToolCallStream()
        said, calls = stream.push(text)
        assert (said, calls) == ("I add.\n", [FunctionCall("add", '{"n": 1, "why": "é"}')])
        again = call("add", calls[0].arguments, 0)
        repeated = {"role": "assistant", "content": said, "tool_calls": [again]}
        result = {"role": "tool", "tool_call_id": "id-0", "content": "1"}
        assert turn(agent, seen(ask, repeated, result, tools=[ADD]), session).text == "end"
    assert api.asked[0]["tools"] == [ADD]
    known = {**sent["tool_calls"][0], "id": "id-0"}
    assert api.asked[1]["messages"] == [
        ask,
        {"role": "assistant", "content": "I add.", **opaque, "tool_calls": [known]},
        result,
    ]


def test_an_answer_that_the_program_has_changed_is_sent_as_the_program_sends_it() -> None:
    answers: dict[AnswerKey, Message] = {
        ("said", ()): {"role": "assistant", "content": "said", "reasoning_content": "Hm."}
    }
    for changed in (
        {"role": "assistant", "content": "said so"},
        {"role": "user", "content": "said"},
        {"role": "assistant", "content": "said", "tool_calls": [call("add", {})]},
    ):
        assert with_opaque(changed, answers) is changed
    assert with_opaque({"role": "assistant", "content": "said"}, answers) == answers["said", ()]


def test_calls_that_a_program_flattens_to_text_are_another_answer() -> None:
    answer: Message = {"role": "assistant", "content": None, "tool_calls": [call("add", {})]}
    flat = {"role": "assistant", "content": chat_text(answer, "")}
    assert with_opaque(flat, {answer_key(answer): answer}) is flat


def test_an_empty_answer_is_repeated_with_the_words_that_providers_accept(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: completion("end" if n else ""))
    ask: Message = {"role": "user", "content": "a"}
    with playing(api.url) as agent:
        session = agent.start_chats(key())
        assert turn(agent, seen(ask), session).text == ""
        turn(agent, seen(ask, {"role": "assistant", "content": ""}, ask), session)
    assert api.asked[1]["messages"][1] == {"role": "assistant", "content": "(no answer)"}


@given(st.text(), st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=3))
def test_messages_of_the_api_survive_the_way_through_a_chat_template_s_form(
    text: str, arguments: list[dict[str, Any]]
) -> None:
    calls = [call("add", each, number) for number, each in enumerate(arguments)]
    message: Message = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    assert request_message(template_message(MessageBody.model_validate(message))) == message
    if "<tool_call>" in text:
        return
    stream = ToolCallStream()
    said, found = stream.push(chat_text(message, text))
    assert [json.loads(each.arguments) for each in found] == arguments
    assert (said + stream.end()).strip() == text.strip()


def test_a_program_s_request_that_is_refused_has_an_empty_answer(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    """A void would not count, so a model could escape a bad grade by what it has its program ask."""
    api = serve(lambda body, n: refusal(400, "a tool has no such name") if n else completion("go on"))
    lines: list[str] = []
    ask: Message = {"role": "user", "content": "a"}
    with playing(api.url, on_retry=lines.append) as agent:
        session = agent.start_chats(key())
        turn(agent, seen(ask), session)
        for _ in range(20):
            refused = turn(agent, seen(ask, tools=[ADD]), session)
            assert (refused.text, refused.stop, refused.usage.completion_tokens) == ("", "length", 0)
        assert isinstance(heard(agent, seen(ask), agent.start_chats(key(1))), AgentError)
    [line] = lines
    assert line.startswith("api: a request of the program gets an empty answer: ")
    assert "a tool has no such name" in line


def test_refusals_of_first_requests_end_the_run_also_among_others(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    api = serve(lambda body, n: refusal(400, "no credit") if n else completion("go on"))
    ask: Message = {"role": "user", "content": "a"}
    with playing(api.url) as agent:
        session = agent.start_chats(key())
        turn(agent, seen(ask), session)
        for row in range(16):
            assert isinstance(heard(agent, seen(ask), agent.start_chats(key(row))), AgentError)
            assert turn(agent, seen(ask), session).text == ""
        with pytest.raises(ProviderError, match="no credit"):
            heard(agent, seen(ask), agent.start_chats(key(17)))


def test_chats_resume_without_new_requests(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: completion(f"said {n}"))
    for _ in range(2):
        with playing(api.url) as agent:
            session = agent.start_chats(key())
            texts = [turn(agent, seen({"role": "user", "content": each}), session).text for each in "ab"]
            assert texts == ["said 0", "said 1"]
    assert len(api.asked) == 2
