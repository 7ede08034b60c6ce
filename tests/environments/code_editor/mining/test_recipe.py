"""Recipes, which rebuild tasks without storing their source, and the frozen held-out set."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from envkit.environments.code_editor.mining.miner import Wanted, mine
from envkit.environments.code_editor.mining.recipe import (
    build_from_recipe,
    make_recipe,
    read_recipe,
    recipe_text,
    spread_order,
)
from envkit.environments.code_editor.tasksets import fetch_packages, half_of, mine_packages, pinned_packages
from envkit.errors import TaskFileError
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend
from envkit.types import Task

RECIPES: dict[str, dict[str, Any]] = {
    split: json.loads(
        resources.files("envkit.environments.code_editor").joinpath(f"{split}.json").read_text()
    )
    for split in ("train", "heldout", "test")
}
HELDOUT = RECIPES["heldout"]


@pytest.fixture
def recipe(tiny: str, backend: SandboxBackend) -> dict[str, Any]:
    wanted = Wanted(4, several=2, write=True, slips=3)
    tasks = spread_order(mine(tiny, seed=0, split="heldout", backend=backend, wanted=wanted), seed=0)
    made = make_recipe(tasks, seed=0, max_chars=700)
    assert build_from_recipe(made, backend) == tasks
    return json.loads(recipe_text(made))


def test_a_recipe_makes_the_same_tasks_again(recipe: dict[str, Any], backend: SandboxBackend) -> None:
    tasks = build_from_recipe(recipe, backend)
    assert len(tasks) == len(recipe["rows"]) >= 4
    assert all(task.split == "heldout" for task in tasks)


def test_a_recipe_holds_no_source(recipe: dict[str, Any]) -> None:
    text = recipe_text(recipe)
    assert "return" not in text
    assert "value" not in text


def test_another_version_of_the_package_is_refused(
    recipe: dict[str, Any], backend: SandboxBackend, install: Callable[..., None]
) -> None:
    install("tinypkg", "2.0", {"tinypkg/__init__.py": ""})
    build_from_recipe(recipe, backend)  # from 1.0, which is there too
    with pytest.raises(TaskFileError, match=r"installed in version 2.0, not 3.0.*pip install tinypkg==3.0"):
        build_from_recipe({**recipe, "packages": {"tinypkg": "3.0"}}, backend)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"digest": "0" * 64}, "expected 000000000000; the code that mines has changed"),
        (
            {"digest": "0" * 64, "python": "2.7"},
            r"expected 000000000000; Python \(it was made with 2.7, this is 3",
        ),
        (
            {"rows": [["tinypkg", "maths.clamp", "comparison-000000", [0, 1], False]]},
            "1 tasks cannot be made again",
        ),
    ],
)
def test_a_recipe_that_does_not_reproduce_its_tasks_is_refused(
    recipe: dict[str, Any], backend: SandboxBackend, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskFileError, match=message):
        build_from_recipe({**recipe, **changed}, backend)


@pytest.mark.parametrize("calls", [[9999], [-1]])
def test_calls_that_there_are_none_of_are_named(
    recipe: dict[str, Any], backend: SandboxBackend, calls: list[int]
) -> None:
    first = [*recipe["rows"][0]]
    first[3] = calls
    with pytest.raises(TaskFileError, match=r"names the calls \[-?\d+\], and there are \d+"):
        build_from_recipe({**recipe, "rows": [first]}, backend)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{torn", "not JSON"),
        ("[]", "field 'schema'"),
        ('{"schema": "envkit.recipe/9"}', "field 'schema' is 'envkit.recipe/2'"),
        ('{"schema": "envkit.recipe/2", "split": 3}', "field 'split': found int, expected str"),
        ('{"schema": "envkit.recipe/2", "split": "train"}', "field 'python': found nothing, expected str"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(TaskFileError, match=message) as raised:
        read_recipe(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        7,
        [],
        ["tinypkg", "f", "x"],
        ["tinypkg", "f", "x", [0]],
        ["tinypkg", "f", "x", [None], True],
        ["tinypkg", "f", "x", [0], 1],
        [1, "f", "x", [0], True],
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: object) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**HELDOUT, "rows": [*HELDOUT["rows"][:2], row]}))
    with pytest.raises(TaskFileError, match=r"field 'rows': row 2 is .*expected \[package"):
        read_recipe(path)


def test_a_device_or_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="/dev/zero cannot be read"):
        read_recipe(Path("/dev/zero"))
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(TaskFileError, match="not JSON"):
        read_recipe(tmp_path / "deep")


def test_a_recipe_without_tasks_is_refused() -> None:
    with pytest.raises(TaskFileError, match="no tasks"):
        make_recipe([], seed=0, max_chars=700)


def test_any_prefix_is_spread_over_functions_and_packages() -> None:
    tasks = [
        Task(
            f"{package}/f{function}/{number}",
            "heldout",
            "",
            {},
            {"package": package, "source": f"{package}:f{function}"},
        )
        for package, functions in (("a", 30), ("b", 10))
        for function in range(functions)
        for number in range(3)
    ]
    found = spread_order(tasks, seed=0)
    assert sorted(task.id for task in found) == sorted(task.id for task in tasks)
    assert found == spread_order(tasks[::-1], seed=0) != spread_order(tasks, seed=1)
    assert len({task.source for task in found[:40]}) == 40
    for length in (4, 20, 40):
        share = Counter(str(task.metadata["package"]) for task in found[:length])
        assert share["a"] == 3 * share["b"]


def _sources(split: str) -> list[str]:
    return [f"{row[0]}:{row[1]}" for row in RECIPES[split]["rows"]]


@pytest.mark.parametrize("split", ["heldout", "test"])
def test_the_sets_to_measure_on_are_large_and_search_solves_a_third_at_most(split: str) -> None:
    rows, sources = RECIPES[split]["rows"], _sources(split)
    assert len(rows) >= 300
    assert len(set(sources)) >= 150
    assert len(set(sources[:150])) == 150
    assert max(Counter(sources).values()) <= 4
    assert {row[0] for row in rows[:40]} == set(RECIPES[split]["packages"])
    assert {half_of(source) for source in sources} == {("heldout", "test").index(split)}
    for count in (300, len(rows)):
        assert sum(row[4] for row in rows[:count]) <= count / 3


def test_the_train_set_is_large_and_diverse() -> None:
    sources = _sources("train")
    assert len(set(sources)) >= 1500
    assert len(RECIPES["train"]["packages"]) >= 8


def test_the_recipes_name_the_versions_that_are_fetched() -> None:
    found = {name: version for recipe in RECIPES.values() for name, version in recipe["packages"].items()}
    assert found == pinned_packages()


def test_no_package_is_both_trained_and_measured_on() -> None:
    measured = RECIPES["heldout"]["packages"] | RECIPES["test"]["packages"]
    assert not RECIPES["train"]["packages"].keys() & measured.keys()


@pytest.mark.parametrize("split", ["heldout", "test"])
@pytest.mark.nightly
def test_mining_again_selects_the_same_tasks(backend: SandboxBackend, split: str) -> None:
    recipe = RECIPES[split]
    found = mine_packages(
        [*recipe["packages"]],
        backend,
        Silent(),
        seed=recipe["seed"],
        split=split,
        wanted=Wanted(1, 2, write=True),
        max_chars=recipe["max_chars"],
        half=("heldout", "test").index(split),
        is_pinned=True,
    )
    chosen = make_recipe(found, seed=recipe["seed"], max_chars=recipe["max_chars"])
    assert [row[:3] for row in chosen["rows"]] == [row[:3] for row in recipe["rows"]]
    if platform.python_version().startswith(f"{recipe['python']}."):
        assert chosen == recipe


def test_the_held_out_tasks_are_rebuilt_unchanged(backend: SandboxBackend) -> None:
    fetch_packages(Silent())
    tasks = build_from_recipe(HELDOUT, backend)  # raises if the digest differs
    assert len(tasks) == len(HELDOUT["rows"])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.slow
def test_the_other_sets_are_rebuilt_unchanged(backend: SandboxBackend, split: str) -> None:
    fetch_packages(Silent())
    assert len(build_from_recipe(RECIPES[split], backend)) == len(RECIPES[split]["rows"])
