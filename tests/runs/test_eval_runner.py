"""Playing an agent's episodes: broken sandboxes, voids, stop and resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast, final

import pytest
from guess_env import TASKS, Backend, GuessEnv, halve

from envkit import ActionResult, check
from envkit.agents.scripted import ScriptedAgent
from envkit.errors import ContractError, SandboxError, Stopped
from envkit.measure.report.summary import summarise_row
from envkit.measure.report.text import row_warnings
from envkit.rollout import Rollouts
from envkit.runs.before_after.env_eval import EnvEval
from envkit.runs.before_after.plan import Plan
from envkit.runs.benchmark.eval_runner import EvalRunner
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.runtime.store import RunFolder
from envkit.training.config import TrainConfig
from envkit.training.policy import Policy

HALVING = ScriptedAgent("halving", lambda key, turn, observation: halve(observation))


@final
class Lines(Silent):
    """Keeps the lines that stay on screen."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def play(folder: Path, breaks: int, display: Lines, samples: int = 8) -> None:
    run = RunFolder.create(folder, "bench", {})
    with Rollouts(lambda: GuessEnv(sandbox=Backend(breaks), max_turns=8), workers=1) as rollouts:
        EvalRunner(run, TASKS, display).play(rollouts, HALVING, "halving", samples)


def test_broken_machinery_ends_an_evaluation_with_its_cause(tmp_path: Path) -> None:
    display = Lines()
    with pytest.raises(SandboxError, match="24 of 24 episodes broke: no sandbox"):
        play(tmp_path, 10**6, display)
    assert display.lines == ["halving: 24 of 24 episodes are void and in no rate, such as: no sandbox"]


def test_a_few_voids_are_reported_and_the_other_episodes_count(tmp_path: Path) -> None:
    backend, display = Backend(2), Lines()
    run = RunFolder.create(tmp_path, "bench", {})
    with Rollouts(lambda: GuessEnv(sandbox=backend, max_turns=8), workers=1) as rollouts:
        EvalRunner(run, TASKS, display).play(rollouts, HALVING, "halving", 8)
    assert display.lines == ["halving: 1 of 24 episodes are void and in no rate, such as: no sandbox"]


@final
class CheckedGuess(GuessEnv):
    """Its held-out check rejects one of the three tasks."""

    id: ClassVar[str] = "checked-guess"

    @check(held_out=True)
    def is_not_below_50(self) -> bool:
        return self.task.id != "below-50"


def test_solved_episodes_are_asked_the_held_out_check(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "bench", {})
    runner = EvalRunner(run, TASKS, Silent())
    with Rollouts(lambda: CheckedGuess(sandbox=Backend(), max_turns=8), workers=1) as rollouts:
        runner.play(rollouts, HALVING, "halving", 2)
        runner.play(rollouts, ScriptedAgent("quitter", lambda *_: "quit"), "quitter", 2)
    found = [runner.report_row(name, "", runner.counted(name, 2)) for name in ("halving", "quitter")]
    assert [[(each.held_out, each.held_out_failed) for each in row.results] for row in found if row] == [
        [(2, 0), (2, 2), (2, 0)],
        [(0, 0)] * 3,
    ]


class Raising(GuessEnv):
    """Raises in the tasks ``at``."""

    def __init__(self, at: Sequence[str], **options: Any) -> None:
        super().__init__(max_turns=8, **options)
        self.at = at

    def apply(self, action: str) -> ActionResult:
        if self.task.id in self.at:
            raise ZeroDivisionError("bug")
        return super().apply(action)


def played_raising(folder: Path, at: Sequence[str], display: Lines) -> tuple[EvalRunner, RunFolder]:
    run = RunFolder.create(folder, "bench", {})
    runner = EvalRunner(run, TASKS, display)
    with Rollouts(lambda: Raising(at), workers=1) as rollouts:
        runner.play(rollouts, HALVING, "halving", 8)
    return runner, run


def test_a_bug_in_the_environment_is_shown_counted_and_warned_of(tmp_path: Path) -> None:
    display = Lines()
    runner, run = played_raising(tmp_path, [TASKS[0].id], display)
    [line] = display.lines
    assert line.startswith(
        "halving: the environment raised in 8 of 24 episodes, first: ZeroDivisionError: bug; info.trace in "
    )
    row = runner.report_row("halving", "", runner.counted("halving", 8))
    assert row is not None
    assert [result.raised for result in row.results] == [8, 0, 0]
    said = row_warnings("halving", row, summarise_row(row, (1,)))
    assert any("raised an exception in 8 of 24 samples" in each for each in said)
    traces = [t.info["trace"] for t in run.trajectories("eval-halving") if "trace" in t.info]
    assert len(traces) == 8
    assert all("raise ZeroDivisionError" in str(trace) for trace in traces)


def test_an_evaluation_in_which_nearly_all_raise_ends_with_the_cause(tmp_path: Path) -> None:
    fault = r"raised in 24 of 24 episodes, first: ZeroDivisionError: bug; fix"
    with pytest.raises(ContractError, match=fault):
        played_raising(tmp_path, [task.id for task in TASKS], Lines())
    # A resumed run plays nothing of it again, and does not pass over it.
    [folder] = tmp_path.iterdir()
    run = RunFolder.open(folder)
    no_policy = cast("Policy", None)
    plan = Plan(TrainConfig(), heldout_tasks=len(TASKS), samples=8)
    env_eval = EnvEval(run, run, GuessEnv, TASKS, plan, Backend(), Silent(), never)
    with (
        pytest.raises(ContractError, match=fault),
        Rollouts(lambda: Raising([]), workers=1) as rollouts,
    ):
        EvalRunner(run, TASKS, Silent()).play(rollouts, HALVING, "halving", 8)
    with pytest.raises(ContractError, match=fault):
        env_eval.evaluate(no_policy, "halving")


def test_a_stop_keeps_what_is_finished_and_a_resumed_run_plays_the_rest(tmp_path: Path) -> None:
    run, turns = RunFolder.create(tmp_path, "bench", {}), list[int]()

    def answer(key: object, turn: int, observation: str) -> str:
        turns.append(turn)
        return halve(observation)

    agent = ScriptedAgent("halving", answer)
    runner = EvalRunner(run, TASKS, Silent())

    def make() -> GuessEnv:
        return GuessEnv(sandbox=Backend(), max_turns=8)

    with Rollouts(make, should_stop=lambda: len(turns) > 40) as rollouts, pytest.raises(Stopped):
        runner.play(rollouts, agent, "halving", 8)
    kept = runner.played("halving")
    assert len(kept) < 24
    with Rollouts(make) as rollouts:
        runner.play(rollouts, HALVING, "halving", 8)
    played = runner.played("halving")
    assert len(played) == 24
    assert played[: len(kept)] == kept
