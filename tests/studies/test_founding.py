"""Studies of the founding claims: what numbers hold a claim, and a whole grid on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
from said_env import CodeEditorLetters, SaidLetters, ServiceDeskLetters, SqlDeskLetters
from sample_reports import CONDITIONS
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.errors import ConfigError, ModelError, StoreError, UsageError
from envkit.measure.number_text import NONE
from envkit.measure.report.data import Machine, Origin, Row, TaskResult
from envkit.measure.stats import Interval
from envkit.studies.controls.table import Control
from envkit.studies.grid.arms import ARMS, SPECIALISTS
from envkit.studies.grid.budget import load_budget
from envkit.studies.grid.catalogue import STUDIES
from envkit.studies.grid.cells import CellFolder
from envkit.studies.grid.finding import FAILED, HELD, UNDECIDED, StudyFinding, above, all_above, all_of
from envkit.studies.grid.grid import Grid, differing_settings
from envkit.studies.grid.make_arms import settings_of
from envkit.studies.grid.measurements import (
    FRONTIER,
    MANY,
    ON,
    SOLVE,
    Distance,
    Made,
    Measured,
    Multiplexed,
    Others,
    RoutedTasks,
    SystemPrompt,
    searched_message,
)
from envkit.studies.grid.page import judge
from envkit.training.config import TrainConfig

MACHINE = Machine("a processor", 2, 2, "bfloat16")
TASKS = 100


def result(task: int, solved: int, samples: int, cut_off: int = 0) -> TaskResult:
    return TaskResult(
        f"t{task}", f"s{task}", "", samples, solved, completion_tokens=50, prompt_tokens=200,
        seconds=1.0, cut_off=cut_off,
    )  # fmt: skip


def solving(rate: float, *, tasks: int = TASKS, samples: int = 1, cut_off: float = 0.0) -> list[TaskResult]:
    """Results in which the first tasks are solved always, and answers to the last ones are cut off."""
    return [
        result(task, samples * (task < rate * tasks), samples, samples * (task >= (1 - cut_off) * tasks))
        for task in range(tasks)
    ]


def write(
    root: Path,
    arm: str,
    results: Sequence[Sequence[TaskResult]],
    part: str = SOLVE,
    distances: Sequence[tuple[float, float]] = (),
) -> None:
    """Write the cells of an arm, one for each seed, with (divergence, rise) if it has an adapter."""
    for seed, items in enumerate(results):
        cell = CellFolder.of(root, ARMS[arm], seed)
        digest = f"{arm} {seed}" if ARMS[arm].has_adapter else ""
        origin = Origin("local", "a model", digest, training_seconds=600.0 if digest else 0.0)
        row = Row(cell.name, ARMS[arm].meaning, tuple(items), None, origin)
        cell.write_measured(part, Measured(row, CONDITIONS, MACHINE, "1.0"))
        if digest:
            control = Control(cell.name, "all-linear", 8, 1_000, 0, 5_000)
            parts = [f"{each.name} {seed}" for each in SPECIALISTS.values()] if ARMS[arm].merging else []
            parts += [f"r16 {seed}"] if arm == "warm" else []
            cell.write_made(Made("work/a", digest, control, 40, 40, "1.0", tuple(parts)))
    for seed, (kl, rise) in enumerate(distances):
        draw = Random(f"{arm} {seed}")
        rises = tuple(rise + draw.uniform(-0.002, 0.002) for _ in range(40))
        sources = tuple(f"file {number}" for number in range(40))
        digest = f"{arm} {seed}"
        found = Distance(digest, sources, rises, Interval(kl, kl - 0.01, kl + 0.01, 40), "1.0")
        CellFolder.of(root, ARMS[arm], seed).write_distance(found)


def found_by(
    name: str, root: Path, seeds: int = 2, planned: int | None = None, scripts: float = 0.05
) -> StudyFinding:
    """Judge a study, whose scripts solve a twentieth, or another share."""
    script = Row("enumerate", "a script", tuple(solving(scripts)))
    base = CellFolder.of(root, ARMS["base"], 0)
    for part in (SOLVE, MANY, *ON.values()):
        base.write_others(part, Others((script,), CONDITIONS, "1.0"))
    return judge(STUDIES[name], Grid(root, seeds), planned or seeds)


def verdict(name: str, root: Path, seeds: int = 2) -> str:
    return found_by(name, root, seeds).verdict


def test_a_margin_is_cleared_by_the_whole_interval() -> None:
    assert above(Interval(0.1, 0.06, 0.2, 50), 0.05) == HELD
    assert above(Interval(0.1, 0.04, 0.2, 50), 0.05) == UNDECIDED
    assert above(Interval(0.0, -0.1, 0.04, 50), 0.05) == FAILED
    assert all_of([HELD, HELD]) == HELD
    assert all_of([HELD, UNDECIDED]) == UNDECIDED
    assert all_of([UNDECIDED, FAILED]) == FAILED


def test_one_of_many_fails_only_at_a_level_for_many() -> None:
    """An interval that ends below zero at 95 %, and above it at 97.5 %."""

    def compare(level: float) -> Interval:
        return Interval(-0.1, -0.2, -0.01 if level < 0.97 else 0.01, 50)

    def clear(level: float) -> Interval:
        return Interval(0.2, 0.1, 0.3, 50)

    assert all_above([compare], 0.0) == FAILED
    assert all_above([compare, clear], 0.0) == UNDECIDED
    assert all_above([clear, clear], 0.0) == HELD


@pytest.mark.parametrize(
    ("r1", "expected"), [((0.40, 0.40), UNDECIDED), ((0.2, 0.2), FAILED), ((0.45, 0.25), UNDECIDED)]
)
def test_rank(tmp_path: Path, r1: Sequence[float], expected: str) -> None:
    """Full fine-tuning's learning rate is not searched for, so nothing is shown to be within its gain."""
    write(tmp_path, "base", [solving(0.2)])
    write(tmp_path, "r1", [solving(rate) for rate in r1])
    for arm in ("r16", "full"):
        write(tmp_path, arm, [solving(0.40), solving(0.40)])
    assert verdict("rank", tmp_path) == expected


