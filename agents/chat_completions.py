"""Build chat-completion requests and parse their answers. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, cast

from envkit.agents.cards import Card
from envkit.env.tools import format_call
from envkit.openai_api.text import FunctionCall, format_tool_call
from envkit.types import Usage

#: Tokens that a provider may add to a prompt, such as role markers and instructions for tools.
ADDED_TOKENS = 1000
#: Content of an empty assistant message. Several providers refuse an empty text.
_NO_ANSWER = "(no answer)"
_WITH_THE_FIRST = "The result of all calls is that of the first."

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer of the API.

    Args:
        text: the action.
        stop: ``"stop"`` or ``"length"``.
        usage: tokens and seconds.
        message: the assistant's message as the next request repeats it, opaque fields included.
        remark: a note for people if the answer is unusual, else empty.
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
        reason: one line for people, without the API key.
        billed: True if the provider may charge for it.
        retryable: True if another attempt may succeed.
        single_request: True if the refusal may concern this request alone, not all requests.
        context_overflow: True if the conversation does not fit the model's context.
        retry_after_s: seconds to wait, as the provider asks; ``None`` if it does not say.
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
    """Build the body of a request."""
    body: dict[str, Any] = {"model": card.model, "messages": [*messages], **card.request}
    body[card.token_limit] = max_completion_tokens
    if card.temperature:
        body["temperature"] = temperature
    if tools:
        body["tools"] = [*tools]
    return body


def request_digest(card: Card, request: Mapping[str, Any]) -> str:
    """SHA-256 of a request and its address, as hex."""
    text = json.dumps([card.base_url, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def max_usage(card: Card, request: Mapping[str, Any]) -> Usage:
    """Upper bound of a request's usage: one prompt token per byte, and a completion of the full limit."""
    text = json.dumps(request, ensure_ascii=False)
    return Usage(len(text.encode()) + ADDED_TOKENS, int(request[card.token_limit]))


def observation_messages(messages: Sequence[Message], observation: str) -> list[Message]:
    """Build the messages for an observation: tool results if the last message has tool calls, else a user's.

    The environment answers all calls of a message with one observation. The first call gets it.
    """
    calls: list[Message] = messages[-1].get("tool_calls", [])
    if not calls:
        return [{"role": "user", "content": observation}]
    texts = [observation] + [_WITH_THE_FIRST] * (len(calls) - 1)
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": text}
        for call, text in zip(calls, texts, strict=True)
    ]


def tool_calls_of(message: Message) -> tuple[FunctionCall, ...]:
    """Return the tool calls of an assistant's message, with arguments in one spelling.

    In ASCII: a provider's text may have half a character, which UTF-8 has no bytes for.
    """
    return tuple(
        FunctionCall(
            call["function"]["name"],
            json.dumps(json.loads(call["function"]["arguments"])),
        )
        for call in message.get("tool_calls") or ()
    )


def chat_text(message: Message, text: str) -> str:
    """Write an answer as a local model does: its text, then its tool calls.

    Args:
        message: the provider's message.
        text: the answer's text, if it has no tool calls.
    """
    calls = tool_calls_of(message)
    if not calls:
        return text
    return "\n".join([*filter(None, [_text(message.get("content"))]), *map(format_tool_call, calls)])


#: Text without surrounding white space, and tool calls: equal for an answer and for what a program repeats.
AnswerKey = tuple[str, tuple[FunctionCall, ...]]


def answer_key(message: Message) -> AnswerKey:
    """Return what a program that repeats an assistant's message does not change."""
    return _text(message.get("content")).strip(), tool_calls_of(message)


def with_opaque(message: Message, answers: Mapping[AnswerKey, Message]) -> Message:
    """Return a message of a program as the provider wrote it, if it is one of its answers.

    Args:
        message: in the API's form.
        answers: the provider's messages by their `answer_key`.
    """
    answer = answers.get(answer_key(message)) if message["role"] == "assistant" else None
    if answer is None:
        return message
    # The program knows the calls by other ids than the provider does.
    ids = [call.get("id") for call in message.get("tool_calls", ())]
    calls = [{**call, "id": known} for call, known in zip(answer.get("tool_calls", ()), ids, strict=True)]
    return {**answer, "tool_calls": calls} if calls else answer


