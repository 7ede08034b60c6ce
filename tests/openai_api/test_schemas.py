"""Bodies of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from envkit.openai_api.schemas import ChatBody, CompletionBody


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ChatBody, {"messages": [1] * 10_000}),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * 10_000}]}),
        (ChatBody, {"messages": [{"role": "assistant", "tool_calls": [1] * 10_000}]}),
        (ChatBody, {"messages": [{"role": "user"}], "tools": [1] * 10_000}),
        (CompletionBody, {"prompt": [{}] * 10_000}),
        (CompletionBody, {"prompt": [[{}] * 10_000] * 2}),
        (CompletionBody, {"prompt": "", **{f"x{number}": 1 for number in range(10_000)}}),
        (ChatBody, {"messages": [{"role": "user", **{f"x{number}": 1 for number in range(10_000)}}]}),
    ],
)
def test_many_faults_are_refused_at_the_first(
    kind: type[ChatBody | CompletionBody], wrong: dict[str, Any]
) -> None:
    """An error for each would hold up the server's other requests."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m", **wrong}))
    assert 1 <= caught.value.error_count() <= 5  # one for each form that the field may have


@pytest.mark.parametrize(
    ("field", "name", "words"),
    [
        ({"top_logprobs": 5}, "top_logprobs", "only with logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream"),
    ],
)
def test_a_field_that_would_have_no_effect_is_refused(field: dict[str, Any], name: str, words: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **field}
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate(body)
    assert [(error["loc"], error["msg"]) for error in caught.value.errors()] == [((name,), words)]
    ChatBody.model_validate({**body, "logprobs": True, "stream": True})
    ChatBody.model_validate({**body, "logprobs": False, "top_logprobs": 0, "stream": True})


#: A message that a program has put together from the chunks of a stream.
ACCUMULATED = {
    "role": "assistant",
    "content": None,
    "reasoning_content": None,
    "tool_calls": [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ],
}


@pytest.mark.parametrize(
    ("neutral", "other"),
    [
        ({"logit_bias": None}, None),
        ({"logit_bias": {}}, {"logit_bias": {"1": 2}}),
        ({"reasoning_effort": None}, {"reasoning_effort": "low"}),
        ({"service_tier": "auto"}, {"service_tier": "flex"}),
        ({"modalities": ["text"]}, {"modalities": ["text", "audio"]}),
        ({"prompt_cache_key": "k", "safety_identifier": "ada"}, {"prediction": {"type": "content"}}),
        (
            {"stream_options": {"include_obfuscation": False}},
            {"stream_options": {"include_obfuscation": True}},
        ),
        (
            {"messages": [{**ACCUMULATED, "annotations": []}]},
            {"messages": [{**ACCUMULATED, "annotations": [{"type": "url_citation"}]}]},
        ),
        ({"messages": [ACCUMULATED]}, {"messages": [{**ACCUMULATED, "reasoning_content": "Hm."}]}),
    ],
)
def test_a_value_that_changes_nothing_is_accepted(
    neutral: dict[str, Any], other: dict[str, Any] | None
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    ChatBody.model_validate({**body, **neutral})
    if other is not None:
        with pytest.raises(ValidationError):
            ChatBody.model_validate({**body, **other})


def test_the_schema_says_that_unknown_fields_may_be_null() -> None:
    schema = ChatBody.model_json_schema()
    for form in (schema, schema["$defs"]["Message"]):
        assert form["additionalProperties"] == {"type": "null"}
