"""Tokens become text piece by piece: whole characters, no stop string, tool calls apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, final

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ESCAPED_CLOSE = "\\u003c/tool_call>"  # the same in a string of JSON
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
#: A character has at most four bytes in UTF-8, and a token at least one.
_CHARACTER_TOKENS = 4


@final
class TextStream:
    """Text of an answer's tokens, as they come.

    Args:
        decode: turns ids into text, without special tokens.
        stop_strings: the text ends before the first of them.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stop_strings
        self._ids: list[int] = []
        #: Ids before ``_start`` have no influence on what comes; those before ``_read`` were given out. Text
        #: from ``_start`` on has ``_given`` characters that were given out.
        self._start = self._read = self._given = 0
        self._held = ""
        self._stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now."""
        self._ids.append(token)
        text = self._decode(self._ids[self._start :])
        is_unfinished = text.endswith(_UNFINISHED)
        if is_unfinished and len(self._ids) - self._read < _CHARACTER_TOKENS:
            return ""
        new = text[self._given : len(text) - is_unfinished]
        self._start, self._read = self._read, len(self._ids)
        self._given = len(self._decode(self._ids[self._start :])) - is_unfinished
        return self._release(new)

    def end(self) -> str:
        """Return the text that was held back."""
        text = self._release(self._decode(self._ids[self._start :])[self._given :])
        if not self._stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        """Give out held and new text, but nothing that may be the beginning of a stop string."""
        if self._stopped:
            return ""
        text = self._held + new
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call of the model.

    Args:
        name: of the function.
        arguments: a JSON object as text.
    """

    name: str
    arguments: str


@dataclass(slots=True)
class ToolCallStream:
    """Separates ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` from other text.

    A call that is not such JSON, or has no end, stays text. White space alone before, between or behind calls
    is no text.
    """

    _held: str = field(default="", init=False)
    #: White space at the beginning or behind the last call; ``None`` once other text has followed.
    _blank: str | None = field(default="", init=False)
    _has_calls: bool = field(default=False, init=False)

    def push(self, new: str) -> tuple[str, list[FunctionCall]]:
        """Add text; returns the text and the calls that are certain now."""
        self._held += new
        text, calls = "", list[FunctionCall]()
        while True:
            before, opening, rest = self._held.partition(_OPEN)
            if not opening:
                keep = overlap(self._held, _OPEN)
                text += self._say(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return text, calls
            text += self._say(before)
            body, closing, after = rest.partition(_CLOSE)
            if not closing:
                self._held = opening + rest
                return text, calls
            call = parse_call(body)
            if call is None:
                text += self._say(opening + body + closing)
            else:
                calls.append(call)
                self._blank, self._has_calls = "", True
            self._held = after

    def end(self) -> str:
        """Return the text that was held back."""
        text, self._held = self._say(self._held), ""
        return text if self._has_calls else text + (self._blank or "")

    def _say(self, text: str) -> str:
        """Return text, but hold white space until other text follows."""
        if self._blank is None:
            return text
        text, self._blank = self._blank + text, None
        if not text.strip():
            text, self._blank = "", text
        return text


def format_tool_call(call: FunctionCall) -> str:
    """Write a call as a model writes it, for `ToolCallStream` to read.

    >>> print(format_tool_call(FunctionCall("add", '{"a": 1}')))
    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>
    """
    body = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'
    # Inside a string of the arguments it would end the call.
    return f"{_OPEN}\n{body.replace(_CLOSE, _ESCAPED_CLOSE)}\n{_CLOSE}"


def parse_call(body: str) -> FunctionCall | None:
    """Read one call; ``None`` if it is not of the form, or no client could read it.

    Python reads numbers that JSON has not, such as ``NaN``, and half characters that UTF-8 has no bytes for.

    >>> parse_call('{"name": "add", "arguments": {"a": 1}}')
    FunctionCall(name='add', arguments='{"a": 1}')
    """
    try:
        found: object = json.loads(body)
        if not isinstance(found, dict):
            return None
        call = cast("dict[str, Any]", found)
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        if "arguments" not in call and call.keys() - {"name"}:
            return None  # its arguments may have another name, and would be lost
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        _ = (name + written).encode()
    except (ValueError, RecursionError):
        return None
    return FunctionCall(name, written)


def overlap(text: str, word: str) -> int:
    """Length of the longest end of a text that is a beginning of a word, but not all of it.

    >>> overlap("as <to", "<tool>"), overlap("as", "<tool>")
    (3, 0)
    """
    longest = min(len(text), len(word) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(word[:size])), 0)
