"""Build chat-completion requests and parse their answers. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, cast

from envkit.agents.cards import Card
from envkit.tools import format_call
from envkit.types import Usage

#: What a provider may add to a prompt before the model reads it: its own words about tools, marks of roles.
ADDED_TOKENS = 1000
#: Stands for an empty text, which several providers refuse in an assistant's message.
_NOTHING = "(no answer)"
_ONE_AT_A_TIME = "Not carried out: one action at a time. Only the first call was."

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args:
        text: the action.
        stop: ``"stop"`` or ``"length"``.
        usage: what it cost.
        message: the assistant's message as it goes back to the provider, opaque fields included.
        remark: what is odd about it, for people.
    """

    text: str
    stop: str
    usage: Usage
    message: Message
    remark: str = ""


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """A request without a usable answer.

    Args:
        reason: for people, one line, without the key.
        billed: the provider may ask for money for it.
        retryable: trying again may help.
        single_request: if it is refused, this request may be the only one that is.
        context_overflow: it is refused because the conversation does not fit the model.
        retry_after_s: seconds that the provider wants to be left alone, ``None`` if it does not say.
    """

    reason: str
    billed: bool = False
    retryable: bool = True
    single_request: bool = False
    context_overflow: bool = False
    retry_after_s: float | None = None


def request_body(
    card: Card,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    temperature: float,
    max_completion_tokens: int,
) -> dict[str, Any]:
    """The body of a request."""
    body: dict[str, Any] = {"model": card.model, "messages": [*messages], **card.request}
    body[card.token_limit] = max_completion_tokens
    if card.temperature:
        body["temperature"] = temperature
    if tools:
        body["tools"] = [*tools]
    return body


def request_digest(card: Card, request: Mapping[str, Any]) -> str:
    """Equal for equal requests to the same place."""
    text = json.dumps([card.base_url, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def max_usage(card: Card, request: Mapping[str, Any]) -> Usage:
    """Upper bound of the tokens of a request, at one token per byte."""
    text = json.dumps(request, ensure_ascii=False)
    return Usage(len(text.encode()) + ADDED_TOKENS, int(request[card.token_limit]))


def observation_messages(messages: Sequence[Message], observation: str) -> list[Message]:
    """The messages that bring an observation: to the tool that the last message called, else the user's."""
    calls: list[Message] = messages[-1].get("tool_calls", [])
    if not calls:
        return [{"role": "user", "content": observation}]
    texts = [observation] + [_ONE_AT_A_TIME] * (len(calls) - 1)
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": text}
        for call, text in zip(calls, texts, strict=True)
    ]


def context_overflow_reply(failure: RequestFailure, seconds: float) -> Reply:
    """Reply for context overflow: empty text, ``stop="length"``."""
    told: Message = {"role": "assistant", "content": _NOTHING}
    return Reply("", "length", Usage(seconds=seconds), told, failure.reason)


def read_reply(body: Any, most: Usage, seconds: float, *, tools: bool) -> Reply | RequestFailure:
    """Parse an answer.

    Args:
        body: decoded JSON.
        most: what it may have cost; stands in for a usage that cannot be.
        seconds: that it took.
        tools: whether tools were offered.
    """
    try:
        choice = body["choices"][0]
        message, finish = dict(choice["message"]), choice.get("finish_reason")
        calls = [_call(dict(call), i) for i, call in enumerate(message.get("tool_calls") or ()) if tools]
        text = _text(message.get("content")) or _text(message.get("refusal"))
    except (LookupError, TypeError, ValueError, AttributeError):
        return RequestFailure(f"not a chat completion: {body!r:.200}", billed=True)
    told: Message = {"role": "assistant", "content": text or _NOTHING}
    if finish == "content_filter":
        text, told["content"] = "", _NOTHING
    elif calls:
        text = calls[0][0]
        told = {"content": None, **_said(message), "tool_calls": [call for _, call in calls]}
    elif tools:
        told = {**_said(message), **told}
    stop = "length" if finish == "length" else "stop"
    given = body.get("usage")
    if (usage := _usage(given, seconds)) is None:
        remark = f"the most possible is counted, for the usage cannot be: {given!r:.200}"
        return Reply(text, stop, replace(most, seconds=seconds), told, remark)
    is_more = usage.prompt_tokens > most.prompt_tokens or usage.completion_tokens > most.completion_tokens
    remark = f"the usage is more than was asked for: {given!r:.200}" if is_more else ""
    return Reply(text, stop, usage, told, remark)


def _said(message: Message) -> Message:
    """The fields that say something: providers refuse some that are empty, although they sent them so."""
    return {**{key: value for key, value in message.items() if value not in (None, [])}, "role": "assistant"}


def _text(content: object) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return "".join(str(part["text"]) for part in parts if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("neither text nor parts")


def _call(call: Message, number: int) -> tuple[str, Message]:
    """The action that a tool call is, and the call as it can be sent back."""
    name, given = str(call["function"]["name"]), call["function"].get("arguments") or "{}"
    try:
        arguments: object = cast("object", given) if isinstance(given, dict) else json.loads(given)
        if not isinstance(arguments, dict):
            raise ValueError("no object")
        action = format_call(name, cast("dict[str, Any]", arguments))
        said = given if isinstance(given, str) else json.dumps(given)
    except (ValueError, RecursionError):
        # The environment says what is wrong with it; a provider might refuse to read it again.
        action, said = f"{name}({given})", "{}"
    named = {"id": call.get("id") or f"call_{number}", "type": "function"}
    return action, {**call, **named, "function": {**call["function"], "arguments": said}}


def _usage(given: Any, seconds: float) -> Usage | None:
    """The usage that a provider gives, and bills, if it is one."""
    if not isinstance(given, dict):
        return None
    counts = cast("dict[str, Any]", given)
    details: Any = counts.get("prompt_tokens_details")
    known = cast("dict[str, Any]", details) if isinstance(details, dict) else {}
    # The second is DeepSeek's own.
    cached: Any = known.get("cached_tokens") or counts.get("prompt_cache_hit_tokens") or 0
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    total = counts.get("total_tokens") or 0
    if not (_is_count(prompt) and _is_count(completion) and _is_count(cached) and _is_count(total)):
        return None
    # Google leaves what was thought, and is paid for, out of the completion, but not out of the total.
    completion = max(completion, total - prompt)
    if cached > prompt:
        return None
    return Usage(prompt, completion, seconds, cached)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**32  # more than any model reads
