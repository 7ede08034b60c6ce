"""Rules that lead from tasks to their hidden values in a file that every sandbox holds. Pure functions.

A table that agents are to read may hold the answer to a task, and any number by chance. It tells the answers
if they stand beside what only names their tasks, or if the file is called after them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from envkit.audit.actions.answers import near_misses
from envkit.audit.leaks.spellings import LABEL, occurrences, spelled_in_each
from envkit.types import JSON, Task

#: Longest hidden value that is looked for beside a task's name, in characters.
_MAX_CHARS: Final = 64
#: Shortest text that stands nowhere by chance, in characters: a value that one task is enough for, a line of
#: a prompt, and a task's id.
_MIN_CHARS: Final = 8
_MIN_LINE_CHARS: Final = 16
_MIN_ID_CHARS: Final = 3
#: Fewest different values that a file of answers must hold, and the largest share of values that are nearly
#: theirs, and stand in it too.
_MIN_VALUES: Final = 3
_MAX_CHANCE: Final = 0.2
#: Bytes before and behind a task's name that may belong to it.
_NEAR_BYTES: Final = 400
#: Places of one task's name that are looked at.
_MAX_PLACES: Final = 20


def rule_in_file(path: str, data: bytes, tasks: Sequence[Task]) -> str:
    """The rule by which a file tells hidden values of all tasks that it names; empty if there is none.

    Args:
        path: of the file. If it is called "answers" or the like, it need not name the tasks.
        data: its content.
        tasks: tasks of one environment.
    """
    fields = _hidden_values(tasks)
    for key, names in (("their ids", _ids(tasks)), ("their prompts", _own_lines(tasks))):
        records = _records(data, names)
        for field, values in fields.items():
            named = [task_id for task_id in values if task_id in records]
            told = [values[task_id] for task_id in named]
            if len({*told}) < 2 and not any(len(value) >= _MIN_CHARS for value in told):
                continue  # a setting that all tasks share, or a small number beside one name
            for texts in zip(*(records[task_id] for task_id in named), strict=True):
                if way := spelled_in_each(told, texts):
                    return f"holds hidden.{field} ({way}) of {len(named)} tasks beside {key}"
    if re.fullmatch(rf"(?i)\.?{LABEL}(\.\w+)*", path.rpartition("/")[2]):
        text = data.decode(errors="replace")
        for field, values in fields.items():
            if _holds_all([*values.values()], text):
                return f"is called that, and holds hidden.{field} of all tasks"
    return ""


def _hidden_values(tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
    """Field -> task id -> the short value there, without those that their task shows."""
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        files = (
            each if isinstance(each, str) else each.decode(errors="replace") for each in task.files.values()
        )
        shown = "\n".join((task.prompt, json.dumps(task.metadata, ensure_ascii=False), *files))
        for field, value in _scalars(task.hidden):
            if 0 < len(value) <= _MAX_CHARS and not occurrences(value, shown):
                found.setdefault(field, {})[task.id] = value
    return found


def _scalars(value: JSON, field: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of every value in a JSON value that is neither a list nor an object."""
    if isinstance(value, Mapping):
        for key, part in cast("Mapping[str, JSON]", value).items():
            yield from _scalars(part, f"{field}.{key}".removeprefix("."))
    elif isinstance(value, str):
        yield field, value.strip()
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            yield from _scalars(part, f"{field}.{index}")
    elif value is not None:
        is_whole = isinstance(value, float) and value.is_integer()
        yield field, str(int(value) if is_whole else value)


def _ids(tasks: Sequence[Task]) -> Mapping[str, str]:
    """Task id -> its id, if it names nothing else.

    A number may be a row's, and to look up what the prompt says may be the work.
    """
    telling = (task for task in tasks if len(task.id) >= _MIN_ID_CHARS and not task.id.isdecimal())
    return {task.id: task.id for task in telling if not occurrences(task.id, task.prompt)}


def _own_lines(tasks: Sequence[Task]) -> Mapping[str, str]:
    """Task id -> the longest line of its prompt that no other task's prompt has."""
    lines = {task.id: {line.strip() for line in task.prompt.splitlines()} for task in tasks}
    everywhere = [line for own in lines.values() for line in own]
    found = {
        task_id: max((line for line in sorted(own) if everywhere.count(line) == 1), key=len, default="")
        for task_id, own in lines.items()
    }
    return {task_id: line for task_id, line in found.items() if len(line) >= _MIN_LINE_CHARS}


def _records(data: bytes, names: Mapping[str, str]) -> Mapping[str, tuple[str, str, str]]:
    """Task id -> what may belong to its name in a file.

    Returns:
        The lines that hold the name; what follows it, until the next task's name; and what precedes it, from
        the one before.
    """
    places = sorted(
        (start, end, task_id) for task_id, name in names.items() for start, end in _places(data, name)
    )
    bounds = [(0, 0, ""), *places, (len(data), len(data), "")]
    found: dict[str, tuple[list[bytes], list[bytes], list[bytes]]] = {}
    for (_, before, _), (start, end, task_id), (after, _, _) in zip(bounds, places, bounds[2:], strict=False):
        lines, following, preceding = found.setdefault(task_id, ([], [], []))
        low, high = max(start - _NEAR_BYTES, 0), end + _NEAR_BYTES
        lines.append(data[max(data.rfind(b"\n", low, start) + 1, low) : end])
        lines.append(data[end:high].partition(b"\n")[0])
        following.append(data[end : min(high, after)])
        preceding.append(data[max(low, before) : start])
    return {
        task_id: tuple(b"\n".join(parts).decode(errors="replace") for parts in record)  # type: ignore[misc]
        for task_id, record in found.items()
    }


def _places(data: bytes, name: str) -> Iterator[tuple[int, int]]:
    """Start and end of a name's first places in a file, as a word of its own: plain, in JSON or in CSV."""
    texts = {
        name,
        json.dumps(name)[1:-1],
        json.dumps(name, ensure_ascii=False)[1:-1],
        name.replace('"', '""'),
    }
    for written in sorted({text.encode(errors="surrogatepass") for text in texts}):
        start = data.find(written)
        count = 0
        while start >= 0 and count < _MAX_PLACES:
            end = start + len(written)
            if not (data[max(start - 1, 0) : start].isalnum() or data[end : end + 1].isalnum()):
                count += 1
                yield start, end
            start = data.find(written, end)


def _holds_all(values: Sequence[str], text: str) -> bool:
    """True if a text holds all values, and hardly any values that are nearly theirs."""
    near = [str(each) for value in values for each in near_misses(value)["one character changed"]]
    if len({*values}) < _MIN_VALUES or not near or not all(occurrences(value, text) for value in values):
        return False
    return sum(occurrences(value, text) > 0 for value in near) <= _MAX_CHANCE * len(near)
