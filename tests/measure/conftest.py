"""A small, fully known run: 40 source functions with two tasks each, four rows."""

from __future__ import annotations

import pytest

from envkit.measure.report.data import (
    Difference,
    Excerpt,
    LossPoint,
    Machine,
    Phase,
    ReportData,
    Row,
    TaskResult,
    TrainPoint,
)

OPERATORS = ("comparison", "wrong variable")


def _row(name: str, description: str, solved_of_8: tuple[int, ...], expected: float | None = None) -> Row:
    """A row whose task ``t`` solves ``solved_of_8[t % len]`` of 8 samples."""
    items = tuple(
        TaskResult(
            task=f"lib.f{t // 2}.{t}",
            source=f"lib.f{t // 2}",
            operator=OPERATORS[t % 2],
            samples=8,
            solved=solved_of_8[t % len(solved_of_8)],
            completion_tokens=1000,
            prompt_tokens=2000,
            seconds=0.5,
        )
        for t in range(80)
    )
    return Row(name, description, items, expected)


@pytest.fixture
def run() -> ReportData:
    return ReportData(
        title="Does it learn?",
        run="demo-1",
        created="2026-01-01",
        command="envkit demo --seed 0",
        environment="envkit/CodeEditor-v0",
        isolation="sandbox",
        sandbox="bubblewrap",
        model="tiny",
        model_digest="sha256:aa11",
        heldout_digest="sha256:bb22",
        machine=Machine("A CPU", 2, 2, "float32"),
        rows=(
            _row("base", "the untouched model", (0, 0, 1, 0, 0)),
            _row("SFT", "after the warm start", (2, 4, 3, 5, 1)),
            _row("SFT+RL", "after reinforcement learning", (3, 4, 2, 5, 1)),
            _row("oracle", "applies the known fix", (8,), expected=1.0),
        ),
        differences=(
            Difference("SFT+RL", "base", "The whole recipe"),
            Difference("SFT+RL", "SFT", "RL's own part"),
            Difference("base", "SFT", "The warm start, undone"),
        ),
        training=tuple(TrainPoint(s, s / 40, 0.5, -0.01, 500.0 + s) for s in range(1, 31)),
        sft=tuple(LossPoint(s, 1 / s) for s in range(1, 11)),
        phases=(Phase("evaluate", 60.0, 1234), Phase("train", 180.0, 56789)),
        examples=(Excerpt("lib.f0.0", "SFT+RL", "Mend f.", "def f(): ...", "PASS"),),
        config={"seed": 0, "learning_rate": 1e-4, "unsafe": False, "beta": None},
        warnings=("Stopped early by the user.",),
        limits=("Mutants are not the bugs that people write.",),
    )
