"""A machine that stalls while a program runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.graders import oracle
from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.sandbox import Limits


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Callable[[Limits], None]:
    """Returns a function that leaves no wall time to the next program that runs under given limits."""
    CodeEditorEnv.clear_caches()
    waiting: list[Limits] = []
    call = oracle._Worker.call

    def stalled(worker: oracle._Worker, calls: Sequence[Call]) -> list[Answer]:
        if worker._limits in waiting:
            waiting.remove(worker._limits)
            worker._limits = replace(worker._limits, wall_s=0)
        return call(worker, calls)

    monkeypatch.setattr(oracle._Worker, "call", stalled)
    return waiting.append