def empty_reply(failure: RequestFailure, usage: Usage) -> ChatAnswer:
    """Reply for a request that is too long, or refused for itself alone: empty text, ``stop="length"``."""
    message: Message = {"role": "assistant", "content": _NO_ANSWER}
    return ChatAnswer("", "length", usage, message, failure.reason)


def read_reply(body: Any, most: Usage, seconds: float, *, tools: bool) -> ChatAnswer | RequestFailure:
    """Parse an answer.

    Args:
        body: decoded JSON.
        most: the highest possible usage, counted if the body has no plausible one.
        seconds: duration of the request.
        tools: True if tools were offered.
    """
    try:
        choice = body["choices"][0]
        message, finish = dict(choice["message"]), choice.get("finish_reason")
        calls = [_call(dict(call), i) for i, call in enumerate(message.get("tool_calls") or ()) if tools]
        text = _text(message.get("content")) or _text(message.get("refusal"))
    except (LookupError, TypeError, ValueError, AttributeError):
        return RequestFailure(f"not a chat completion: {body!r:.200}", billed=True)
    returned: Message = {"role": "assistant", "content": text or _NO_ANSWER}
    if finish == "content_filter":
        text, returned["content"] = "", _NO_ANSWER
    elif calls:
        text = "\n".join(action for action, _ in calls)
        returned = {"content": None, **_without_empty(message), "tool_calls": [call for _, call in calls]}
    elif tools:
        returned = {**_without_empty(message), **returned}
    stop = "length" if finish == "length" else "stop"
    reported = body.get("usage")
    if (usage := _usage(reported, seconds)) is None:
        remark = (
            f"the highest possible usage is counted, because the reported one is wrong: {reported!r:.200}"
        )
        return ChatAnswer(text, stop, replace(most, seconds=seconds), returned, remark)
    is_more = usage.prompt_tokens > most.prompt_tokens or usage.completion_tokens > most.completion_tokens
    remark = f"the usage is above the request's limit: {reported!r:.200}" if is_more else ""
    return ChatAnswer(text, stop, usage, returned, remark)


def _without_empty(message: Message) -> Message:
    """The message without empty fields. Providers send some of these, but refuse them in a request."""
    return {**{key: value for key, value in message.items() if value not in (None, [])}, "role": "assistant"}


def _text(content: object) -> str:
    """Join the text parts of a message's content."""
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return "".join(str(part["text"]) for part in parts if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("neither text nor parts")


def _call(call: Message, number: int) -> tuple[str, Message]:
    """Turn a tool call into an action, and into the call that the next request repeats."""
    name, raw = str(call["function"]["name"]), call["function"].get("arguments") or "{}"
    try:
        arguments: object = cast("object", raw) if isinstance(raw, dict) else json.loads(raw)
        if not isinstance(arguments, dict):
            raise ValueError("no object")
        action = format_call(name, cast("dict[str, Any]", arguments))
        text = raw if isinstance(raw, str) else json.dumps(raw)
    except (ValueError, RecursionError):
        # The environment answers what is wrong. The provider gets {}: it may refuse the broken text.
        action, text = f"{name}({raw})", "{}"
    named = {"id": call.get("id") or f"call_{number}", "type": "function"}
    return action, {**call, **named, "function": {**call["function"], "arguments": text}}


def _usage(reported: Any, seconds: float) -> Usage | None:
    """Parse the usage that a provider reports and bills; ``None`` if it cannot be right."""
    if not isinstance(reported, dict):
        return None
    counts = cast("dict[str, Any]", reported)
    details: Any = counts.get("prompt_tokens_details")
    known = cast("dict[str, Any]", details) if isinstance(details, dict) else {}
    # prompt_cache_hit_tokens is DeepSeek's name.
    cached: Any = known.get("cached_tokens") or counts.get("prompt_cache_hit_tokens") or 0
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    total = counts.get("total_tokens") or 0
    if not (_is_count(prompt) and _is_count(completion) and _is_count(cached) and _is_count(total)):
        return None
    # Google counts billed reasoning tokens in the total, but not in the completion.
    completion = max(completion, total - prompt)
    if cached > prompt:
        return None
    return Usage(prompt, completion, seconds, cached)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**32  # more than any model reads
