"""Hostile actions: no environment raises on one, and none holds the host's interpreter."""

from __future__ import annotations

import datetime
import random
import sys
from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
from echo_env import Choking, Echo
from guess_env import GuessEnv

from envkit import ActionResult, Env, SandboxBackend, Task, tool
from envkit.audit.actions.hostile import hostile_actions
from envkit.audit.fuzz import MAX_STEP_CPU_S, fuzz
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.service_desk import ServiceDeskEnv
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.runtime.display import Silent

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from analyst import Analyst

#: Enough to reach every kind of hostile action; `make bench SECTION=fuzz` plays many more.
ACTIONS = 400


def require_calm(kind: Any, tasks: Sequence[Task], backend: SandboxBackend, count: int = ACTIONS) -> None:
    found = fuzz(lambda: kind(tasks=tasks, sandbox=backend, max_turns=40), tasks, count, seed=1)
    assert found.actions == count
    assert not found.faults, found.faults[0]
    assert found.slowest_cpu_s <= MAX_STEP_CPU_S, found.slowest[:200]


@pytest.mark.parametrize("kind", [CodeEditorEnv, SqlDeskEnv, ServiceDeskEnv])
def test_shipped_environments_survive_hostile_actions(kind: type[Env], backend: SandboxBackend) -> None:
    require_calm(kind, kind.make_tasks("starter", sandbox=backend, display=Silent()), backend)


@pytest.mark.parametrize("kind", [Analyst, Echo])
def test_small_environments_survive_hostile_actions(kind: type[Env], backend: SandboxBackend) -> None:
    require_calm(kind, kind.make_tasks("train", sandbox=backend, display=Silent()), backend, 150)


class Typed(GuessEnv):
    """Tools with arguments of every common type."""

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return ["numbers(1.5, 2, True)", "texts('a', ['b'], {'c': 1})", "either(1)", "times('2020-01-31')"]

    def apply(self, action: str) -> ActionResult:
        return Env.apply(self, action)

    @tool
    def numbers(self, real: float, whole: int, flag: bool = False, most: float | None = None) -> str:
        return f"{real:g} {whole:,} {flag} {most}"

    @tool
    def texts(self, text: str, many: list[str], each: dict[str, int]) -> str:
        return text + "".join(many) + "".join(map(str, each.values()))

    @tool
    def either(self, value: int | str | list[float], kind: Literal["a", "b"] = "a") -> str:
        return f"{value} {kind}"

    @tool
    def times(self, day: datetime.date, amount: Decimal = Decimal(1), part: bytes = b"") -> str:
        return f"{day} {amount} {part!r}"


def test_no_call_of_a_tool_raises_whatever_its_arguments_are() -> None:
    env = Typed(max_turns=40)
    found = fuzz(lambda: env, [*env.tasks.values()], 1_500, seed=3)
    assert not found.faults, found.faults[0]
    assert found.slowest_cpu_s <= MAX_STEP_CPU_S, found.slowest[:200]


def test_the_fuzzer_finds_an_environment_that_raises_and_plays_on(backend: SandboxBackend) -> None:
    tasks = Choking.make_tasks("train")
    found = fuzz(lambda: Choking(tasks=tasks, sandbox=backend, max_turns=40), tasks, 300, seed=1)
    assert found.actions == 300
    assert any("UnicodeEncodeError" in fault for fault in found.faults)


def test_the_fuzzer_measures_the_cpu_time_of_the_slowest_action() -> None:
    class Slow(GuessEnv):
        def apply(self, action: str) -> Any:
            sum(range(len(action) * 1_000))
            return super().apply(action)

        @classmethod
        def oracle(cls, task: Task) -> Sequence[str]:
            return ["7"]

    env = Slow(max_turns=40)
    found = fuzz(lambda: env, [*env.tasks.values()], 30, seed=2)
    assert 0.01 < found.slowest_cpu_s < found.seconds + 1
    assert len(found.slowest) > 1_000


def test_hostile_actions_follow_from_their_seed_and_most_have_an_accepted_size() -> None:
    made = [
        [*islice(hostile_actions(["SELECT 1"], Echo.tools, random.Random(seed)), 300)] for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]
    sizes = [len(action.encode(errors="surrogatepass")) for action in made[0]]
    assert sum(size <= 16_384 for size in sizes) > 280
    assert max(sizes) > 4_096
    assert len({*made[0]}) > 200
