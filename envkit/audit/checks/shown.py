"""Checks that what an agent sees depends on nothing hidden, and does not hold the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from envkit.audit.actions.answers import answers_of, near_misses
from envkit.audit.actions.words import filled_call, minimal_call
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.audit.leaks.spellings import LABEL, occurrences, spelled_in_each, spellings
from envkit.env.compare import canonical
from envkit.types import JSON, Task

#: Longest hidden value that has no part which could be shown honestly, as JSON. A hidden program, for
#: instance, may be described by what it does.
_SHORT_CHARS: Final = 64
#: Other values that take a hidden value's place, of as many that are tried, and the fewest values that an
#: action must tell apart.
_TWINS: Final = 2
_MAX_DONORS: Final = 6
_MIN_VALUES: Final = 3
#: Tasks whose prompt, files, metadata and id are searched for answers.
_MAX_TASKS: Final = 200
#: A text and a number that no task is about.
_JUNK: Final = ("zqx", 987_654_321)
_FIRST: Final = "the first observation"


@dataclass(frozen=True, slots=True)
class _Twins:
    """A task, and the same task with other hidden values in one field.

    Args:
        field: name of the field.
        values: its values, the task's own first.
        tasks: the tasks, in the same order.
    """

    field: str
    values: Sequence[JSON]
    tasks: Sequence[Task]


def shown_depends_on_nothing_hidden(audited: AuditedEnv) -> str:
    """Tasks that differ in a hidden answer alone look the same until an answer is given."""
    count = 0
    for task in audited.spread(max(2, audited.levels)):
        for twins in _twins(audited, task):
            _require_same_beginning(audited, twins)
            if len(twins.tasks) >= _MIN_VALUES:
                _require_untold(audited, twins)
            count += 1
    if not count:
        raise NotApplicable("no task hides a short value that its oracle's actions depend on")
    return f"{count} hidden values, replaced by others, change nothing that is shown before an answer"


def _twins(audited: AuditedEnv, task: Task) -> Iterator[_Twins]:
    """The task with other values of each hidden field that its oracle's actions depend on."""
    own = audited.oracle_actions(task)
    for name, value in task.hidden.items():
        if len(canonical(value)) > _SHORT_CHARS:
            continue
        donors = [each.hidden[name] for each in audited.all_tasks if name in each.hidden]
        others: list[JSON] = []
        for other in (*donors, *near_misses(value)["one character changed"]):
            fits = type(other) is type(value) and len(canonical(other)) <= _SHORT_CHARS
            if fits and other != value and other not in others:
                others.append(other)
        tasks: list[Task] = []
        for other in others[:_MAX_DONORS]:
            twin = dataclasses.replace(task, hidden={**task.hidden, name: other})
            with contextlib.suppress(Exception):  # it cannot be posed: the field is more than an answer
                if [*audited.kind.oracle(twin)] != own and _beginning(audited, twin):
                    tasks.append(twin)
            if len(tasks) == _TWINS:
                break
        if tasks:
            yield _Twins(name, [value, *(each.hidden[name] for each in tasks)], [task, *tasks])


def _require_same_beginning(audited: AuditedEnv, twins: _Twins) -> None:
    """Fail if first observations or workspaces differ."""
    seen = [_beginning(audited, task) for task in twins.tasks]
    for value, other in zip(twins.values[1:], seen[1:], strict=True):
        for place in {**seen[0], **other}:
            if seen[0].get(place) != other.get(place):
                raise AuditFailure(
                    f"task {twins.tasks[0].id}: {place} differs if hidden.{twins.field} is {value!r:.40} and "
                    f"not {twins.values[0]!r:.40}; make it of the prompt, the files and the metadata alone"
                )


def _beginning(audited: AuditedEnv, task: Task) -> Mapping[str, object]:
    """What an agent sees before its first action, by place."""
    with contextlib.closing(audited.make([task])) as env:
        first, _ = env.reset(seed=0, options={"task": task.id})
        files = env.sandbox.export(["**"], 2**26)
        return {_FIRST: first, **{f"the workspace's {path}": files[path] for path in files}}


def _require_untold(audited: AuditedEnv, twins: _Twins) -> None:
    """Fail if tools tell the twins apart without arguments, or spell their values with any."""
    tools = [tool for tool in audited.tools if not tool.ends]
    bare = [*(minimal_call(tool) for tool in tools if not tool.arguments), audited.kind.noop_action]
    task, hidden = twins.tasks[0], f"hidden.{twins.field}"
    if len({*_texts(audited, twins, bare)}) == len(twins.tasks):
        raise AuditFailure(f"task {task.id}: {bare!r:.100} tell the value of {hidden}")
    # The first actions that all oracles share, and those for another task.
    oracles = [[*audited.kind.oracle(each)] for each in twins.tasks]
    shared = [steps[0] for steps in zip(*oracles, strict=False) if len({*steps}) == 1]
    said = {canonical(value) for value in twins.values}
    others = [each for each in audited.tasks if canonical(each.hidden.get(twins.field)) not in said]
    other = audited.oracle_actions(others[0]) if others else list[str]()
    # Several times, because help may come after a few failures.
    failing = [filled_call(tool, word) for _ in range(3) for tool in tools for word in _JUNK]
    full = [*map(minimal_call, tools), *shared, *failing, *other]
    texts = _texts(audited, twins, full) if full else []
    if texts and (way := spelled_in_each([_scalar(value) for value in twins.values], texts)):
        raise AuditFailure(f"task {task.id}: {full!r:.100} show {hidden} ({way})")