@pytest.mark.parametrize(("r8", "expected"), [(0.5, HELD), (0.3, FAILED), (0.36, UNDECIDED)])
def test_layers(tmp_path: Path, r8: float, expected: str) -> None:
    write(tmp_path, "base", [solving(0.2)])
    write(tmp_path, "attention", [solving(0.3), solving(0.3)])
    write(tmp_path, "r8", [solving(r8), solving(r8)])
    assert verdict("layers", tmp_path) == expected


def test_cost(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    write(tmp_path, "shots", [solving(0.25)])
    write(tmp_path, "prompt", [solving(0.3), solving(0.3)])
    write(tmp_path, "r16", [solving(0.4), solving(0.4)])
    write(tmp_path, "sft-6x", [solving(0.4), solving(0.4)])
    found = found_by("cost", tmp_path)
    assert found.verdict == HELD
    assert "minus a prompt that was searched for" in found.sentences[1]
    lines = {line[0]: line for line in found.tables[1].rows}
    assert lines["r16, seed 0"][1].startswith("$0.0000")
    assert lines["r16, seed 0"][2].startswith("$0.00")
    assert lines["base"][2] == NONE, "nothing was trained"
    assert {"shots", "sft-6x, seed 1"} <= lines.keys()
    assert lines["claude-opus-5"][1].startswith("at least $0.00")
    assert float(lines["claude-opus-5"][4].replace(",", "")) > 1
    write(tmp_path, "shots", [solving(0.5)])
    assert verdict("cost", tmp_path) == FAILED


def test_a_search_that_found_no_better_prompt_is_no_rival(tmp_path: Path) -> None:
    for arm, rate, seeds in (("base", 0.2, 1), ("shots", 0.25, 1), ("prompt", 0.2, 2), ("r16", 0.4, 2)):
        write(tmp_path, arm, [solving(rate)] * seeds)
    write(tmp_path, "sft-6x", [solving(0.4), solving(0.4)])
    found = found_by("cost", tmp_path)
    assert "searched for" not in found.sentences[1]
    assert any("found none that is better than the environment's own" in said for said in found.sentences)


def test_a_better_prompt_counts_whichever_seed_found_it(tmp_path: Path) -> None:
    for arm, rate, seeds in (("base", 0.2, 1), ("shots", 0.25, 1), ("r16", 0.4, 2), ("sft-6x", 0.4, 2)):
        write(tmp_path, arm, [solving(rate)] * seeds)
    write(tmp_path, "prompt", [solving(0.2), solving(0.3)])
    found = found_by("cost", tmp_path)
    assert "minus a prompt that was searched for" in found.sentences[1]
    assert any(
        said.startswith("The search found a better prompt with 1 of 2 seeds; ") for said in found.sentences
    )


def test_break_even_counts_the_upper_ends_of_our_dollars(tmp_path: Path) -> None:
    """A model whose price lies within our interval might be cheaper."""
    for arm, rate, seeds in (("base", 0.2, 1), ("shots", 0.25, 1), ("prompt", 0.3, 2), ("r16", 0.4, 2)):
        write(tmp_path, arm, [solving(rate)] * seeds)
    write(tmp_path, "sft-6x", [solving(0.4), solving(0.4)])
    lines = found_by("cost", tmp_path).tables[1].rows
    own = next(line[1] for line in lines if line[0] == "r16, seed 0")
    high = float(own.split(", $")[1].rstrip("]"))
    for name, price, _, _, after in lines:
        if price.startswith("at least"):
            assert (after == "no bound") == (float(price.split("$")[1]) <= high), name


@pytest.mark.parametrize("study", ["layers", "rank", "forgetting", "passk"])
def test_what_does_not_clear_the_scripts_decides_nothing(tmp_path: Path, study: str) -> None:
    """The page says so, and by how much."""
    samples = {"passk": 128}.get(study, 1)
    part = MANY if study == "passk" else SOLVE
    for arm in STUDIES[study].arms:
        rate = {"base": 0.01, "warm": 0.01, "r1": 0.01, "attention": 0.01}.get(arm, 0.08)
        write(
            tmp_path,
            arm,
            [solving(rate, samples=samples)] * (2 if ARMS[arm].has_seeds else 1),
            part,
            [(0.1, 0.0 if arm in ("base", "warm", "r16") else 0.1)] * (2 * ARMS[arm].has_adapter),
        )
    found = found_by(study, tmp_path)
    assert found.verdict == UNDECIDED
    assert any("minus scripts without a model: enumerate +" in said for said in found.sentences)
    assert found.tables[-1].head[2:] == tuple(f"{arm} minus it" for arm in STUDIES[study].arms)


@pytest.mark.parametrize(
    ("rise", "expected"), [(0.01, HELD), (0.09, FAILED), (0.05, UNDECIDED)]
)  # SFT's is 0.1
def test_forgetting_is_compared_where_as_much_is_solved(tmp_path: Path, rise: float, expected: str) -> None:
    write(tmp_path, "base", [solving(0.2)])
    for arm in ("r16", "r8", "r1", "attention", "steering"):
        write(tmp_path, arm, [solving(0.4), solving(0.4)], distances=[(0.1, 1 + rise), (0.1, 1 + rise)])
    for arm, rate, lost in (("warm", 0.25, 0.0), ("sft-3x", 0.39, 0.1), ("sft-6x", 0.5, 0.5)):
        write(tmp_path, arm, [solving(rate)] * 2, distances=[(5 * lost, 1 + lost), (5 * lost, 1 + lost)])
    found = found_by("forgetting", tmp_path)
    assert found.verdict == expected
    assert "sft-3x solves most nearly as much as r16" in found.sentences[1]
    assert "Over 14 runs, the rank correlation" in found.sentences[6]


def test_nothing_is_decided_where_there_is_nothing_to_forget(tmp_path: Path) -> None:
    def decided(solved: float, sft: float, lost: float, warm: float = 0.2, rise: float = -0.01) -> str:
        write(tmp_path, "base", [solving(0.1)])
        write(tmp_path, "warm", [solving(warm)] * 2, distances=[(0.1, 0.0)] * 2)
        for arm in ("r16", "r8", "r1", "attention", "steering"):
            write(tmp_path, arm, [solving(solved)] * 2, distances=[(0.1, rise)] * 2)
        for arm in ("sft-3x", "sft-6x"):
            write(tmp_path, arm, [solving(sft)] * 2, distances=[(0.1, lost)] * 2)
        return verdict("forgetting", tmp_path)

    assert decided(0.4, 0.4, 0.1) == HELD
    assert decided(0.4, 0.4, -0.005) == UNDECIDED, "SFT has not forgotten either"
    assert decided(0.4, 0.4, -0.2, rise=0.01) == FAILED, "RL has forgotten, and SFT has not"
    assert decided(0.4, 0.4, -0.2) == UNDECIDED, "neither has forgotten"
    assert decided(0.4, 0.3, 0.1) == UNDECIDED, "no SFT solves as much"
    assert decided(0.4, 0.4, 0.1, warm=0.4) == UNDECIDED, "RL has learned nothing"


def test_nothing_is_within_a_gain_that_is_none(tmp_path: Path) -> None:
    for arm, seeds in (("base", 1), ("r1", 2), ("r16", 2), ("full", 2), ("r8", 2), ("attention", 2)):
        write(tmp_path, arm, [solving(0.2)] * seeds)
    assert verdict("rank", tmp_path) == UNDECIDED
    assert verdict("layers", tmp_path) == UNDECIDED


def test_arms_of_other_sizes_decide_nothing(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    write(tmp_path, "attention", [solving(0.3), solving(0.3)])
    write(tmp_path, "r8", [solving(0.5), solving(0.5)])
    cell = CellFolder.of(tmp_path, ARMS["r8"], 1)
    assert cell.made is not None
    cell.write_made(replace(cell.made, control=replace(cell.made.control, size_bytes=1_100)))
    found = found_by("layers", tmp_path)
    assert found.verdict == UNDECIDED
    assert any("not as many numbers" in sentence for sentence in found.sentences)


def test_what_is_missing_or_too_short_decides_nothing(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    for arm, rate in (("r1", 0.25), ("r16", 0.4), ("full", 0.4)):
        write(tmp_path, arm, [solving(rate), solving(rate)])
    assert verdict("rank", tmp_path) == FAILED
    for seeds, planned, reason in (
        (1, 1, "Not decided: one seed says nothing of others."),
        (1, 2, "Not decided: there are 1 of 2 seeds, the number that was planned."),
        (2, 3, "Not decided: there are 2 of 3 seeds"),
        (3, 3, "Missing: r1, seed 2 (solve), r16, seed 2 (solve), full, seed 2 (solve)."),
    ):
        found = found_by("rank", tmp_path, seeds, planned)
        assert found.verdict == UNDECIDED
        assert reason in found.sentences[0]
    cell = CellFolder.of(tmp_path, ARMS["r1"], 1)
    assert cell.made is not None
    cell.write_made(replace(cell.made, steps=12))
    found = found_by("rank", tmp_path)
    assert found.verdict == UNDECIDED
    assert found.sentences[0] == "Not decided: r1, seed 1 ended after 12 of 40 steps."


def test_seeds_that_were_made_with_other_settings_are_not_taken_together(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    for arm in ("r1", "r16", "full"):
        write(tmp_path, arm, [solving(0.4), solving(0.4)])
    for seed, rate in ((0, 1e-4), (1, 2e-4)):
        cell = CellFolder.of(tmp_path, ARMS["full"], seed)
        assert cell.made is not None
        cell.write_made(replace(cell.made, settings={"learning_rate": rate, "lora_r": 16}))
    with pytest.raises(
        UsageError,
        match=r"seed 1 was made with learning_rate = 0\.0002, and full, seed 0 with \w+ = 0\.0001",
    ):
        found_by("rank", tmp_path)


def test_a_setting_that_came_later_had_its_default_before() -> None:
    assert differing_settings({"lora_r": 8}, {"lora_r": 8, "temperature": TrainConfig().temperature}) is None
    found = differing_settings({"lora_r": 8}, {"lora_r": 8, "max_steps": 7})
    assert found == (f"max_steps = {TrainConfig().max_steps}", "max_steps = 7")
    assert differing_settings({"lora_r": 8, "gone": 1}, {"lora_r": 8}) is None


def test_what_another_message_has_played_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "prompt", [solving(0.3)])
    cell = CellFolder.of(tmp_path, ARMS["prompt"], 0)
    cell.write_prompt(SystemPrompt("Say it at once.", 300, "1.0"))
    with pytest.raises(UsageError, match="of another adapter or message than prompt, seed 0 has"):
        cell.measured(SOLVE)
    origin = Origin(system=searched_message("Say it at once.", 0))
    row = Row("prompt, seed 0", "", tuple(solving(0.3)), None, origin)
    measured = Measured(row, CONDITIONS, MACHINE, "1.0")
    cell.write_measured(SOLVE, measured)
    assert Grid(tmp_path, 1).measured(cell, SOLVE) == measured


def test_specialists_that_learned_nothing_decide_nothing(tmp_path: Path) -> None:
    write_several(tmp_path, 0.1, own=0.1)
    route(tmp_path, 1.0)
    assert verdict("specialists", tmp_path) == UNDECIDED


@pytest.mark.parametrize("study", ["interference", "specialists"])
def test_specialists_that_do_not_clear_the_scripts_decide_nothing(tmp_path: Path, study: str) -> None:
    write_several(tmp_path, 0.3)
    route(tmp_path, 1.0)
    assert found_by(study, tmp_path).verdict != UNDECIDED
    found = found_by(study, tmp_path, scripts=0.6)
    assert found.verdict == UNDECIDED
    assert any("sql-desk: only-sql-desk minus scripts" in said for said in found.sentences)


def test_what_another_adapter_has_played_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "r1", [solving(0.4)], distances=[(0.1, 0.0)])
    cell = CellFolder.of(tmp_path, ARMS["r1"], 0)
    assert cell.made is not None
    cell.write_made(replace(cell.made, digest="trained again"))
    with pytest.raises(
        UsageError, match=r"solve\.json was measured of another adapter or message than r1, seed 0"
    ):
        cell.measured(SOLVE)
    with pytest.raises(UsageError, match=r"distance\.json was measured of another adapter"):
        _ = cell.distance


def test_scripts_stand_beside_what_is_trained(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.02)])
    write(tmp_path, "shots", [solving(0.02)])
    write(tmp_path, "prompt", [solving(0.02)] * 2)
    for arm in ("r16", "sft-6x"):
        write(tmp_path, arm, [solving(0.04)] * 2)
    found = found_by("cost", tmp_path)
    assert found.verdict == UNDECIDED
    assert "enumerate: \N{MINUS SIGN}1.0" in found.sentences[1]
    assert found.tables[-1].rows[0][0] == "enumerate"


