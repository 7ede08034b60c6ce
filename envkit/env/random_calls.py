"""Random tool calls: the chance level of an environment with tools."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envkit.env.tools import Tool, format_call

#: Most items of a random list.
_MOST_ITEMS = 3


def random_calls(tools: Sequence[Tool], prompt: str, seed: int, count: int) -> list[str]:
    """Draw calls of tools. Arguments have the right types; words and numbers are often the prompt's.

    Args:
        tools: at least one.
        prompt: of the task.
        seed: determines the calls.
        count: number of calls.
    """
    draw = random.Random(seed)
    words = re.findall(r"\w+", prompt) or ["a"]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
    return [_call(draw, draw.choice(tools), words, [*numbers, *range(10)]) for _ in range(count)]


def _call(draw: random.Random, tool: Tool, words: Sequence[str], numbers: Sequence[int]) -> str:
    parameters: Mapping[str, Any] = tool.schema()["function"]["parameters"]
    needed = parameters.get("required", ())
    given = {
        name: _value(draw, schema, words, numbers)
        for name, schema in parameters["properties"].items()
        if name in needed or draw.random() < 0.5
    }
    return format_call(tool.name, given)


def _value(
    draw: random.Random, schema: Mapping[str, Any], words: Sequence[str], numbers: Sequence[int]
) -> Any:
    """A value that fits a JSON schema; ``None`` for a type that no simple value has."""
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if "anyOf" in schema:
        return _value(draw, draw.choice(schema["anyOf"]), words, numbers)
    match schema.get("type"):
        case "string":
            return draw.choice(words)
        case "integer":
            return draw.choice(numbers)
        case "number":
            return float(draw.choice(numbers))
        case "boolean":
            return draw.random() < 0.5
        case "array":
            inner = schema.get("items", {})
            return [_value(draw, inner, words, numbers) for _ in range(draw.randint(1, _MOST_ITEMS))]
        case _:
            return None
