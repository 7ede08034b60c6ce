"""Mining a checkout for tasks graded by its own suite: splits, exclusions, and visible files."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from shop_checkout import FILES, lay_out

from envkit.audit.instrumented import InstrumentedBackend
from envkit.cli.play.capture import CapturingBackend
from envkit.env.compare import canonical
from envkit.env.grade import Grade
from envkit.env.taskfile import digest, read_tasks, write_tasks
from envkit.environments.code_editor.graders.suite import PYTEST, grade_suite, with_pytest
from envkit.environments.code_editor.mining.duplicates import fingerprint
from envkit.environments.code_editor.mining.suite.checkout import SETTINGS, read_checkout
from envkit.environments.code_editor.mining.suite.miner import Mined, mine_checkout, split_of
from envkit.environments.code_editor.mining.suite.run_variants import run_suite_variants
from envkit.errors import UsageError
from envkit.sandbox import Contents, Quota, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.docker import DockerBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend
from envkit.types import Task, Verdict

STABLE = (
    *("tests/test_shop.py::test_due", "tests/test_shop.py::test_gross"),
    *("tests/test_shop.py::test_it_leaves_files_behind", "tests/test_stock.py::test_adding"),
    *("tests/test_stock.py::test_nothing_is_refused", "tests/test_stock.py::test_taking"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("shop"))


def mined(root: Path, backend: SandboxBackend, split: str = "train", **more: Any) -> Mined:
    return mine_checkout(root, seed=0, split=split, backend=backend, **{"per_function": 2, **more})


@pytest.fixture(scope="module")
def train(root: Path, backend: SandboxBackend) -> Mined:
    return mined(root, backend)


@pytest.fixture(scope="module")
def heldout(root: Path, backend: SandboxBackend) -> Mined:
    return mined(root, backend, "heldout")


def hidden_suite(task: Task) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", task.hidden["suite"])


def grade_version(task: Task, source: str, backend: SandboxBackend) -> Grade:
    """Grade a version of the task's file."""
    path, suite = str(task.metadata["path"]), hidden_suite(task)
    rest = {**{other: text for other, text in task.files.items() if other != path}, **suite["files"]}
    tests = {other: text.encode() for other, text in rest.items()}
    return grade_suite(with_pytest(backend), {path: source.encode()}, tests, suite["wanted"])


def repaired(task: Task) -> str:
    edit = cast("Mapping[str, str]", task.hidden["edit"])
    mutant = task.files[str(task.metadata["path"])]
    assert mutant.count(edit["search"]) == 1
    return mutant.replace(edit["search"], edit["replace"])


def test_the_oracle_wins_and_the_no_op_loses(train: Mined, heldout: Mined, backend: SandboxBackend) -> None:
    assert len(train.tasks) >= 8
    assert len(heldout.tasks) >= 4
    for task in [*train.tasks, *heldout.tasks]:
        right = grade_version(task, repaired(task), backend)
        wrong = grade_version(task, task.files[str(task.metadata["path"])], backend)
        assert (right.verdict, right.total) == (Verdict.PASS, len(STABLE))
        assert wrong.verdict is Verdict.FAIL
        assert wrong.evidence.split(": ")[0] == hidden_suite(task)["killers"][0]
        assert "one process" in right.weakness


def test_flaky_and_failing_tests_are_not_used_for_grading(train: Mined) -> None:
    assert train.stable == STABLE
    assert train.flaky == ("tests/test_stock.py::test_flaky",)
    assert train.failing == ("tests/test_stock.py::test_wrong_from_the_start",)
    assert all(hidden_suite(task)["wanted"] == list(STABLE) for task in train.tasks)
    assert all(set(hidden_suite(task)["killers"]) <= set(STABLE) for task in train.tasks)


def test_modules_are_assigned_to_splits_by_name(train: Mined, heldout: Mined) -> None:
    assert {str(task.metadata["module"]) for task in train.tasks} == {"shop.stock", "shop.basket"}
    assert {str(task.metadata["module"]) for task in heldout.tasks} == {"shop.prices"}
    assert {task.split for task in train.tasks} == {"train"}
    assert {task.split for task in heldout.tasks} == {"heldout"}
    assert 150 < sum(split_of("shop", f"shop.m{number}") == "heldout" for number in range(1000)) < 250


def test_methods_are_mined_and_untested_functions_are_not(train: Mined) -> None:
    functions = {str(task.metadata["function"]) for task in train.tasks}
    assert {"Stock.take", "Stock.add", "Stock.total", "due"} <= functions
    assert "unlooked" not in functions