def test_passk(tmp_path: Path) -> None:
    samples, tasks = 128, 100
    # The base solves each of the first 80 tasks once in 128, which the trained model solves always.
    seen = [result(task, int(task < 80), samples) for task in range(tasks)]
    write(tmp_path, "base", [seen], MANY)
    trained = [result(task, samples * (task < 80), samples) for task in range(tasks)]
    write(tmp_path, "r16", [trained, trained], MANY)
    write(tmp_path, "warm", [seen, seen], MANY)
    found = found_by("passk", tmp_path)
    assert found.verdict == HELD
    assert found.sentences[3].startswith(
        "Learned, by seed: 80 tasks, 80 tasks. "
        "Of these, tasks that no sample of 128 had solved before RL: 0, 0."
    )
    unseen = [result(task, 0, samples) for task in range(tasks)]
    write(tmp_path, "base", [unseen], MANY)
    assert verdict("passk", tmp_path) == HELD, "the base is not what RL began with"
    write(tmp_path, "warm", [unseen, unseen], MANY)
    assert verdict("passk", tmp_path) == FAILED
    few = [result(task, 0, 32) for task in range(tasks)]
    write(tmp_path, "warm", [few, few], MANY)
    assert verdict("passk", tmp_path) == UNDECIDED, "32 samples see too little"
    write(tmp_path, "warm", [unseen, unseen], MANY)
    write(tmp_path, "r16", [unseen, unseen], MANY)
    assert verdict("passk", tmp_path) == UNDECIDED
    (tmp_path / "base" / "many.json").unlink()
    with pytest.raises(UsageError, match="arm base is not measured yet"):
        verdict("passk", tmp_path)


