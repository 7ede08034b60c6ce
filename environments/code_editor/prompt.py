"""The first observation of an episode, and the script that ``run`` executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from envkit.environments.code_editor import docstrings
from envkit.environments.code_editor.actions import HELP, HELP_WHOLE
from envkit.types import Task

#: System message for models. The action grammar is part of the observation.
SYSTEM = "You repair Python code."

#: Workspace path of the script that ``run`` executes. The agent may read it.
CHECK = "check.py"
#: Most examples in a prompt. More help little and make every prompt longer.
_SHOWN_EXAMPLES = 2


def _examples(task: Task) -> list[Mapping[str, str]]:
    return list(cast("Sequence[Mapping[str, str]]", task.metadata.get("examples", ())))


def first_observation(task: Task, code: str, max_turns: int) -> str:
    """Return the request, examples, the code and, if there are several turns, the action grammar.

    The code comes late, because a small model copies best what it has just read.
    """
    whole = bool(task.metadata.get("whole"))
    listing, docstring = (code, "") if whole else docstrings.split(code)
    ask = task.metadata.get("ask", "Fix the bug")
    examples = [f"{item['call']} -> {item['value']}" for item in _examples(task)[:_SHOWN_EXAMPLES]]
    parts = [task.prompt, docstring, *examples, f"{ask}:\n```python\n{listing}\n```"]
    if max_turns > 1:
        parts.append(f"{HELP_WHOLE if whole else HELP}\nYou have {max_turns} turns.")
    return "\n".join(part for part in parts if part)


def check_script(task: Task, modules: Sequence[str]) -> str:
    """Return a program that calls the examples and prints each result beside the expected one.

    It is feedback for the agent and does not affect the reward.

    Args:
        task: its examples are called.
        modules: modules that the examples may use in addition to the file's names.
    """
    calls = [(item["call"], item["value"]) for item in _examples(task)]
    return f"""\
import sys

sys.path.insert(0, ".")
import solution

names = {{name: __import__(name) for name in {list(modules)!r}}} | vars(solution)
for call, expected in {calls!r}:
    try:
        got = eval(call, names)
        got = list(got) if hasattr(got, "__next__") else got
        print(call, "->", repr(got), "; expected", expected)
    except Exception as error:
        print(call, "-> raises", type(error).__name__, error, "; expected", expected)
"""
