"""Append-only chat rendering: each turn adds token ids, and no text is tokenized twice.

The chat template is rendered once with placeholders and cut at them. The pieces between may hold special
tokens. Observations are encoded with special tokens disabled, so a file that contains ``<|im_end|>`` stays
text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, final

from envkit.engine.prefix import common_prefix_length
from envkit.errors import ModelError
from envkit.models import model_errors
from envkit.openai_api.text import FunctionCall, ToolCallStream

# Placeholders that no template contains and no tokenizer trims.
_SYSTEM, _FIRST, _ANSWER, _NEXT = (f"\u2402{part}\u2403" for part in ("system", "first", "answer", "next"))

#: Fixes the date in templates that print it: a run resumed tomorrow must render the same prompts.
_FIXED_DATE = "{% macro strftime_now(format) %}01 January 2025{% endmacro %}{{ '' }}"


@final
class ChatRenderer:
    """Turns observations into token ids for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ModelError: there is no chat template or end-of-turn token, or the template is invalid or not a plain
            sequence of system, user and assistant turns.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no chat template or end-of-turn token; use an instruct model")
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        # The generation prompt may differ from what the template puts before an earlier answer.
        opening, after_system, before_answer = _cut(tokenizer, messages[:2])
        *_, before_next, before_next_answer = _cut(tokenizer, messages)
        self._tokenizer = tokenizer
        added: Any = tokenizer.added_tokens_decoder.values()
        self._special = [str(token.content) for token in added if token.special]
        self.stop_id: int = tokenizer.eos_token_id
        self._opening, self._after_system = self._template(opening), self._template(after_system)
        self._before_answer = self._template(before_answer)
        # The end-of-turn token that closes an answer is sampled by the model itself.
        end = str(tokenizer.eos_token)
        if not before_next.startswith(end):
            raise ModelError(f"the chat template does not close an answer with {end!r}")
        self._before_next = self._template(before_next.removeprefix(end))
        self._before_next_answer = self._template(before_next_answer)

    def _template(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def first(self, system: str, observation: str) -> tuple[int, ...]:
        """Ids of system message and first observation, up to where the answer begins."""
        before = (*self._opening, *self._plain(system), *self._after_system)
        return (*before, *self._plain(observation), *self._before_answer)

    def conversation(
        self, system: str, exchanges: Sequence[tuple[str, str]], observation: str
    ) -> tuple[int, ...]:
        """Ids of a system message, of given observations with their answers, and of a last observation."""
        observations = [*(shown for shown, _ in exchanges), observation]
        ids = self.first(system, observations[0])
        for (_, answer), following in zip(exchanges, observations[1:], strict=True):
            ids += self.answer(answer) + self.following(following, closed=True)
        return ids

    def following(self, observation: str, *, closed: bool) -> tuple[int, ...]:
        """Ids to append after an answer; ``closed`` is True if it ended with the end-of-turn id."""
        close = () if closed else (self.stop_id,)
        return (*close, *self._before_next, *self._plain(observation), *self._before_next_answer)

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of a given answer with its end-of-turn id, for supervised training."""
        return (*self._plain(text), self.stop_id)

    def messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        sampled: Mapping[str, tuple[int, ...]] | None = None,
    ) -> tuple[int, ...]:
        """Ids of any conversation that the chat template can render, up to where the answer begins.

        Args:
            messages: with ``role``, ``content`` and what else the template reads, such as ``tool_calls``.
            tools: JSON schemas of functions; the template says how they are told.
            sampled: text of an earlier answer -> its sampled ids, which then stand in place of those that
                the text would be encoded to.

        Raises:
            UnreadableError: a special token's text stands outside of contents, as in a tool's description.
            ModelError: the template refuses the conversation, leaves out a message, or knows no tools.
        """
        with model_errors("the messages cannot be encoded"):
            others = json.dumps(
                [tools, [{**message, "content": ""} for message in messages]], ensure_ascii=False
            )
        if found := [token for token in self._special if token in others]:
            raise UnreadableError(f"{found[0]!r} may stand in the content of messages only")
        for field, given in (("tools", tools), ("tool_calls", any(map(_has_calls, messages)))):
            if given and not self.reads(field):
                raise ModelError(f"the chat template of this model knows no {field.replace('_', ' ')}")
        marked, contents, known = list[dict[str, Any]](), dict[str, str](), dict[str, tuple[int, ...]]()
        for number, message in enumerate(messages):
            text = message.get("content")
            if text:  # templates test for empty ones
                contents[mark := f"\u2402message {number}\u2403"] = str(text)
                if message["role"] == "assistant" and text in (sampled or {}):
                    known[mark] = (sampled or {})[text]
                marked.append({**message, "content": mark})
            else:
                marked.append(dict(message))
        rendered = _render(self._tokenizer, marked, tools, "the chat template refuses these messages")
        pieces = re.split("(\u2402message [0-9]+\u2403)", rendered)
        if missing := contents.keys() - set(pieces):
            raise ModelError(f"the chat template leaves out the content of {min(missing)[1:-1]}")
        ids: list[int] = []
        with model_errors("the messages cannot be encoded"):
            for piece in pieces:
                content = contents.get(piece)
                encoded = self._template(piece) if content is None else self._plain(content)
                ids += known.get(piece, encoded)
        return tuple(ids)

    def reads(self, field: str) -> bool:
        """True if the chat template mentions a field. It silently drops fields that it does not mention."""
        return field in str(self._tokenizer.get_chat_template())

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text without a chat template. Special tokens in it stay text."""
        with model_errors("the text cannot be encoded"):
            return self._plain(text)

    def text(self, ids: tuple[int, ...]) -> str:
        """The text of sampled ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class UnreadableError(ModelError):
    """The model cannot read a conversation that follows from its own answers, or that a task begins with."""


def _has_calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


@final
class Conversation:
    """The token ids of one conversation. Observations and answers are appended in turn, beginning with one.

    Args:
        renderer: turns texts into ids.
        system: the system message.
        max_context_length: longest context of a turn, in tokens. A longer one is truncated to the first
            prompt and the latest observation, whatever their length.
        longest: tokens that the model reads at most, the answer included.
        shots: observations with their right answers, which stand before the first observation.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        system: str,
        max_context_length: int = sys.maxsize,
        longest: int = sys.maxsize,
        shots: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._renderer, self._system, self._shots = renderer, system, shots
        self._max_context_length, self._longest = max_context_length, longest
        self._closed = True
        #: All ids that the next answer sees.
        self.ids: tuple[int, ...] = ()
        #: The part of `ids` that came with the latest observation; how many earlier ids stand before it if
        #: the context was truncated, else ``None``, as in `envkit.types.Tokens`.
        self.new_ids: tuple[int, ...] = ()
        self.kept: int | None = None
        #: Length of the first prompt, and number of answers.
        self.first_prompt = self.turns = 0

    def observe(self, observation: str) -> None:
        """Append an observation, and truncate a context that has become too long.

        Raises:
            UnreadableError: it is too long for the model. The conversation stays as it was.
        """
        kept = None
        if not self.turns:
            new_ids = self._renderer.conversation(self._system, self._shots, observation)
            self.first_prompt = len(new_ids)
        else:
            new_ids = self._renderer.following(observation, closed=self._closed)
            if len(self.ids) + len(new_ids) > self._max_context_length:
                # closed=False: the dropped answers are rendered as one empty answer.
                new_ids = self._renderer.following(observation, closed=False)
                kept = self.first_prompt
        ids = (*self.ids[:kept], *new_ids)
        if len(ids) >= self._longest:
            raise UnreadableError(f"the conversation has {len(ids)} tokens; the model reads {self._longest}")
        self.ids, self.new_ids, self.kept = ids, new_ids, kept

    def answer(self, ids: Sequence[int]) -> None:
        """Append an answer. A stop string ends an answer, but does not close the turn."""
        self.ids = (*self.ids, *ids)
        self._closed = ids[-1] == self._renderer.stop_id
        self.turns += 1


@final
class Chats:
    """The token ids of the chats that a program asks for, one after the other.

    An observation is a whole chat, see `envkit.Env.harness`. Where it goes on from the one before, only what
    is new is appended. Otherwise the ids branch where the two begin to differ. An earlier answer that comes
    back unchanged keeps its sampled ids.

    Args:
        renderer: turns messages into ids.
        max_context_length: longest context of a turn, in tokens. Of a longer one, ids behind the first chat
            are left out. A context that is no longer than the first chat stays whole.
        longest: tokens that the model reads at most, the answer included.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        max_context_length: int = sys.maxsize,
        longest: int = sys.maxsize,
    ) -> None:
        self._renderer, self._max_context_length, self._longest = renderer, max_context_length, longest
        self._sampled: dict[str, tuple[int, ...]] = {}
        #: Texts of answers, by what programs get of those with tool calls: other text, and the calls.
        self._texts: dict[tuple[str, tuple[FunctionCall, ...]], str] = {}
        #: As in `Conversation`.
        self.ids: tuple[int, ...] = ()
        self.new_ids: tuple[int, ...] = ()
        self.kept: int | None = None
        self.first_prompt = self.turns = 0

    def observe(self, observation: str) -> None:
        """Read a chat.

        Raises:
            UnreadableError: it is too long, or a special token stands outside of contents.
            ModelError: the chat template refuses it.
        """
        chat = json.loads(observation)
        messages = [self._as_sampled(message) for message in chat["messages"]]
        ids = self._renderer.messages(messages, chat.get("tools", ()), self._sampled)
        if self.turns and len(ids) > max(self._max_context_length, self.first_prompt):
            latest = max(self._max_context_length - self.first_prompt, 1)
            ids = ids[: self.first_prompt] + ids[-latest:]
        if len(ids) >= self._longest:
            raise UnreadableError(f"the chat has {len(ids)} tokens; the model reads {self._longest}")
        kept = common_prefix_length(self.ids, ids[:-1])  # one id at least is new: the next token follows it
        self.kept = kept if kept < len(self.ids) else None
        self.ids, self.new_ids = ids, ids[kept:]
        self.first_prompt = self.first_prompt or len(ids)

    def answer(self, ids: Sequence[int]) -> None:
        """Append an answer."""
        self.ids = (*self.ids, *ids)
        self.turns += 1
        sampled = tuple(ids[:-1] if ids[-1] == self._renderer.stop_id else ids)
        text = self._renderer.text(sampled)
        self._sampled[text] = sampled
        stream = ToolCallStream()
        before, calls = stream.push(text)
        self._texts[before + stream.end(), tuple(calls)] = text

    def _as_sampled(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message whose content is the whole text of an answer, if it is one that had tool calls."""
        calls = tuple(_call(each["function"]) for each in message.get("tool_calls", ()))
        is_answer = message["role"] == "assistant" and calls
        text = self._texts.get((message["content"], calls)) if is_answer else None
        return message if text is None else {"role": "assistant", "content": text}


def _call(function: Mapping[str, Any]) -> FunctionCall:
    """A call of a message, in the one spelling that `ToolCallStream` gives it."""
    return FunctionCall(function["name"], json.dumps(function["arguments"], ensure_ascii=False))


def _cut(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[str]:
    """Render the template and split it at the messages' contents, up to the generation prompt.

    Raises:
        ModelError: the template fails, or leaves out a message.
    """
    text = _render(tokenizer, messages, (), "the chat template fails on a system, user and assistant message")
    pieces: list[str] = []
    for message in messages:
        before, found, text = text.partition(message["content"])
        if not found:
            raise ModelError("the chat template leaves out a system, user or assistant message")
        pieces.append(before)
    return [*pieces, text]


def _render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], problem: str
) -> str:
    """Render the template, up to the generation prompt.

    Raises:
        ModelError: it fails; the message begins with ``problem``.
    """
    with model_errors(problem):
        template = _FIXED_DATE + str(tokenizer.get_chat_template())
        return str(
            tokenizer.apply_chat_template(
                [*messages],
                tools=[*tools] or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )
