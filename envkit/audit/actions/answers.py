"""Values that an oracle's actions give, and the same actions with other values. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from envkit.env.tools import Tool, ToolCall, format_call, parse_calls

_FENCE: Final = re.compile(r"(?s)(?<=```)([^\n`]*\n)(.*?)(\n?)(?=```)")
#: A wrong answer that no near miss resembles, by type.
_JUNK: Final[Mapping[type, Any]] = {str: "zqx", int: 987_654_321, float: 98_765.4321}


@dataclass(frozen=True, slots=True)
class ActionValue:
    """A value in one of the actions of an episode.

    Args:
        action: index of the action.
        argument: argument of a call of a tool; empty if the action is no call.
        value: its value. For an action that is no call: its first fenced block, or else the whole text.
    """

    action: int
    argument: str
    value: Any


def answers_of(actions: Sequence[str], tools: Sequence[Tool]) -> list[ActionValue]:
    """The values in actions: every argument of a call, or an action's text."""
    found: list[ActionValue] = []
    for index, action in enumerate(actions):
        call = parse_calls(action, tools)[0] if tools else ""
        if isinstance(call, ToolCall):
            found += [ActionValue(index, name, value) for name, value in call.arguments.items()]
        else:
            block = _FENCE.search(action)
            found.append(ActionValue(index, "", block[2] if block else action))
    return found


def replaced(actions: Sequence[str], answer: ActionValue, value: Any, tools: Sequence[Tool]) -> list[str]:
    """The actions with another value in an answer's place."""
    action = actions[answer.action]
    if answer.argument:
        call = cast("ToolCall", parse_calls(action, tools)[0])
        changed = format_call(call.tool.name, {**call.arguments, answer.argument: value})
    elif _FENCE.search(action):
        changed = _FENCE.sub(lambda match: f"{match[1]}{value}{match[3]}", action, count=1)
    else:
        changed = str(value)
    return [*actions[: answer.action], changed, *actions[answer.action + 1 :]]


def junk(value: Any) -> Any:
    """A value of the same type that has nothing to do with the given one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [junk(items[0])] if items else []
    return _JUNK.get(type(value), "zqx")  # pyright: ignore[reportUnknownArgumentType]


def near_misses(value: Any) -> Mapping[str, list[Any]]:
    """Values that are almost the given one, by how they were made.

    >>> near_misses(104)
    {'shortened': [10, 1], 'one character changed': [204, 114, 105], 'neighbours swapped': [14, 140]}
    >>> near_misses([3, 5])
    {'shortened': [[3]], 'one character changed': [[4, 5]], 'neighbours swapped': []}
    """
    if isinstance(value, list) and value:
        first, *others = cast("list[Any]", value)
        changed = near_misses(first)["one character changed"][:1]
        return {
            "shortened": [[first, *others][:-1]],
            "one character changed": [[each, *others] for each in changed],
            "neighbours swapped": [],
        }
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return {kind: [] for kind in _NEAR}
    text = str(value).strip()
    return {
        kind: [
            made
            for each in dict.fromkeys(make(text))
            if each != text and (made := _as(type(value), each)) is not None and made != value
        ]
        for kind, make in _NEAR.items()
    }


def _as(kind: type, text: str) -> Any:
    """The text as a value of that type; ``None`` if it is none."""
    try:
        return kind(text)
    except ValueError:
        return None


def _shortened(text: str) -> list[str]:
    return [text[:length] for length in (len(text) - 1, len(text) // 2, 1) if 0 < length < len(text)]


def _changed(text: str) -> list[str]:
    places = [index for index, character in enumerate(text) if character.isalnum()]
    chosen = [places[0], places[len(places) // 2], places[-1]] if places else []
    return [text[:index] + _next(text[index]) + text[index + 1 :] for index in chosen]


def _next(character: str) -> str:
    """Another character of the same kind: the next digit, or the next letter of the same case."""
    for first, last in (("0", "9"), ("a", "z"), ("A", "Z")):
        if first <= character <= last:
            return first if character == last else chr(ord(character) + 1)
    return "a" if character != "a" else "b"


def _swapped(text: str) -> list[str]:
    places = [
        index
        for index in range(len(text) - 1)
        if text[index] != text[index + 1] and text[index : index + 2].isalnum()
    ]
    chosen = dict.fromkeys([places[0], places[len(places) // 2]] if places else [])
    return [text[:index] + text[index + 1] + text[index] + text[index + 2 :] for index in chosen]


_NEAR: Final[Mapping[str, Callable[[str], list[str]]]] = {
    "shortened": _shortened,
    "one character changed": _changed,
    "neighbours swapped": _swapped,
}
