"""Text of tokens as they come, and tool calls in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from envkit.openai_api.text import FunctionCall, TextStream, ToolCallStream, format_tool_call, parse_call

GOOD = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def decode(ids: Sequence[int]) -> str:
    return str(tiny.tokenizer().decode(ids))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_pieces_join_to_the_text(text: str) -> None:
    ids = tiny.tokenizer().encode(text, add_special_tokens=False)
    stream = TextStream(decode)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == decode(ids)


#: Bytes that begin, continue and break characters.
BYTES = st.sampled_from(b"a\x80\xbf\xc3\xe2\xac\xed\xf0\x9f\xff")


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=3), st.lists(BYTES, min_size=1).map(bytes))))
def test_bytes_that_are_no_characters_are_not_waited_for(tokens: list[bytes]) -> None:
    def read(ids: Sequence[int]) -> str:
        return b"".join(tokens[token] for token in ids).decode(errors="replace")

    lengths: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return read(ids)

    stream, found = TextStream(decode), ""
    for token in range(len(tokens)):
        found += stream.push(token)
        assert len(found) >= len(read(range(token - 3))) - 1
    assert found + stream.end() == read(range(len(tokens)))
    assert max(lengths) <= 8


@given(st.text("ab", min_size=1, max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_stream_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(lambda ids: "".join(map(chr, ids)), stops)
    found = ""
    for character in text:
        found += stream.push(ord(character))
        said = text[: len(found)]
        assert found == said
        assert not any(stop in found for stop in stops)
    found += stream.end()
    # A stream ends with the token that completes the first stop string to be complete.
    complete = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not complete:
        assert found == text
    else:
        until = text[: complete[0]]
        assert found == until[: min(until.index(stop) for stop in stops if stop in until)]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        ("plain <b> text", "plain <b> text", []),
        (f"I add. {GOOD} Done.", "I add.  Done.", [FunctionCall("add", '{"a": 1}')]),
        (f"{GOOD}\n{GOOD}", "", [FunctionCall("add", '{"a": 1}')] * 2),
        (f"\n\n{GOOD}\n", "", [FunctionCall("add", '{"a": 1}')]),
        (f"I add.\n{GOOD}\n\nDone.\n", "I add.\n\n\nDone.\n", [FunctionCall("add", '{"a": 1}')]),
        (
            f"{GOOD}\n<tool_call>{{oops}}</tool_call>",
            "\n<tool_call>{oops}</tool_call>",
            [FunctionCall("add", '{"a": 1}')],
        ),
        ("\n text\n", "\n text\n", []),
        (" \n", " \n", []),
        (GOOD + GOOD, "", [FunctionCall("add", '{"a": 1}')] * 2),
        ("<tool_call>{oops}</tool_call>", "<tool_call>{oops}</tool_call>", []),
        ('<tool_call>["add"]</tool_call>', '<tool_call>["add"]</tool_call>', []),
        ('<tool_call>{"name": "add"', '<tool_call>{"name": "add"', []),
        *(  # no client could read these arguments
            (text, text, [])
            for text in (
                f'<tool_call>{{"name": "add", "arguments": {{"a": {value}}}}}</tool_call>'
                for value in ("NaN", "1e999", r'"\ud83c"')
            )
        ),
        ("almost <tool", "almost <tool", []),
    ],
)
def test_tool_calls_are_told_from_text(text: str, left: str, calls: list[FunctionCall], size: int) -> None:
    stream, found, made = ToolCallStream(), "", list[FunctionCall]()
    for start in range(0, len(text), size):
        piece, new = stream.push(text[start : start + size])
        found += piece
        made += new
    assert found + stream.end() == left
    assert made == calls


def test_a_call_whose_argument_has_the_closing_mark_is_read_back_as_it_was() -> None:
    call = FunctionCall("write", '{"text": "see </tool_call> and <b>"}')
    stream = ToolCallStream()
    text, [found] = stream.push(format_tool_call(call))
    assert (text, stream.end()) == ("", "")
    assert found == call


@pytest.mark.parametrize("body", ['{"name": "a", "parameters": {"x": 1}}', '{"name": "", "arguments": {}}'])
def test_a_call_whose_arguments_would_be_lost_is_text(body: str) -> None:
    assert parse_call(body) is None
    assert parse_call('{"name": "a"}') == FunctionCall("a", "{}")
