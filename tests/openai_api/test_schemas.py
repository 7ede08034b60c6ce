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
    ],
)
def test_a_list_of_wrong_elements_is_refused_at_its_first(
    kind: type[ChatBody | CompletionBody], wrong: dict[str, Any]
) -> None:
    """An error for each element would hold up the server's other requests."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m", **wrong}))
    assert caught.value.error_count() <= 5  # one for each form that the field may have