def test_what_rl_gains_is_paired_with_what_each_seed_began_with(tmp_path: Path) -> None:
    """Seeds begin at 30 and 50 %, and each gains 10 points: nothing else can be seen of other seeds."""
    write(tmp_path, "warm", [solving(0.3), solving(0.5)])
    write(tmp_path, "r16", [solving(0.4), solving(0.6)])
    grid = Grid(tmp_path, 2)
    gain, apart = grid.gain("r16", "warm"), grid.difference("r16", "warm")
    assert gain.estimate == apart.estimate == pytest.approx(0.1)
    assert 0.0 < gain.low < gain.high < 0.2
    assert apart.low < -0.5
    with pytest.raises(UsageError, match="arms r16 and warm are not measured yet"):
        grid.gain("r16", "warm", MANY)


def test_a_warm_start_is_that_of_the_arm_which_is_there(tmp_path: Path) -> None:
    write(tmp_path, "r16", [solving(0.4)])
    write(tmp_path, "warm", [solving(0.3)])
    cell = CellFolder.of(tmp_path, ARMS["r16"], 0)
    assert cell.made is not None
    cell.write_made(replace(cell.made, digest="trained again"))
    with pytest.raises(UsageError, match="warm, seed 0 was made of other adapters than those"):
        Grid(tmp_path, 1).rows("warm")