def test_a_copy_of_a_held_out_function_is_left_out_of_training_tasks(
    train: Mined, heldout: Mined, root: Path, backend: SandboxBackend
) -> None:
    assert train.duplicates == ("shop.stock.lowest",)
    assert heldout.duplicates == ()
    assert "shop.prices.cheapest" in {task.metadata["qualname"] for task in heldout.tasks}
    [due] = [node for node in ast.parse(FILES["src/shop/basket.py"].replace("\n        ", "\n")).body
             if isinstance(node, ast.FunctionDef) and node.name == "due"]  # fmt: skip
    found = mined(root, backend, per_function=1, fingerprints=[fingerprint(due)])
    assert found.duplicates == ("shop.basket.due", "shop.stock.lowest")
    assert "due" not in {task.metadata["function"] for task in found.tasks}


def test_a_tasks_metadata_names_its_origin(train: Mined) -> None:
    task = next(one for one in train.tasks if one.metadata["function"] == "Stock.take")
    facts = {
        "language": "python",
        "package": "shop",
        "version": "2.1",
        "commit": "",
        "license": "LICENSE",
        "origin": "src/shop/stock.py",
        "path": "shop/stock.py",
        "sha256": hashlib.sha256(repaired(task).encode()).hexdigest(),
        "module": "shop.stock",
        "function": "Stock.take",
        "qualname": "shop.stock.Stock.take",
        "source": "shop:shop.stock.Stock.take",
        "graded_by": "pytest-suite",
    }
    assert {key: task.metadata[key] for key in facts} == facts
    assert task.id.startswith(f"shop/shop.stock.Stock.take/{task.metadata['operator']}-")
    assert 0 < cast("float", task.metadata["difficulty"]) < 1
    assert task.prompt == "shop/stock.py has a bug, and tests of shop fail."


def test_a_task_contains_the_imported_modules_and_hides_the_suite(train: Mined) -> None:
    for task in train.tasks:
        module = task.metadata["module"]
        others = {
            "shop.stock": set[str](),
            "shop.basket": {"shop/prices.py", "shop/stock.py", "shop/basket.py"},
        }
        assert set(task.files) == {"shop/__init__.py", "shop/stock.py"} | others[str(module)]
        public = canonical([dict(task.files), task.metadata, task.prompt, task.id])  # type: ignore[list-item]
        assert "def test_" not in public
        assert "killers" not in public
        assert repaired(task) not in task.files.values()
        assert {"tests/test_shop.py", "tests/helpers.py", SETTINGS} <= set(hidden_suite(task)["files"])
        assert not set(hidden_suite(task)["files"]) & set(task.files)


def test_the_same_seed_gives_the_same_tasks(
    root: Path, heldout: Mined, backend: SandboxBackend, tmp_path: Path
) -> None:
    assert digest(mined(root, backend, "heldout", workers=1).tasks) == digest(heldout.tasks)
    write_tasks(tmp_path / "tasks.jsonl", heldout.tasks, seed=0)
    assert read_tasks(tmp_path / "tasks.jsonl") == list(heldout.tasks)


def test_progress_counts_runs(root: Path, backend: SandboxBackend) -> None:
    seen: list[tuple[int, int, int]] = []
    found = mined(root, backend, "heldout", per_function=1, progress=lambda *facts: seen.append(facts))
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][2] == len(found.tasks) > 0
    assert mined(root, backend, "heldout", max_chars=10).tasks == ()


def test_a_mutant_on_which_the_suite_does_not_end_becomes_no_task(
    tmp_path: Path, backend: SandboxBackend
) -> None:
    root = tmp_path / "loops"
    root.mkdir()
    (root / "loops.py").write_text(
        "def f(n):\n    steps = 0\n    while n > 0:\n        n -= 2\n        steps += 1\n    return steps\n"
    )
    (root / "test_loops.py").write_text("from loops import f\n\n\ndef test_f():\n    assert f(4) == 2\n")
    checkout = read_checkout(root)
    fitted = with_pytest(backend)
    loop = checkout.code["loops.py"].replace("n -= 2", "n += 2")
    died = "import os\nos._exit(0)\n"
    right, hung, gone = run_suite_variants(
        fitted, checkout, [{}, {"loops.py": loop}, {"loops.py": died}], hash_seed=1, cpu_s=1
    )
    assert right.outcomes == {"test_loops.py::test_f": "passed"}
    assert hung.outcomes is gone.outcomes is None
    split = split_of("loops", "loops")
    tasks = mined(root, backend, split, per_function=6).tasks
    assert len(tasks) > 2
    assert not [one for one in tasks if "n += 2" in one.files["loops.py"]]


