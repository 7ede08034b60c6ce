"""Replies in OpenAI's form, whole and as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from envkit.openai_api.text import FunctionCall

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text with the model's log-probabilities.

    Args:
        token: its text.
        logprob: natural log of its probability.
        top: texts and log-probabilities of the most likely tokens there.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an answer that one token adds."""

    text: str = ""
    calls: tuple[FunctionCall, ...] = ()
    logprob: TokenLogprob | None = None
    finish: str | None = None
    ids: tuple[int, ...] = ()


class WholeAnswer(Protocol):
    """A whole answer."""

    @property
    def text(self) -> str: ...
    @property
    def calls(self) -> Sequence[FunctionCall]: ...
    @property
    def finish(self) -> str | None: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[TokenLogprob] | None: ...


class ReplyForm(Protocol):
    """The form of one endpoint."""

    def whole(self, choices: Sequence[WholeAnswer], usage: JsonObject) -> JsonObject:
        """The reply to a request without a stream."""
        ...

    def opening(self, index: int) -> Iterator[JsonObject]:
        """Chunks before the first token of a choice."""
        ...

    def chunks(self, index: int, piece: Piece) -> Iterator[JsonObject]:
        """Chunks of a token."""
        ...

    def usage(self, usage: JsonObject) -> JsonObject:
        """The last chunk, if the request asked for usage."""
        ...


@final
class ChatReply(ReplyForm):
    """Replies of ``/v1/chat/completions``.

    Args:
        model: that answers.
        prompt: ids of the prompt, if the reply is to tell ids.
        number: of the reply among those of a program that must do the same again: its id and those of its
            calls follow from it, and its time is 0. ``None`` for a random id, and the time of day.
    """

    def __init__(self, model: str, prompt: Sequence[int] | None = None, number: int | None = None) -> None:
        self._prompt = prompt
        self._name = secrets.token_hex(12) if number is None else str(number)
        created = int(time.time()) if number is None else 0
        self._head = {"id": f"chatcmpl-{self._name}", "created": created, "model": model}
        #: Calls sent so far, by choice, and in all.
        self._calls: dict[int, int] = {}
        self._calls_sent = 0

    def whole(self, choices: Sequence[WholeAnswer], usage: JsonObject) -> JsonObject:
        made: list[JsonObject] = []
        for index, choice in enumerate(choices):
            calls = [self._call(call) for call in choice.calls]
            message: JsonObject = {"role": "assistant", "content": choice.text or (None if calls else "")}
            message["refusal"] = None
            if calls:
                message["tool_calls"] = calls
            logprobs = _chat_logprobs(choice.logprobs)
            made.append(
                {
                    "index": index,
                    "message": message,
                    "finish_reason": choice.finish,
                    "logprobs": logprobs,
                    **self._ids(choice.ids),
                }
            )
        head = {**self._head, "object": "chat.completion", **self._prompt_ids()}
        return {**head, "choices": made, "usage": usage}

    def opening(self, index: int) -> Iterator[JsonObject]:
        yield {**self._chunk(index, {"role": "assistant", "content": ""}), **self._prompt_ids()}

    def chunks(self, index: int, piece: Piece) -> Iterator[JsonObject]:
        logprobs = _chat_logprobs([piece.logprob] if piece.logprob else None)
        ids = self._ids(piece.ids)
        if piece.text or logprobs or ids:
            yield self._chunk(index, {"content": piece.text}, logprobs=logprobs, ids=ids)
        for call in piece.calls:
            number = self._calls.get(index, 0)
            self._calls[index] = number + 1
            yield self._chunk(index, {"tool_calls": [{"index": number, **self._call(call)}]})
        if piece.finish:
            yield self._chunk(index, {}, piece.finish)

    def usage(self, usage: JsonObject) -> JsonObject:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _call(self, call: FunctionCall) -> JsonObject:
        self._calls_sent += 1
        return {
            "id": f"call_{self._name}_{self._calls_sent}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _prompt_ids(self) -> JsonObject:
        return {} if self._prompt is None else {"prompt_token_ids": [*self._prompt]}

    def _ids(self, ids: Sequence[int]) -> JsonObject:
        return {} if self._prompt is None else {"token_ids": [*ids]}

    def _chunk(
        self,
        index: int,
        delta: JsonObject,
        finish: str | None = None,
        logprobs: JsonObject | None = None,
        ids: JsonObject | None = None,
    ) -> JsonObject:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice | (ids or {})]}


@final
class CompletionReply(ReplyForm):
    """Replies of ``/v1/completions``.

    Args:
        model: that answers.
        prompts: ids of each choice's prompt, if the reply is to tell ids.
    """

    def __init__(self, model: str, prompts: Sequence[Sequence[int]] | None = None) -> None:
        self._prompts = prompts
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        #: Characters of the tokens sent so far, by choice.
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[WholeAnswer], usage: JsonObject) -> JsonObject:
        made = [
            {
                "index": index,
                "text": choice.text,
                "finish_reason": choice.finish,
                "logprobs": self._logprobs(index, choice.logprobs),
                **self._prompt_ids(index),
                **self._ids(choice.ids),
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": made, "usage": usage}

    def opening(self, index: int) -> Iterator[JsonObject]:
        if self._prompts is not None:
            choice = {"index": index, "text": "", "finish_reason": None, "logprobs": None}
            yield {**self._head, "choices": [choice | self._prompt_ids(index)]}

    def chunks(self, index: int, piece: Piece) -> Iterator[JsonObject]:
        logprobs = self._logprobs(index, [piece.logprob] if piece.logprob else None)
        ids = self._ids(piece.ids)
        if piece.text or logprobs or piece.finish or ids:
            choice = {"index": index, "text": piece.text, "finish_reason": piece.finish, "logprobs": logprobs}
            yield {**self._head, "choices": [choice | ids]}

    def usage(self, usage: JsonObject) -> JsonObject:
        return {**self._head, "choices": [], "usage": usage}

    def _prompt_ids(self, index: int) -> JsonObject:
        return {} if self._prompts is None else {"prompt_token_ids": [*self._prompts[index]]}

    def _ids(self, ids: Sequence[int]) -> JsonObject:
        return {} if self._prompts is None else {"token_ids": [*ids]}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob] | None) -> JsonObject | None:
        if tokens is None:
            return None
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            # Of tokens that read the same, the likeliest stays. The drawn one is always among them.
            "top_logprobs": [
                {token.token: token.logprob} | dict(sorted(token.top, key=lambda entry: entry[1]))
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> JsonObject | None:
    if tokens is None:
        return None
    return {
        "content": [
            {
                **_one(token.token, token.logprob),
                "top_logprobs": [_one(text, logprob) for text, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _one(token: str, logprob: float) -> JsonObject:
    """A token; its bytes are not known if it is a part of a character."""
    is_part = "\N{REPLACEMENT CHARACTER}" in token
    return {"token": token, "logprob": logprob, "bytes": None if is_part else [*token.encode()]}
