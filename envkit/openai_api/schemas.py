"""Bodies of requests, by the names of OpenAI's API.

A field that would change the answer and is not supported is refused, never ignored. A value that changes
nothing, such as ``null``, is accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

_T = TypeVar("_T")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"additionalProperties": {"type": "null"}})

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, found: Any) -> Any:
        """Drop unknown fields that are null, and all others but the first.

        Each makes an error, and many would hold up the server.
        """
        if not isinstance(found, dict):
            return found
        fields = cast("dict[str, Any]", found)
        if fields.keys() <= cls.model_fields.keys():  # fast, for a body may have a hundred thousand of these
            return fields
        unknown = next(
            (name for name, value in fields.items() if name not in cls.model_fields and value is not None),
            None,
        )
        return {name: value for name, value in fields.items() if name in cls.model_fields or name == unknown}


#: Setting of a list: validation ends at its first wrong element, instead of making an error for each.
_FIRST_FAULT = Field(fail_fast=True)


class TextPart(_Body):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class FunctionCallBody(_Body):
    """An earlier call of a function: its name, and its arguments as JSON."""

    name: str
    arguments: str = "{}"


class ToolCallBody(_Body):
    """An earlier tool call in a message of the assistant."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCallBody
    #: Of a call that was put together from the chunks of a stream.
    index: int | None = None


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], _FIRST_FAULT] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallBody], _FIRST_FAULT] | None = None
    tool_call_id: str | None = None
    # An answer may come back with all fields of the `openai` client's type.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class Function(_Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(_Body):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: Function


class StreamOptions(_Body):
    """Asks a stream for more than tokens."""

    include_usage: bool | None = None
    # Accepted because chunks are not padded here.
    include_obfuscation: Literal[False] | None = None


def _only_with(field: str, found: _T, body: ValidationInfo) -> _T:
    """Refuse a value that has no effect unless an earlier field of the body is set; 0 has none anyhow."""
    if found and not body.data.get(field):
        raise PydanticCustomError("only_with", "only with {field}", {"field": field})
    return found


#: The limit of length keeps the search for it cheap. It also refuses texts that UTF-8 has no bytes for.
_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Sampled(_Body):
    """Fields that chat and plain completions have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    #: vLLM's: answer with the ids of prompt and answer, too.
    return_token_ids: bool | None = None
    # Accepted because they change nothing here.
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: str | None = None

    @field_validator("stream_options")
    @classmethod
    def _only_of_a_stream(cls, found: StreamOptions | None, body: ValidationInfo) -> StreamOptions | None:
        return _only_with("stream", found, body)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """All stop strings."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(found)


class ChatBody(_Sampled):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolBody], _FIRST_FAULT] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: Any = None
    parallel_tool_calls: bool | None = None
    # Accepted because they change nothing here.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], _FIRST_FAULT] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, found: int | None, body: ValidationInfo) -> int | None:
        return _only_with("logprobs", found, body)


class CompletionBody(_Sampled):
    """Body of ``/v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[int], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[list[int], _FIRST_FAULT]], Field(min_length=1, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
