"""Aiming the attack corpus at the code editor: what a candidate leaves, said as actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from envkit.audit.attacks import AttackTarget, Attempt, ShownCall
from envkit.environments.code_editor.actions import whole_text
from envkit.environments.code_editor.prompt import CHECK
from envkit.mining.build import SOLUTION
from envkit.mining.library import import_name
from envkit.types import Task


def target_of(task: Task) -> AttackTarget:
    """The task as a target."""
    module, function = task.metadata.get("module"), str(task.hidden["function"])
    shown = cast("Sequence[Mapping[str, str]]", task.metadata.get("examples", ()))
    calls = {one["call"].removeprefix(function): one["value"] for one in shown}
    return AttackTarget(
        source=task.files[SOLUTION],
        reference=str(task.hidden["reference"]),
        function=function,
        module=SOLUTION,
        examples=[
            ShownCall(f"{args[:-1]},)" if args != "()" else args, value) for args, value in calls.items()
        ],
        protected=CHECK,
        origin=f"{import_name(str(task.metadata['package']))}.{module}" if module else None,
    )


def actions_of(attempt: Attempt, target: AttackTarget) -> list[str]:
    """An episode in which a candidate makes the attempt.

    The editor writes no file but the module, so everything else is done by the module when ``run`` loads it,
    and once more when it is graded.
    """
    text = attempt.files[target.module]
    others = {path: said for path, said in attempt.files.items() if path != target.module}
    if others or attempt.run:
        text = _DOES.format(files=others, run=attempt.run or "") + text
    return [whole_text(target.source, text), "run", "submit"]


_DOES = """\
for _path, _text in {files!r}.items():
    try:
        open(_path, "w").write(_text)
    except OSError:
        pass
try:
    exec({run!r})
except Exception:
    pass
"""