@pytest.mark.parametrize(
    ("form", "rate", "expected"), [(0.1, 0.2, HELD), (0.45, 0.2, FAILED), (0.1, 0.4, FAILED)]
)
def test_steering(tmp_path: Path, form: float, rate: float, expected: str) -> None:
    for arm in ("base", "shots"):
        write(tmp_path, arm, [solving(0.2, cut_off=0.5)])
    write(tmp_path, "vector", [solving(rate, cut_off=form)] * 2, distances=[(0.1, 0.0)] * 2)
    for arm, solved in (("steering", 0.3), ("r1", 0.4), ("r16", 0.4)):
        write(tmp_path, arm, [solving(solved)] * 2, distances=[(0.1, 0.0)] * 2)
    found = found_by("steering", tmp_path)
    assert found.verdict == expected
    assert "the vectors gain 50.0 % of it" in found.sentences[2]
    write(tmp_path, "base", [solving(0.2, cut_off=0.0)])
    assert verdict("steering", tmp_path) == (HELD if form == 0.45 else FAILED), "fewer answers may end, too"


@pytest.mark.parametrize(
    ("together", "difference", "expected"),
    [
        ((80.0, 90.0, 85.0) * 2, 1e-5, HELD),
        ((80.0, 90.0, 85.0, 80.0, 70.0, 85.0), 1e-5, UNDECIDED),
        ((70.0, 60.0, 65.0) * 2, 1e-5, FAILED),
        ((80.0, 90.0, 85.0) * 2, 1e-3, FAILED),
        ((80.0, 90.0, 85.0, 80.0, 90.0), 1e-5, UNDECIDED),  # too few rounds
    ],
)
def test_multiplexing(tmp_path: Path, together: tuple[float, ...], difference: float, expected: str) -> None:
    rounds = len(together)
    speeds = {"base": (100.0,) * rounds, "32 together": together, "32 one by one": (5.0,) * rounds}
    found = Multiplexed(8, 64, speeds, difference, MACHINE, "1.0")
    CellFolder.of(tmp_path, ARMS["base"], 0).write_multiplexed(found)
    assert verdict("multiplexing", tmp_path) == expected


def write_several(root: Path, joint: float, own: float = 0.6, elsewhere: float = 0.1) -> None:
    """Write what specialists solve in their own environment and elsewhere, and what a joint adapter does."""
    for name, part in ON.items():
        write(root, "base", [solving(0.1)], part)
        for special, arm in SPECIALISTS.items():
            write(root, arm.name, [solving(own if special == name else elsewhere)] * 2, part)
        write(root, "joint", [solving(joint)] * 2, part)
        for arm in ("joint-worst", "merged-linear", "merged-ties"):
            write(root, arm, [solving(0.3)] * 2, part)


def test_one_environment_is_enough_to_show_interference(tmp_path: Path) -> None:
    write_several(tmp_path, 0.3)
    part = ON["sql-desk"]
    write(tmp_path, SPECIALISTS["sql-desk"].name, [solving(0.1)] * 2, part)  # it has learned nothing
    assert verdict("interference", tmp_path) == FAILED
    write_several(tmp_path, 0.6)
    write(tmp_path, SPECIALISTS["sql-desk"].name, [solving(0.1)] * 2, part)
    assert verdict("interference", tmp_path) == UNDECIDED


@pytest.mark.parametrize(
    ("joint", "own", "expected"),
    [(0.6, 0.6, HELD), (0.3, 0.6, FAILED), (0.55, 0.6, UNDECIDED), (0.1, 0.1, UNDECIDED)],
)
def test_interference(tmp_path: Path, joint: float, own: float, expected: str) -> None:
    write_several(tmp_path, joint, own)
    found = found_by("interference", tmp_path)
    assert found.verdict == expected
    differences = {line[0]: line[1:] for line in found.tables[1].rows}
    assert differences["only-sql-desk"][1] == NONE
    assert [bar.name for bar in found.bars[:3]] == [
        "code-editor: specialist",
        "code-editor: base",
        "code-editor: joint",
    ]


def route(root: Path, right: float, base_bytes: int = 10**6) -> None:
    """Write who answers: for this share of an environment's tasks its specialist, else another's."""
    names = [arm.name for arm in SPECIALISTS.values()]
    for place, part in enumerate(ON.values()):
        own, other = names[place], names[place - 1]
        arms = {f"t{task}": own if task < right * TASKS else other for task in range(TASKS)}
        for seed in range(2):
            cell = CellFolder.of(root, ARMS["routed"], seed)
            cell.write_chosen(part, RoutedTasks(arms, 600, 5.0, 10_000, base_bytes, 0.9, "1.0"))