def _texts(audited: AuditedEnv, twins: _Twins, actions: Sequence[str]) -> list[str]:
    """All observations of an episode with each of the twins; none if one of them raises."""
    turns = max(audited.max_turns, len(actions))
    played = [audited.attempt(task, actions, max_turns=turns) for task in twins.tasks]
    return ["\n".join(each.observations) for each in played if each] if all(played) else []


def _scalar(value: JSON) -> str:
    """A value as an agent would read it."""
    return value if isinstance(value, str) else canonical(value)


def answers_are_not_shown(audited: AuditedEnv) -> str:
    """No rule finds the oracle's answers beside the request, in ids, in metadata, or behind a label."""
    tasks = audited.spread(_MAX_TASKS)
    kinds = _answers_by_kind(audited, tasks)
    if not kinds:
        raise NotApplicable(f"fewer than {_MIN_VALUES} tasks have short, different answers")
    firsts = {task.id: str(_beginning(audited, task)[_FIRST]) for task in audited.tasks}
    for kind, answers in kinds.items():
        answered = [task for task in tasks if task.id in answers]
        if place := _label(answered, answers):
            raise AuditFailure(f"{place} of every task holds {kind}")
        if 2 * sum(_is_given(answers[task.id], task) for task in answered) >= len(answered):
            continue  # the task itself says it, and finding it there or doing it is the work
        played = [task for task in audited.tasks if task.id in answers]
        places = {"the id": (answered, [task.id for task in answered])}
        places["the first observation"] = played, [firsts[task.id] for task in played]
        for key in dict.fromkeys(key for task in answered for key in task.metadata):
            places[f"metadata.{key}"] = answered, [_scalar(task.metadata.get(key, "")) for task in answered]
        for place, (shown, texts) in places.items():
            values = [answers[task.id] for task in shown]
            if len({*values}) >= _MIN_VALUES and (way := spelled_in_each(values, texts)):
                raise AuditFailure(f"{place} of every task shows {kind} ({way})")
    return f"{sum(map(len, kinds.values()))} answers of {len(tasks)} tasks cannot be read off by one rule"


def _answers_by_kind(audited: AuditedEnv, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
    """Place in the oracle's actions -> task id -> the answer there; only places with different answers."""
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        for answer in answers_of(audited.oracle_actions(task), audited.tools):
            if (
                isinstance(answer.value, str | int | float)
                and 0 < len(text := str(answer.value)) <= _SHORT_CHARS
            ):
                name = answer.argument or "the text"
                found.setdefault(f"{name} of the oracle's action {answer.action + 1}", {})[task.id] = text
    return {name: answers for name, answers in found.items() if len({*answers.values()}) >= _MIN_VALUES}


def _file_texts(task: Task) -> dict[str, str]:
    """The task's files as texts; what is no UTF-8 is replaced."""
    return {
        path: content if isinstance(content, str) else content.decode(errors="replace")
        for path, content in task.files.items()
    }


def _is_given(value: str, task: Task) -> bool:
    """True if the prompt or a file says a value in any spelling."""
    public = "\n".join((task.prompt, *_file_texts(task).values()))
    return any(occurrences(spelled, public) for spelled in spellings(value).values())


def _label(tasks: Sequence[Task], answers: Mapping[str, str]) -> str:
    """The text or file of all tasks that labels its answer as such; empty if there is none."""
    if all(_is_labelled(answers[task.id], task.prompt) for task in tasks):
        return "a label in the prompt"
    for path in dict.fromkeys(path for task in tasks for path in task.files):
        is_label = re.fullmatch(rf"(?i)\.?{LABEL}(\.\w+)?", path.rpartition("/")[2]) is not None
        pairs = [(answers[task.id], _file_texts(task).get(path, "")) for task in tasks]
        if all(_is_labelled(value, text) or (is_label and occurrences(value, text)) for value, text in pairs):
            return f"the file {path}"
    return ""


def _is_labelled(value: str, text: str) -> bool:
    label = rf"(?i)\b{LABEL}\b\W{{0,5}}(?:(?:is|are|was)\b\W{{0,3}})?"
    return re.search(rf"{label}{re.escape(value)}(?!\w)", text) is not None
