"""Requests of OpenAI's API as observations, and texts of a model as answers to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, cast, final

from pydantic import ValidationError

from envkit.env.harness.relay import HttpAnswer, HttpRequest
from envkit.env.harness.spec import MODEL
from envkit.errors import UsageError
from envkit.openai_api.errors import error_object, field_error
from envkit.openai_api.messages import template_message
from envkit.openai_api.replies import ChatReply, Piece, TokenLogprob
from envkit.openai_api.schemas import ChatBody
from envkit.openai_api.text import FunctionCall, ToolCallStream

#: Longest chat of a harness, in bytes: its whole history.
MAX_CHAT_BYTES: Final = 2**20
#: Levels of lists and objects in a chat. Python reads JSON of about a thousand, and fewer within many calls.
_MAX_LEVELS: Final = 100


@dataclass(frozen=True, slots=True)
class _Said:
    """A model's whole answer, as `ChatReply` reads it."""

    text: str
    calls: list[FunctionCall]
    finish: str
    logprobs: list[TokenLogprob] | None = None
    ids: tuple[int, ...] = ()


@final
class Chat:
    """A request for a chat completion that waits for a model's answer.

    Args:
        body: the request.
        number: of the request in the episode. The ids in the answer follow from it, so that the program reads
            the same whenever it is answered the same.

    Raises:
        UsageError: arguments of an earlier tool call are not JSON, or the chat is nested too deep.
        ValueError: JSON or UTF-8 has no form for a number or text in it, such as NaN or half a character.
    """

    def __init__(self, body: ChatBody, number: int) -> None:
        self._body, self._number = body, number
        self._with_tools = bool(body.tools) and body.tool_choice != "none"
        seen: dict[str, Any] = {"messages": [template_message(message) for message in body.messages]}
        if self._with_tools:
            seen["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        if _is_deeper(seen, _MAX_LEVELS):
            raise UsageError(f"tools or arguments of tool calls have more than {_MAX_LEVELS} levels")
        #: A JSON object with ``messages`` and ``tools``, as chat templates read them.
        self.observation = json.dumps(seen, ensure_ascii=False, allow_nan=False)
        self.size_bytes = len(self.observation.encode())

    def answer(self, text: str) -> HttpAnswer:
        """Build the response for a model's text. Its ``usage`` is 0, because tokens are not known here."""
        found = (text.find(stop) for stop in self._body.stop_strings)
        text = text[: min((at for at in found if at >= 0), default=None)]
        calls: list[FunctionCall] = []
        if self._with_tools:
            stream = ToolCallStream()
            text, calls = stream.push(text)
            text += stream.end()
            if self._body.parallel_tool_calls is False:
                calls = calls[:1]
        said = _Said(text, calls, "tool_calls" if calls else "stop")
        reply = ChatReply(self._body.model, number=self._number)
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if not self._body.stream:
            return HttpAnswer(json.dumps(reply.whole([said], usage)))
        piece = Piece(said.text, (*said.calls,), None, said.finish)
        chunks = [*reply.opening(0), *reply.chunks(0, piece)]
        options = self._body.stream_options
        if options is not None and options.include_usage:
            chunks.append(reply.usage(usage))
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return HttpAnswer(f"{events}data: [DONE]\n\n", type="text/event-stream")


def read_request(request: HttpRequest, number: int) -> Chat | HttpAnswer:
    """Read a request of a harness.

    Args:
        request: the request.
        number: of the chat in the episode, if it is one.

    Returns:
        A chat that waits for the model, or a response that needs none: the list of models, or an error.
    """
    path = request.path.partition("?")[0].rstrip("/")
    if path.endswith("/models") and request.method == "GET":
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "envkit"}]
        return HttpAnswer(json.dumps({"object": "list", "data": models}))
    if not (path.endswith("/chat/completions") and request.method == "POST"):
        return _refusal(404, f"there is no {request.method} {path}; there is POST /v1/chat/completions")
    # To read a body takes many times its memory, and time in which no other episode goes on.
    if len(request.body) > MAX_CHAT_BYTES:
        return _refusal(413, f"the body has {len(request.body):,} bytes; at most {MAX_CHAT_BYTES:,} are read")
    try:
        body = ChatBody.model_validate_json(request.body)
        if (body.n or 1) > 1 or body.logprobs or body.return_token_ids:
            return _refusal(400, "a harness is answered once a request, without log-probabilities and ids")
        if body.response_format not in (None, {"type": "text"}):
            return _refusal(400, "response_format: only text is supported")
        chat = Chat(body, number)
        if chat.size_bytes > MAX_CHAT_BYTES:
            return _refusal(
                413, f"the chat has {chat.size_bytes:,} bytes; at most {MAX_CHAT_BYTES:,} are read"
            )
    except ValidationError as error:
        faults = error.errors()
        field, why = field_error(
            faults, None if faults[0]["type"] == "json_invalid" else json.loads(request.body)
        )
        return _refusal(400, f"{field}: {why}" if field else why)
    except UsageError as error:
        return _refusal(400, str(error))
    except ValueError as error:
        return _refusal(400, f"tools or arguments of tool calls cannot be passed on: {error}")
    return chat


def _is_deeper(value: Any, levels: int) -> bool:
    """True if JSON has more than some levels of lists and objects."""
    if isinstance(value, dict):
        value = [*cast("dict[str, Any]", value).values()]
    return isinstance(value, list) and (
        levels == 0 or any(_is_deeper(each, levels - 1) for each in cast("list[Any]", value))
    )


def _refusal(status: int, message: str) -> HttpAnswer:
    return HttpAnswer(json.dumps(error_object(status, message)), status)
