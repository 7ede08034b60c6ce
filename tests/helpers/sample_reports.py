"""Made-up reports for the leaderboard's tests, with known rates, costs and conditions."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from envkit.measure.report.data import Conditions, Machine, Origin, ReportData, Row, TaskResult, TrainPoint

OPERATORS = ("comparison", "wrong variable", "off by one")
CONDITIONS = Conditions("code-editor", "c0de", "7a5c5", 1, 1)


def sample_row(
    name: str,
    origin: Origin,
    rate: float,
    *,
    tasks: int = 60,
    samples: int = 4,
    voids: int = 0,
    seed: int = 0,
) -> Row:
    """Return a row with about this solve ``rate``, and 1,000 prompt and 100 completion tokens a try."""
    rng = Random(f"{name} {seed}")
    items = tuple(
        TaskResult(
            task=f"lib.f{t // 2}.{t}",
            source=f"lib.f{t // 2}",
            operator=OPERATORS[t % 3],
            samples=samples,
            solved=sum(rng.random() < rate for _ in range(samples)),
            voids=voids if t == 0 else 0,
            prompt_tokens=1000 * samples if origin.kind == "live" else 0,
            completion_tokens=100 * samples if origin.kind in ("live", "local") else 0,
            seconds=2.0 * samples,
        )
        for t in range(tasks)
    )
    expected = {"oracle": 1.0, "no-op": 0.0}.get(name)
    return Row(name, f"what {name} is", items, expected, origin)


def report(
    run: str = "bench-1", environment: str = "code-editor", tasks: int = 60, voids: int = 0
) -> ReportData:
    """Return a report with two controls, two local models, one live and one recorded model."""
    local = Origin(
        "local", "smollm2-135m-q4", temperature=0.7, max_completion_length=128, digest="d19e57" * 10
    )
    trained = replace(local, adapter="ada97e5" * 4, training_seconds=1200.0)
    rows = (
        sample_row("oracle", Origin(), 1.0, tasks=tasks, samples=1),
        sample_row("no-op", Origin(), 0.0, tasks=tasks, samples=1),
        sample_row("base", local, 0.02, tasks=tasks),
        sample_row("SFT+RL", trained, 0.35, tasks=tasks, voids=voids),
        sample_row("big & <b>bold</b>", Origin("live", "gpt-5.6", temperature=math.nan), 0.9, tasks=tasks),
        sample_row("gpt-4-0613", Origin("recorded", "gpt-4-0613"), 0.6, tasks=tasks, samples=1),
    )
    return ReportData(
        title="A bench",
        run=run,
        created="2026-01-01",
        command="envkit bench spec.toml",
        environment=environment,
        isolation="sandbox",
        sandbox="zygote",
        model="smollm2-135m-q4",
        model_digest="d19e57" * 10,
        heldout_digest=CONDITIONS.tasks,
        machine=Machine("A CPU", 2, 2, "bfloat16"),
        rows=rows,
        training=tuple(TrainPoint(s, s / 40, 0.5, -0.01, 500.0) for s in range(1, 21)),
        conditions=replace(CONDITIONS, environment=environment),
        commit="0.1.0 abc1234",
        certificate="5ea1",
    )