@pytest.mark.parametrize(
    ("joint", "right", "base_bytes", "expected"),
    [
        (0.4, 1.0, 10**6, HELD),
        (0.55, 1.0, 10**6, UNDECIDED),
        (0.7, 1.0, 10**6, FAILED),
        (0.4, 0.2, 10**6, FAILED),
        (0.4, 1.0, 10**5, FAILED),  # the specialists and the router have 13,000 bytes
    ],
)
def test_specialists(tmp_path: Path, joint: float, right: float, base_bytes: int, expected: str) -> None:
    write_several(tmp_path, joint)
    route(tmp_path, right, base_bytes)
    found = found_by("specialists", tmp_path)
    assert found.verdict == expected
    confusion = found.tables[1].rows[1]
    assert confusion[0] == "sql-desk"
    assert confusion[-2:] == (f"{100 * right:.1f}", "90.0")


def test_a_routed_part_is_missing_until_all_chosen_have_played(tmp_path: Path) -> None:
    write_several(tmp_path, 0.4)
    route(tmp_path, 1.0)
    grid = Grid(tmp_path, 2)
    assert [cell.name for cell, _ in STUDIES["specialists"].missing(grid)] == ["base"] * 3  # scripts
    (tmp_path / "only-sql-desk-seed-1" / "on-sql-desk.json").unlink()
    missing = [(cell.name, part) for cell, part in STUDIES["specialists"].missing(grid)]
    assert missing[-2:] == [("only-sql-desk, seed 1", "on-sql-desk"), ("routed, seed 1", "on-sql-desk")]


def test_what_was_merged_of_other_adapters_is_refused(tmp_path: Path) -> None:
    write_several(tmp_path, 0.4)
    cell = CellFolder.of(tmp_path, SPECIALISTS["sql-desk"], 1)
    assert cell.made is not None
    cell.write_made(replace(cell.made, digest="trained again"))
    (cell.path / "on-sql-desk.json").unlink()
    with pytest.raises(UsageError, match="merged-linear, seed 1 was made of other adapters"):
        Grid(tmp_path, 2).rows("merged-linear", ON["sql-desk"])


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.9, HELD), (0.5, UNDECIDED), (0.25, FAILED), (0.0, UNDECIDED)]
)
def test_frontier(tmp_path: Path, rate: float, expected: str) -> None:
    def with_kinds(solved: float) -> list[TaskResult]:
        """Half of the tasks are of each kind, and a few of one that is too rare."""
        kinds = ["typo", "logic"] * 40 + ["rare"] * 20
        sources = [f"s{number if number < 80 else 80}" for number in range(TASKS)]
        return [
            replace(each, operator=kind, source=source)
            for each, kind, source in zip(solving(solved), kinds, sources, strict=True)
        ]

    for arm, seeds in (("base", 1), ("sft-1x", 2), ("r16", 2)):
        write(tmp_path, arm, [with_kinds(rate if arm == "r16" else 0.0)] * seeds, FRONTIER)
    origin = Origin("recorded", "gpt-4-0613", tokenizer="a tokenizer")
    large = Row("gpt-4-0613", "recorded", tuple(with_kinds(0.5)), None, origin)
    script = Row("enumerate", "a script", tuple(with_kinds(0.02)))
    cell = CellFolder.of(tmp_path, ARMS["base"], 0)
    with pytest.raises(UsageError, match="answers of gpt-4-0613 are not graded yet"):
        judge(STUDIES["frontier"], Grid(tmp_path, 2), 2)
    cell.write_others(FRONTIER, Others((large, script), CONDITIONS, "1.0"))
    found = judge(STUDIES["frontier"], Grid(tmp_path, 2), 2)
    assert found.verdict == expected
    _, kinds, costs, scripts = found.tables
    assert [line[0] for line in kinds.rows] == ["typo", "logic"]
    assert costs.rows[-1][0] == "gpt-4-0613"
    assert costs.rows[-1][1].startswith("$0.0")
    assert [line[0] for line in scripts.rows] == ["enumerate"]


def test_few_wins_on_a_rare_kind_decide_nothing(tmp_path: Path) -> None:
    """Of 20 tasks, 3 are won and none is lost: three coins that fall the same way, p = 0.25."""

    def results(solved: int) -> list[TaskResult]:
        return [replace(result(task, int(task < solved), 1), operator="typo") for task in range(20)]

    for arm, solved in (("base", 0), ("sft-1x", 0), ("r16", 3)):
        write(tmp_path, arm, [results(solved)] * (1 if arm == "base" else 2), FRONTIER)
    large = Row("gpt-4-0613", "recorded", tuple(results(0)), None, Origin("recorded", "gpt-4-0613"))
    CellFolder.of(tmp_path, ARMS["base"], 0).write_others(FRONTIER, Others((large,), CONDITIONS, "1.0"))
    assert judge(STUDIES["frontier"], Grid(tmp_path, 2), 2).verdict == UNDECIDED


def test_cells_of_other_conditions_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    for arm in ("r1", "r16", "full"):
        write(tmp_path, arm, [solving(0.4), solving(0.4)])
    cell = CellFolder.of(tmp_path, ARMS["r1"], 1)
    measured = cell.measured(SOLVE)
    assert measured is not None
    cell.write_measured(SOLVE, replace(measured, conditions=replace(CONDITIONS, code="other")))
    with pytest.raises(
        UsageError, match=r"r1, seed 1 and base were measured with different code; to measure"
    ):
        verdict("rank", tmp_path)


def test_scripts_of_other_conditions_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "base", [solving(0.2)])
    script = Row("enumerate", "a script", tuple(solving(0.05)))
    other = Others((script,), replace(CONDITIONS, tasks="others"), "1.0")
    CellFolder.of(tmp_path, ARMS["base"], 0).write_others(SOLVE, other)
    with pytest.raises(UsageError, match="scripts and base were measured under different conditions"):
        judge(STUDIES["rank"], Grid(tmp_path, 2), 2)


