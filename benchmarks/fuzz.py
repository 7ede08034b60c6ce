"""Play hostile actions on every environment: none may raise, or hold the host for more than two CPU seconds.

    code-editor, sql-desk, service-desk        the shipped environments
    sql-desk-postgres                          if its variable names a server
    analyst, first-letter                      the examples

The actions are valid ones (an oracle's, exploits, tool calls), bent and stuffed by a seed; see
`envkit.audit.actions.hostile`. Usage: fuzz.py [ACTIONS [SEED]], by default 50,000 actions with seed 0. Writes
``runs/bench/fuzz.json``. Exits 1 if an action raised or was too slow.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from envkit.audit.fuzz import MAX_STEP_CPU_S, FuzzResult, fuzz
from envkit.env import Env
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.service_desk import ServiceDeskEnv
from envkit.environments.sql_desk import SqlDeskEnv, SqlDeskPostgresEnv
from envkit.environments.sql_desk.postgres.dsn import DSN_VARIABLE
from envkit.sandbox.choice import sandbox_backend

sys.path.append(str(Path(__file__).parents[1] / "examples"))

ACTIONS: Final = 50_000
#: Turns of an episode, so that most of the time goes to actions and not to resets.
TURNS: Final = 40


def environments() -> dict[type[Env], float]:
    """The environments, and the share of the actions that each gets."""
    from analyst import Analyst
    from rl_loop import FirstLetter

    shares: dict[type[Env], float] = {CodeEditorEnv: 0.75, SqlDeskEnv: 0.1, ServiceDeskEnv: 0.07}
    shares |= {Analyst: 0.02, FirstLetter: 0.05}
    if DSN_VARIABLE in os.environ:
        shares[SqlDeskPostgresEnv] = 0.03
    return {kind: share / sum(shares.values()) for kind, share in shares.items()}


def main(count: int = ACTIONS, seed: int = 0) -> int:
    """Play all actions, print a row per environment, and return the exit status."""
    backend = sandbox_backend()
    results: dict[str, FuzzResult] = {}
    print(f"{'environment':<20}{'actions':>9}{'raised':>8}{'slowest':>12}{'per second':>12}")
    for kind, share in environments().items():
        try:
            tasks = kind.tasks_of("starter", backend)
        except Exception:
            tasks = kind.tasks_of("train", backend)
        made: Any = kind

        def make(made: Any = made, tasks: Any = tasks) -> Env:
            return made(tasks=tasks, sandbox=backend, max_turns=TURNS)

        found = results[kind.id] = fuzz(make, tasks, round(count * share), seed)
        print(
            f"{kind.id:<20}{found.actions:>9,}{len(found.faults):>8}{found.slowest_cpu_s:>10.2f} s"
            f"{found.actions / found.seconds:>12,.0f}"
        )
        for fault in found.faults[:3]:
            print(fault)
        if found.slowest_cpu_s > MAX_STEP_CPU_S / 4:
            print(f"    the slowest begins: {found.slowest[:160]!r} ... {found.slowest[-60:]!r}")
    folder = Path("runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz.json").write_text(json.dumps({name: asdict(each) for name, each in results.items()}))
    actions = sum(each.actions for each in results.values())
    raised = sum(len(each.faults) for each in results.values())
    slowest_cpu_s = max(each.slowest_cpu_s for each in results.values())
    print(
        f"{actions:,} actions: {raised} raised, the slowest took {slowest_cpu_s:.2f} CPU seconds of the host"
    )
    return int(bool(raised) or slowest_cpu_s > MAX_STEP_CPU_S)


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
