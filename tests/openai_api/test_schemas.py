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
    ("field", "words"),
    [
        ({"top_logprobs": 5}, "top_logprobs: only with logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream"),
    ],
)
def test_a_field_that_would_have_no_effect_is_refused(field: dict[str, Any], words: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **field}
    with pytest.raises(ValidationError, match=words):
        ChatBody.model_validate(body)
    ChatBody.model_validate({**body, "logprobs": True, "stream": True})