def test_missing_and_damaged_cells_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="arm r1 is not measured yet"):
        verdict("rank", tmp_path)
    write(tmp_path, "r1", [solving(0.4)])
    (tmp_path / "r1-seed-0" / "solve.json").write_text("{}")
    with pytest.raises(
        StoreError, match=r"solve\.json cannot be read .* to measure it again, delete .*work/solve"
    ):
        verdict("rank", tmp_path)


def test_what_a_page_needs_survives_being_written(tmp_path: Path) -> None:
    hacked = replace(result(0, 1, 2), rewards={"a": 1.0}, held_out=1, held_out_failed=1, voids=1)
    items = [hacked, result(1, 0, 2, 1)]
    write(tmp_path, "base", [items])
    measured = CellFolder.of(tmp_path, ARMS["base"], 0).measured(SOLVE)
    assert measured is not None
    assert measured.row.results == (replace(hacked, rewards={}, held_out=0, held_out_failed=0), items[1])
    assert str(tmp_path) not in (tmp_path / "base" / "solve.json").read_text()


def test_budgets(tmp_path: Path) -> None:
    for name in ("smoke", "cpu", "gpu"):
        budget = load_budget(name)
        assert budget.settings_of(ARMS["attention"])["lora_r"] == 33
        devices = {budget.config_of(arm).device for arm in ARMS.values()}
        devices |= {budget.play_of(part).config.device for part in (SOLVE, MANY, FRONTIER, *ON.values())}
        assert devices == {"cuda" if name == "gpu" else "cpu"}
    with pytest.raises(ConfigError, match="no budget 'large'; expected smoke, cpu, gpu, or a TOML file"):
        load_budget("large")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_budget(str(tmp_path / "none.toml"))
    (tmp_path / "own.toml").write_text("seeds = 1\nsteps = 2\n")
    with pytest.raises(ConfigError, match=r"own\.toml has the unknown field 'steps'"):
        load_budget(str(tmp_path / "own.toml"))
    with pytest.raises(ConfigError, match="seeds is 0; it must be at least 1"):
        replace(load_budget("cpu"), seeds=0)
    with pytest.raises(ConfigError, match="rows is 3; it must be even"):
        replace(load_budget("cpu"), rows=3)
    with pytest.raises(ConfigError, match="there is no arm 'r2'"):
        replace(load_budget("cpu"), arms={"r2": {}})


def test_an_arms_settings_are_those_that_its_run_gets(tmp_path: Path) -> None:
    """Otherwise, a run that was stopped could not be continued."""
    budget = replace(load_budget("cpu"), training={"sft_examples": 12})
    assert settings_of(budget, ARMS["r1"])["max_turns"] == 3
    assert settings_of(budget, ARMS["r1"])["sft_examples"] == 12
    (tmp_path / "program.toml").write_text('command = ["program", "{prompt}"]\n')
    harness = replace(budget, environment=f"code-editor@{tmp_path / 'program.toml'}")
    assert settings_of(harness, ARMS["r1"])["sft_examples"] == 0


def test_matched_arms_have_as_many_numbers() -> None:
    """LoRA of rank 8 on all layers of Qwen2.5-0.5B, and of the budgets' rank on attention."""
    hidden, inner, values = 896, 4864, 128
    attention = 2 * (hidden + hidden) + 2 * (hidden + values)
    mlp = 3 * (hidden + inner)
    rank = load_budget("cpu").settings_of(ARMS["attention"])["lora_r"]
    assert isinstance(rank, int)
    assert rank * attention == pytest.approx(8 * (attention + mlp), rel=0.02)


KINDS = (SaidLetters, CodeEditorLetters, SqlDeskLetters, ServiceDeskLetters)


