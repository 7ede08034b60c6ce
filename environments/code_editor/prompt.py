"""The first observation of an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from envkit.environments.code_editor.actions import HELP, HELP_EXAMPLES, HELP_WHOLE
from envkit.environments.code_editor.source import docstrings
from envkit.types import Task

#: System message for models. The action grammar is part of the observation.
SYSTEM = "You repair Python code."


def _examples(task: Task) -> list[Mapping[str, str]]:
    return list(cast("Sequence[Mapping[str, str]]", task.metadata.get("examples", ())))


def first_observation(task: Task, code: str, max_turns: int, *, runs_examples: bool) -> str:
    """Return the request, examples, the code and, if there are several turns, the action grammar.

    The code comes late, because a small model copies best what it has just read.
    """
    whole = bool(task.metadata.get("whole"))
    listing, docstring = (code, "") if whole else docstrings.split(code)
    ask = task.metadata.get("ask", "Fix the bug")
    examples = [f"{item['call']} -> {item['value']}" for item in _examples(task)]
    parts = [task.prompt, docstring, *examples, f"{ask}:\n```python\n{listing}\n```"]
    if max_turns > 1:
        parts += [HELP_WHOLE if whole else HELP, HELP_EXAMPLES if runs_examples else ""]
        parts.append(f"You have {max_turns} turns.")
    return "\n".join(part for part in parts if part)
