"""Messages of OpenAI's API as chat templates read them, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from envkit.errors import UsageError
from envkit.openai_api.schemas import Message


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates read it: content as text, arguments of calls as objects.

    Raises:
        UsageError: the arguments of an earlier tool call are not JSON.
    """
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content or ())
    found: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text,
    }
    if message.tool_calls:
        calls: list[dict[str, Any]] = []
        for call in message.tool_calls:
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise UsageError("arguments of a tool call are not JSON") from error
            function = {"name": call.function.name, "arguments": arguments}
            named = {"id": call.id} if call.id else {}
            calls.append({**named, "type": "function", "function": function})
        found["tool_calls"] = calls
    return found | {
        key: value for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)) if value
    }


def request_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of `template_message` in the API's form."""
    calls: list[dict[str, Any]] = message.get("tool_calls", [])
    if not calls:
        return dict(message)
    made = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in calls
    ]
    return {**message, "content": message["content"] or None, "tool_calls": made}
