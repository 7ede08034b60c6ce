"""Agents without a model: one random mutation, and search among all mutations.

Mutations make most bugs of the standard tasks, so a model that solves no more tasks than these has learned
nothing that a program of a few lines cannot do. Both know only what an agent sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from envkit.env.authored import Baseline
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.hidden import as_run, solution_of
from envkit.environments.code_editor.mining.mutations.search import (
    examples_of,
    fitting_mutants,
    function_called,
    mutants_of,
)
from envkit.sandbox import SandboxBackend
from envkit.types import Task


def _blind(task: Task, seed: int, backend: SandboxBackend) -> Sequence[str]:
    """Make one random mutation of the function that the examples call."""
    found = mutants_of(solution_of(task), function_called(task))
    if not found:
        return ["submit"]
    return _edit(task, random.Random(seed).choice(found))


def _enumerate(task: Task, seed: int, backend: SandboxBackend) -> Sequence[str]:
    """Make the first mutation for which all examples hold."""
    before = as_run(task, b"").decode()
    searched = before + solution_of(task), function_called(task), examples_of(task)
    [text] = fitting_mutants(backend, [searched])
    return ["submit"] if text is None else _edit(task, text.removeprefix(before))


def _edit(task: Task, text: str) -> list[str]:
    return [f"{replace_text_message(solution_of(task), text)}\nsubmit", "submit"]


BASELINES = (
    Baseline("blind-mutant", "makes one random mutation, without a model", _blind, is_random=True),
    Baseline(
        "enumerate", "makes the first mutation for which the examples hold, without a model", _enumerate
    ),
)