BUDGET = """
model = "{model}"
environment = "letters"
split = "heldout"
max_task_chars = 500
seeds = 1
tasks = 6
samples = 2
many_tasks = 3
many_samples = 4
passages = 4
rows = 4
ticks = 2
rounds = 1
[training]
max_turns = 1
max_completion_length = 8
sft_examples = 4
sft_batch_size = 4
max_steps = 2
groups_per_step = 2
num_generations = 4
save_steps = 1
[several]
max_task_chars = 500
tasks = 4
samples = 1
[several.training]
max_turns = 1
max_completion_length = 8
lora_r = 4
sft_examples = 4
sft_batch_size = 4
max_steps = 1
groups_per_step = 3
num_generations = 2
[prompt]
rounds = 1
rewritings = 1
tasks_per_round = 3
checked = 3
[frontier]
models = ["gpt-4-0613", "larger"]
tasks = 9
[frontier.limits]
max_turns = 1
max_completion_length = 8
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_probe")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_all_studies_of_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envkit.env.registry.environment", {kind.id: kind for kind in KINDS}.__getitem__)
    # Without a certificate, an environment is rightly refused.
    monkeypatch.setattr("envkit.audit.certificate.require_certified", lambda *_, **__: None)
    budget = tmp_path / "own.toml"
    budget.write_text(BUDGET.format(model=tiny.make(tmp_path / "model").path))
    options: dict[str, Any] = {
        "budget": str(budget), "root": tmp_path / "grid", "display": "quiet",
    }  # fmt: skip
    with pytest.raises(UsageError, match="name their file, for example with --benchmark debugbench:PATH"):
        envkit.study("frontier", **options)
    with pytest.raises(UsageError, match="study rank plays the environment's own tasks"):
        envkit.study("rank", **options, benchmark="answers:file")
    without = tmp_path / "without.toml"
    without.write_text(
        budget.read_text().replace(
            "sft_examples = 4\nsft_batch_size = 4\nmax_steps = 2", "max_steps = 2\nsft_examples = 0"
        )
    )
    with pytest.raises(
        ConfigError, match=r"study passk compares RL with its warm start, and training\.sft_examples is 0"
    ):
        envkit.study("passk", **{**options, "budget": str(without)})
    with monkeypatch.context() as stopping:

        def stop(*_: object) -> None:
            raise InterruptedError

        stopping.setattr("envkit.runs.before_after.run.BeforeAfter.run", stop)
        for seeds in (1, 2):
            with pytest.raises(InterruptedError):
                envkit.study("rank", **options, seeds=seeds)  # the first training begins, then goes on
    for name in STUDIES:
        found = envkit.study(name, **options, benchmark="answers:file" if name == "frontier" else "")
        assert found.found is not None, name
        assert found.page is not None
        assert found.found.verdict in (HELD, FAILED, UNDECIDED)
        text = found.page.read_text()
        assert f"# {name}: {found.found.verdict}" in text
        assert (found.page.parent / f"{name}.svg").read_text().startswith("<svg xmlns=")
    states = envkit.list_studies(str(budget), root=tmp_path / "grid")
    assert {state.name: state.missing for state in states} == dict.fromkeys(STUDIES, 0)
    assert all(state.parts for state in states)

    # What is measured stays: pages are made again from the cells' small files alone.
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("trained or played again")

    for function in ("runs.training.train", "runs.measuring.evaluate", "studies.forgetting.call.forgetting"):
        monkeypatch.setattr(f"envkit.{function}", trained)
    before = {path: path.read_bytes() for path in (tmp_path / "grid" / "own").glob("*.*")}
    for name in STUDIES:
        envkit.study(name, **options)
    assert {path: path.read_bytes() for path in (tmp_path / "grid" / "own").glob("*.*")} == before
    with pytest.raises(AssertionError, match="trained or played again"):
        envkit.study("rank", **options, seeds=2)
    with pytest.raises(StoreError, match="was begun with another model"):
        envkit.study("rank", **options, model="another")
    (trained,) = (tmp_path / "grid" / "own" / "cells" / "r1-seed-0").glob("training.json")
    trained.write_text(trained.read_text().replace('"max_steps":2', '"max_steps":3'))
    with pytest.raises(
        UsageError, match=r"r1, seed 0 was made with max_steps = 3, and now it would be max_steps = 2"
    ):
        envkit.study("rank", **options, seeds=2)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no study 'ranks'; expected one of: rank, "):
        envkit.study("ranks", display="quiet")
    with pytest.raises(UsageError, match="arm r1 is not measured yet"):
        envkit.study("rank", measure=False, root=tmp_path, display="quiet")
    with pytest.raises(ModelError, match="no-such-model"):
        envkit.study("rank", model="no-such-model", root=tmp_path, display="quiet")
    with pytest.raises(UsageError, match="name their file, for example with --benchmark"):
        envkit.study("frontier", root=tmp_path, display="quiet")
    assert not [*tmp_path.iterdir()], "a later command would be compared with these"
    said = CliRunner().invoke(app, ["study", "list", "--root", str(tmp_path), "--json"])
    assert said.exit_code == 0, said.output
    assert [each["name"] for each in json.loads(said.stdout)] == [*STUDIES]
    assert all(each["missing"] == each["parts"] > 0 for each in json.loads(said.stdout))


def test_the_command_on_a_page_repeats_the_study(tmp_path: Path) -> None:
    budget = tmp_path / "my sizes.toml"
    budget.write_text(BUDGET.format(model="a-model"))
    cells = tmp_path / "grid" / "my sizes" / "cells"
    for arm in STUDIES["rank"].arms:
        write(cells, arm, [solving(0.2)])
    script = Row("enumerate", "a script", tuple(solving(0.05)))
    CellFolder.of(cells, ARMS["base"], 0).write_others(SOLVE, Others((script,), CONDITIONS, "1.0"))
    options: dict[str, Any] = {
        "budget": str(budget), "measure": False, "root": tmp_path / "grid", "display": "quiet",
    }  # fmt: skip
    for model, shown in ((None, ""), ("a-model", ""), ("other", " --model other")):
        page = envkit.study("rank", **options, model=model).page
        assert page is not None
        assert f"Command: `envkit study claim rank --budget '{budget}'{shown} --seeds 1`." in page.read_text()


RESULTS = Path(__file__).parents[2] / "docs" / "results" / "studies"


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/*.md")), ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_published_pages_follow_from_their_cells(page: Path, tmp_path: Path) -> None:
    budget = page.parent.name
    shutil.copytree(page.parent, tmp_path / budget)
    seeds = int(page.read_text().partition("--seeds ")[2].partition("`")[0])
    made = envkit.study(
        page.stem, budget=budget, seeds=seeds, measure=False, root=tmp_path, display="quiet"
    ).page
    assert made is not None
    for name in (page.name, f"{page.stem}.svg"):
        assert (made.parent / name).read_text() == (page.parent / name).read_text()
