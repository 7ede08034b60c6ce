"""Chats of a harness: only what is new is appended, branches keep what they share, sampled ids stay."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.engine.chat import ChatRenderer, Chats
from envkit.openai_api.messages import template_message
from envkit.openai_api.schemas import Message

TEXT = st.text(st.characters(max_codepoint=0x1FF, exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return ChatRenderer(tiny.tokenizer())


def chat(*texts: str) -> str:
    """A chat of a user and an assistant in turn."""
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"messages": messages})


def observe(chats: Chats, observation: str) -> tuple[int, ...]:
    """Observe; returns what a learner makes of the recorded part: the ids that are kept, and new ones."""
    before = chats.ids
    chats.observe(observation)
    assert chats.new_ids
    assert before[: chats.kept] + chats.new_ids == chats.ids
    return chats.ids


def test_a_chat_that_goes_on_appends_what_is_new(renderer: ChatRenderer) -> None:
    chats = Chats(renderer)
    first = observe(chats, chat("Fix it."))
    assert first == renderer.messages(json.loads(chat("Fix it."))["messages"])
    answer = (*renderer.plain("I try"), renderer.stop_id)
    chats.answer(answer)
    assert (
        observe(chats, chat("Fix it.", "I try", "It failed."))[: len(first) + len(answer)] == first + answer
    )
    assert chats.kept is None
    assert (chats.first_prompt, chats.turns) == (len(first), 1)


def test_sampled_ids_stay_although_their_text_would_be_other_ids(renderer: ChatRenderer) -> None:
    split = tuple(id for letter in "return" for id in renderer.plain(letter))
    assert renderer.text(split) == "return"
    assert split != renderer.plain("return")
    chats = Chats(renderer)
    first = observe(chats, chat("Fix it."))
    chats.answer((*split, renderer.stop_id))
    seen = observe(chats, chat("Fix it.", "return", "return"))
    assert seen[: len(first) + len(split)] == first + split
    assert chats.kept is None


@pytest.fixture(scope="module")
def calling() -> ChatRenderer:
    """Renders tool calls, in another spelling than the model's."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    told = "{% if tools %}{{ tools | tojson }}{% endif %}"
    calls = "{% for each in message.tool_calls %}{{ each.function | tojson }}{% endfor %}"
    before, content, after = tokenizer.chat_template.partition("message['content']")
    tokenizer.chat_template = f"{told}{before}{content} }}}}{calls}{{{{ ''{after}"
    return ChatRenderer(tokenizer)


CALL = '<tool_call>{"name": "add",  "arguments": {"n":1, "why": "\u00e9"}}</tool_call>'


def called(before: str, *arguments: str) -> str:
    """A chat in which an answer with tool calls comes back, as the harness's environment shows it."""
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "add", "arguments": each}}
        for number, each in enumerate(arguments)
    ]
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": before, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": "2"},
    ]
    read = [template_message(Message.model_validate(message)) for message in messages]
    return json.dumps({"messages": read, "tools": [{"type": "function", "function": {"name": "add"}}]})


@pytest.mark.parametrize("before", ["", "I add.\n"])
@pytest.mark.parametrize("arguments", ['{"n": 1, "why": "\u00e9"}', '{"n":1,"why":"\\u00e9"}'])
def test_an_answer_with_tool_calls_keeps_its_sampled_ids(
    calling: ChatRenderer, before: str, arguments: str
) -> None:
    chats = Chats(calling)
    tools = json.loads(called(""))["tools"]
    first = observe(chats, json.dumps({"messages": [{"role": "user", "content": "Add."}], "tools": tools}))
    answer = (*calling.plain(before + CALL), calling.stop_id)
    chats.answer(answer)
    assert observe(chats, called(before, arguments))[: len(first) + len(answer)] == first + answer
    assert chats.kept is None


def test_an_answer_with_other_tool_calls_is_rendered_anew(calling: ChatRenderer) -> None:
    same = '{"n": 1, "why": "\u00e9"}'
    for changed in (called("", same, same), called("", '{"n": 2}'), called("So", same)):
        chats = Chats(calling)
        observe(chats, json.dumps({"messages": [{"role": "user", "content": "Add."}]}))
        chats.answer((*calling.plain(CALL), calling.stop_id))
        read = json.loads(changed)
        assert observe(chats, changed) == calling.messages(read["messages"], read["tools"])


@pytest.mark.parametrize(
    "then",
    [
        chat("Fix that."),
        chat("Fix it.", "I tried", "It failed."),
        chat("Fix it."),
        json.dumps(
            {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]}
        ),
    ],
)
def test_a_rewritten_history_branches_where_it_differs(renderer: ChatRenderer, then: str) -> None:
    chats = Chats(renderer)
    observe(chats, chat("Fix it."))
    chats.answer((*renderer.plain("I try"), renderer.stop_id))
    assert observe(chats, then) == renderer.messages(json.loads(then)["messages"])
    assert chats.kept is not None


def test_a_chat_that_is_too_long_loses_what_stands_behind_the_first(renderer: ChatRenderer) -> None:
    chats = Chats(renderer, 60)
    first = observe(chats, chat("Fix it."))
    chats.answer((*renderer.plain("I try"), renderer.stop_id))
    whole = renderer.messages(json.loads(chat("Fix it.", "I try", "word " * 60))["messages"])
    seen = observe(chats, chat("Fix it.", "I try", "word " * 60))
    assert seen == first + whole[-(60 - len(first)) :]


def test_a_later_chat_shorter_than_the_first_stays_whole_although_both_are_too_long(
    renderer: ChatRenderer,
) -> None:
    chats = Chats(renderer, 20)
    first = observe(chats, chat("word " * 60))
    chats.answer((*renderer.plain("I try"), renderer.stop_id))
    other = renderer.messages(json.loads(chat("Other words " * 15))["messages"])
    assert 20 < len(other) < len(first)
    assert observe(chats, chat("Other words " * 15)) == other


@settings(deadline=None, max_examples=60)
@given(
    chats=st.lists(
        st.lists(TEXT, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2), min_size=2, max_size=5
    ),
    answers=st.lists(TEXT, min_size=5, max_size=5),
)
def test_any_chats_are_rebuilt_from_what_is_recorded(
    renderer: ChatRenderer, chats: list[list[str]], answers: list[str]
) -> None:
    talk: Any = Chats(renderer)
    for texts, answer in zip(chats, answers, strict=False):
        seen = observe(talk, chat(*texts))
        assert tiny.tokenizer().decode(seen) == tiny.tokenizer().decode(
            renderer.messages(json.loads(chat(*texts))["messages"])
        )
        talk.answer((*renderer.plain(answer), renderer.stop_id))
