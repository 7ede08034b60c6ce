"""Errors of pydantic, told by the field of the body."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from envkit.openai_api.errors import field_error
from envkit.openai_api.schemas import ChatBody, CompletionBody

TEXTS = "Input should be a valid string"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, None),
        (
            {"messages": [{"role": "user", "content": {}}]},
            "messages.0.content",
            f"{TEXTS} or Input should be a valid list",
        ),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role", "Field required"),
        ({"stop": ["x"] * 17}, "stop", "List should have at most 16 items after validation, not 17"),
        ({"stop": ["x", ""]}, "stop.1", "String should have at least 1 character"),
        ({"stop": 5}, "stop", f"{TEXTS} or Input should be a valid list"),
        ({"temperature": 3, "stop": 5}, "temperature", "Input should be less than or equal to 2"),
        ({"str": 1}, "str", "Extra inputs are not permitted"),
        ({"prompt": []}, "prompt", "List should have at least 1 item after validation, not 0"),
        (
            {"prompt": [1.5]},
            "prompt.0",
            "Input should be a valid integer, got a number with a fractional part",
        ),
        (
            {"prompt": [[1, 2], [3, "x"]]},
            "prompt.1.1",
            "Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_an_error_is_that_of_the_form_that_was_meant(
    fields: dict[str, Any], field: str | None, words: str | None
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    kind = ChatBody
    if "prompt" in fields:
        del body["messages"]
        kind = CompletionBody
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert field_error(caught.value.errors(), body) == (
        field or "messages.0.content.0.type",
        words or "Input should be 'text'",
    )
