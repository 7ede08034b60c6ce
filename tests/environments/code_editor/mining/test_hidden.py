"""Hidden fields of tasks are typed, and their JSON format does not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from envkit.env.hidden import read_hidden, to_json
from envkit.environments.code_editor.mining.hidden import RepairHidden, RepairSite, SuiteHidden
from envkit.environments.code_editor.starter import starter_tasks
from envkit.errors import TaskFileError
from envkit.types import Task

REPAIR = {
    "reference": "def f(a):\n    return a\n",
    "function": "f",
    "modules": ["math"],
    "examples": [[["1"], {}]],
    "killers": [[["math.pi"], {"b": "2"}]],
    "policy": {"rel_tol": 1e-9, "abs_tol": 1e-12, "int_as_float": False},
    "edit": {"search": "a", "replace": "b"},
    "site": {"bytes": [3, 4], "line": 1, "killers": [0], "trials": []},
}
SUITE = {
    "function": "A.f",
    "edit": {"search": "a", "replace": "b"},
    "suite": {"files": {"test_a.py": "x"}, "wanted": ["test_a.py::t"], "killers": [], "packages": ["toolz"]},
    "site": {"bytes": [3, 4], "line": 1},
}


def task(hidden: Any) -> Task:
    return Task("pkg/f/1", "train", "", {"solution.py": "x"}, hidden=hidden)


@pytest.mark.parametrize(("kind", "fields"), [(RepairHidden, REPAIR), (SuiteHidden, SUITE)])
def test_json_survives_the_dataclass(kind: type[Any], fields: dict[str, Any]) -> None:
    assert to_json(read_hidden(kind, task(fields))) == fields


def test_a_task_written_by_hand_has_no_site() -> None:
    fields = {name: value for name, value in REPAIR.items() if name != "site"}
    found = read_hidden(RepairHidden, task(fields))
    assert found.site is None
    assert to_json(found) == fields
    assert to_json(replace(found, site=RepairSite((3, 4), 1, (0,)))) == REPAIR
    for starter in starter_tasks():
        assert to_json(read_hidden(RepairHidden, starter)) == starter.hidden


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda fields: fields.pop("killers"), "hidden lacks the field 'killers'"),
        (lambda fields: fields.update(looks=[]), "hidden has the unknown field 'looks'"),
        (lambda fields: fields.update(reference=7), "hidden.reference is 7; expected str"),
        (lambda fields: fields["edit"].pop("search"), "hidden.edit lacks the field 'search'"),
        (
            lambda fields: fields["killers"].append([["1"]]),
            r"hidden.killers\[1\] is ",
        ),
        (lambda fields: fields["killers"].append([[1], {}]), r"hidden.killers\[1\] is .*SOURCE"),
        (lambda fields: fields["site"].update(line=True), "hidden.site.line is True; expected int"),
    ],
)
def test_a_wrong_field_is_named(spoil: Callable[[Any], object], message: str) -> None:
    fields = json.loads(json.dumps(REPAIR))
    spoil(fields)
    with pytest.raises(TaskFileError, match=f"^task pkg/f/1: {message}"):
        read_hidden(RepairHidden, task(fields))


@pytest.mark.parametrize("kind", [RepairHidden, SuiteHidden])
def test_a_task_of_another_environment_is_refused(kind: type[Any]) -> None:
    with pytest.raises(TaskFileError, match="unknown field 'domain'"):
        read_hidden(kind, task({"domain": "library", "reference": "SELECT 1", "write": False}))