def test_a_variant_does_not_affect_later_ones(tmp_path: Path, backend: SandboxBackend) -> None:
    """A variant may allocate all memory or leave a read-only folder behind."""
    root = tmp_path / "eats"
    root.mkdir()
    (root / "eats.py").write_text("def f(n):\n    return n\n")
    makes_read_only = (
        "import os\n\n\ndef test_f(tmp_path):\n    (tmp_path / 'a').mkdir()\n    os.chmod(tmp_path, 0o500)\n"
    )
    (root / "test_eats.py").write_text(f"from eats import f\n{makes_read_only}    assert f(4) == 4\n")
    checkout = read_checkout(root)
    fitted = with_pytest(backend)
    allocating = (
        "def f(n):\n    kept = []\n    while n:\n        kept.append(bytearray(10**7))\n    return n\n"
    )
    ran = run_suite_variants(fitted, checkout, [{}, {"eats.py": allocating}, {}], hash_seed=1, cpu_s=10)
    assert [one.outcomes for one in ran] == [
        {"test_eats.py::test_f": word} for word in ("passed", "failed", "passed")
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "tests/test_stock.py",
            "def test_it():\n    while True: pass\n",
            "does not run to its end in 1 CPU",
        ),
        (
            "src/shop/__init__.py",
            "raise RuntimeError('no')\n",
            "none of its .* passes each time.*RuntimeError",
        ),
    ],
)
def test_a_suite_that_cannot_grade_is_refused(
    tmp_path: Path,
    backend: SandboxBackend,
    name: str,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "envkit.environments.code_editor.mining.suite.miner._SUITE_CPU_S", 1.0
    )  # the endless test uses the whole limit
    root = lay_out(tmp_path, {name: text})
    with pytest.raises(UsageError, match=message) as raised:
        mined(root, backend)
    assert "\n" not in str(raised.value)


def test_test_files_that_cannot_be_imported_are_left_out(tmp_path: Path, backend: SandboxBackend) -> None:
    root = lay_out(tmp_path, {"tests/helpers.py": "import shop.absent\n"})
    found = mined(root, backend, "heldout", per_function=1)
    assert {test.split("::")[0] for test in found.stable} == {"tests/test_shop.py"}


def test_an_empty_split_is_refused(tmp_path: Path, backend: SandboxBackend) -> None:
    (tmp_path / "one.py").write_text("def f(n):\n    return n + 1\n")
    (tmp_path / "test_one.py").write_text("from one import f\n\n\ndef test_f():\n    assert f(4) == 5\n")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'one'\n")
    other = {"train": "heldout", "heldout": "train"}[split_of("one", "one")]
    with pytest.raises(UsageError, match=f"none of its 1 modules .* falls to split '{other}'"):
        mined(tmp_path, backend, other)


def test_a_backend_that_cannot_hold_pytest_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="'process' cannot hold 'pytest=="):
        mined(root, ProcessBackend())


@pytest.mark.parametrize("kind", [BubblewrapBackend, ZygoteBackend, DockerBackend])
def test_adding_pytest_keeps_a_backends_kind_quota_and_packages(kind: type[BubblewrapBackend]) -> None:
    bounded = kind(Contents(("sortedcontainers",)), quota=Quota(total_bytes=2**24, files=500))
    found = with_pytest(bounded, ["annotated-types"])
    assert isinstance(found, kind)
    assert found.quota == bounded.quota
    assert found.contents.packages == ("sortedcontainers", *PYTEST.packages, "annotated-types")
    assert with_pytest(found) is found


def test_adding_pytest_works_through_wrapped_backends() -> None:
    bounded = ZygoteBackend(Contents(("sortedcontainers",)), quota=Quota(total_bytes=2**24, files=500))
    for wrapper in (InstrumentedBackend(bounded), CapturingBackend(bounded)):
        found = with_pytest(wrapper)
        assert found.contents == bounded.contents | PYTEST
        assert found.quota == bounded.quota
    outer = InstrumentedBackend(bounded)
    with with_pytest(outer).create() as sandbox:
        assert sandbox.run([sandbox.python, "-c", "import pytest, sortedcontainers"]).ok
        outer.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            sandbox.write("a.txt", b"")
