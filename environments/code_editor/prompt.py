"""What the agent reads first, and the script behind ``run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from envkit.environments.code_editor.actions import HELP
from envkit.types import Task

#: The system message for models; the grammar itself stands in the observation.
SYSTEM = "You repair Python code."


def _examples(task: Task) -> list[Mapping[str, str]]:
    return list(cast("Sequence[Mapping[str, str]]", task.metadata.get("examples", ())))


def first_observation(task: Task, code: str, max_turns: int) -> str:
    """The function, its examples and, where more than one turn is to come, the action grammar."""
    examples = "\n".join(f"{item['call']} -> {item['value']}" for item in _examples(task))
    parts = [f"This function has one bug.\n```python\n{code}\n```"]
    if examples:
        parts.append(f"It should give:\n{examples}")
    if max_turns == 1:
        parts.append("Reply with a ```diff block: the wrong line after -, the right line after +.")
    else:
        parts.append(f"{HELP}\nYou have {max_turns} turns.")
    return "\n".join(parts)


def check_script(task: Task) -> str:
    """A program that calls the examples and prints each result beside the expected one.

    It is feedback for the agent. The reward never looks at it.
    """
    calls = [(item["call"], item["value"]) for item in _examples(task)]
    return f"""\
import sys

sys.path.insert(0, ".")
import solution

for call, expected in {calls!r}:
    try:
        got = eval(call, vars(solution).copy())
        got = list(got) if hasattr(got, "__next__") else got
        print(call, "->", repr(got), "; expected", expected)
    except Exception as error:
        print(call, "-> raises", type(error).__name__, error, "; expected", expected)
"""
