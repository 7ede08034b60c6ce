"""The router's decisions, on made-up features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envkit.errors import ModelError, UsageError
from envkit.serving.decoding.router import (
    FEWEST_TO_LIMIT,
    MISSED,
    Features,
    Router,
    fit,
    read_router,
    write_router,
)

WIDTH = 48
#: Centres of three tasks, and one that no specialist knows.
CENTERS = np.random.default_rng(1).normal(size=(4, WIDTH)) * 2
NAMES = ("red", "blue", "green")


def draw(task: int, count: int, seed: int) -> Features:
    """Features around a task's centre, which vary ten times as much in one half of the dimensions."""
    spread = np.where(np.arange(WIDTH) < WIDTH // 2, 1.0, 0.1)
    return CENTERS[task] + np.random.default_rng((seed, task)).normal(size=(count, WIDTH)) * spread


def fitted(names: tuple[str, ...] = NAMES, count: int = 30, limiting: int = 40) -> Router:
    return fit(
        {name: draw(NAMES.index(name), count, 2) for name in names},
        {name: draw(NAMES.index(name), limiting, 3) for name in names},
        layers=1,
        tokens=8,
        base_digest="base",
        dtype="float32",
    )


@pytest.fixture(scope="module")
def router() -> Router:
    return fitted()


def test_prompts_go_to_the_specialist_of_their_task_and_unknown_ones_to_the_base(router: Router) -> None:
    for task, name in enumerate(NAMES):
        chosen = router.choose(draw(task, 200, 4))
        assert chosen.count(name) >= 180
        assert {*chosen} <= {name, None}
    assert router.choose(draw(3, 200, 4)) == [None] * 200


def test_the_share_of_own_prompts_that_goes_to_the_base_is_as_promised() -> None:
    shares = [
        fit(
            {"red": draw(0, 30, seed)},
            {"red": draw(0, FEWEST_TO_LIMIT, seed + 1000)},
            layers=1,
            tokens=8,
            base_digest="",
        )
        .choose(draw(0, 100, seed + 2000))
        .count(None)
        / 100
        for seed in range(100)
    ]
    # The largest of 19 distances is exceeded with a probability of 1 in 20.
    assert np.mean(shares) == pytest.approx(MISSED, abs=3 * np.std(shares) / 10)


def test_prompts_of_an_unseen_part_of_a_task_go_to_its_specialist_too(router: Router) -> None:
    red = draw(0, 200, 4)
    offset = np.where(np.arange(WIDTH) < WIDTH // 2, 1.4, 0.0)  # where prompts vary
    shifted = red + offset * np.random.default_rng(7).choice([-1.0, 1.0], WIDTH)
    own = fitted(("red",))  # its limit is that of its own prompts
    assert own.choose(shifted).count("red") <= 20
    assert router.choose(shifted).count("red") >= 190
    assert router.limits_K[0] > own.limits_K[0]


def test_specialists_of_nearly_equal_tasks_answer_their_own_prompts_all_the_same() -> None:
    prompts = {"red": draw(0, 30, 2), "scarlet": draw(0, 30, 8) + 0.01}
    limiting = {"red": draw(0, 40, 3), "scarlet": draw(0, 40, 9) + 0.01}
    router = fit(prompts, limiting, layers=1, tokens=8, base_digest="base")
    assert router.choose(draw(0, 200, 4)).count(None) <= 20
    assert router.choose(draw(3, 200, 4)) == [None] * 200


def test_prompts_of_a_task_that_is_as_near_as_another_go_to_the_nearest(router: Router) -> None:
    between = (CENTERS[0] * 0.6 + CENTERS[1] * 0.4)[None]
    assert router.choose(between, with_base=False) == ["red"]


def test_a_prompt_within_one_limit_goes_there_although_another_mean_is_nearer() -> None:
    means, one = np.array([[0.0], [23.0]]), np.eye(1)
    router = Router(("wide", "narrow"), means, one, np.array([30.0, 5.0]), 1, 8, "base")
    assert router.choose(np.array([[12.0], [21.0], [31.0], [np.nan]])) == ["wide", "narrow", None, None]
    assert router.choose(np.array([[31.0]]), with_base=False) == ["narrow"]


def test_only_models_that_are_allowed_are_chosen(router: Router) -> None:
    own = draw(0, 1, 5)
    assert router.choose(own, {"blue", "green"}) == [None]
    assert router.choose(own, {"blue"}, with_base=False) == ["blue"]
    assert router.choose(own, ()) == [None]
    with pytest.raises(ValueError, match="neither"):
        router.choose(own, (), with_base=False)


def test_a_router_decides_the_same_after_it_was_written(router: Router, tmp_path: Path) -> None:
    write_router(router, tmp_path / "router")
    read = read_router(tmp_path / "router")
    assert (read.names, read.layers, read.tokens) == (NAMES, 1, 8)
    assert (read.base_digest, read.dtype) == ("base", "float32")
    some = np.concatenate([draw(task, 50, 6) for task in range(4)])
    assert (read.distances(some) == router.distances(some)).all()
    assert read.choose(some) == router.choose(some)


@pytest.mark.parametrize("damage", ["no file", "text", "cut", "other", "infinite"])
def test_a_file_that_is_no_router_is_refused(router: Router, tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "router"
    if damage == "text":
        path.write_text("not safetensors")
    elif damage == "cut":
        write_router(router, path)
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "other":
        save_file({"x": np.zeros(3)}, path)
    elif damage == "infinite":
        broken = Router(NAMES, router.means_KD, router.whitening_DD * np.inf, router.limits_K, 1, 8, "base")
        write_router(broken, path)
    with pytest.raises(ModelError, match="is no router"):
        read_router(path)


def test_too_few_or_equal_prompts_are_refused() -> None:
    with pytest.raises(UsageError, match="expected at least 2 and 19"):
        fitted(limiting=FEWEST_TO_LIMIT - 1)
    with pytest.raises(UsageError, match="all prompts of each specialist are equal"):
        fit(
            {"red": np.ones((4, 8))},
            {"red": np.ones((20, 8))},
            layers=1,
            tokens=8,
            base_digest="",
        )
