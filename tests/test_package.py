"""The installed package: public names, imports, entry points and the wheel."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

import envkit

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALLED = distribution("envkit-rl")
ENTRY_POINTS = [point for point in INSTALLED.entry_points if point.group.startswith("envkit.")]

PUBLIC = [
    "ActionResult",
    "Adapter",
    "Agent",
    "AgentError",
    "AgentSpec",
    "Baseline",
    "BenchResult",
    "BenchSpec",
    "BrokenTask",
    "Check",
    "CommandEnv",
    "ConfigError",
    "Contents",
    "ContractError",
    "ControlResult",
    "Env",
    "EnvironmentSpec",
    "EnvkitError",
    "EpisodeKey",
    "EvalResult",
    "ExecResult",
    "Exploit",
    "Grade",
    "GymnasiumEnv",
    "ImportedTasks",
    "InterferenceResult",
    "LabelledText",
    "Limits",
    "MissingExtraError",
    "ModelError",
    "ModelUnavailable",
    "Outcome",
    "Peer",
    "PeerGone",
    "PromptResult",
    "PushResult",
    "Quota",
    "RegistryError",
    "Report",
    "RescoreResult",
    "Rollouts",
    "RouterResult",
    "Rubric",
    "SFTResult",
    "Sandbox",
    "SandboxBackend",
    "SandboxError",
    "SandboxUnavailable",
    "Score",
    "Session",
    "SteerResult",
    "StepRecord",
    "StopReason",
    "StoreError",
    "StudyResult",
    "StudyState",
    "SupportResult",
    "Task",
    "TaskFileError",
    "Tokens",
    "TooLargeError",
    "Tool",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "Trajectory",
    "Turn",
    "UnenforceableLimit",
    "UnpricedError",
    "Usage",
    "UsageError",
    "Utf8",
    "Variant",
    "Verdict",
    "VerifyResult",
    "__version__",
    "bench",
    "bench_spec",
    "check",
    "compare_controls",
    "evaluate",
    "forgetting",
    "interference",
    "leaderboard",
    "list_studies",
    "load_adapter",
    "make",
    "pass_at_k",
    "push_adapter",
    "rescore",
    "resume_bench",
    "resume_controls",
    "resume_interference",
    "resume_prompt_search",
    "resume_train",
    "search_prompt",
    "sft",
    "steer",
    "study",
    "support",
    "tool",
    "train",
    "train_router",
    "verify",
    "wrap",
]


def modules() -> Iterator[str]:
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        yield package
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not info.ispkg:
                yield info.name


def test_the_public_names_are_pinned() -> None:
    assert sorted(envkit.__all__) == PUBLIC
    assert all(hasattr(envkit, name) for name in PUBLIC)


def test_the_version_equals_that_of_pyproject() -> None:
    assert envkit.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("module", ["envkit", "envkit.runs", "envkit.cli.main"])
def test_importing_envkit_loads_no_heavy_modules(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"peft", "torch", "transformers", "trl"}.isdisjoint(loaded.split())


def test_importing_envkit_loads_neither_the_cli_nor_the_python_interface() -> None:
    """`envkit.train` and similar functions are loaded on first use."""
    code = "import sys, envkit; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"rich", "typer", "envkit.runs", "envkit.studies"}.isdisjoint(loaded.split())


@pytest.mark.parametrize("point", ENTRY_POINTS, ids=[f"{point.group}:{point.name}" for point in ENTRY_POINTS])
def test_the_entry_point_loads(point: importlib.metadata.EntryPoint) -> None:
    assert callable(point.load())


@pytest.mark.parametrize("module", list(modules()))
def test_doctests_pass(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_the_wheel_holds_one_package_and_its_data(tmp_path: Path) -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    expected: set[str] = set()
    for package, folder in setuptools["package-dir"].items():
        # Built from a copy, so that building leaves no files in the repository.
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for pattern in ("*.py", *setuptools["package-data"]["*"]):
            files = (path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob(pattern))
            expected.update(f"{package.replace('.', '/')}/{file}" for file in files)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)

    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"envkit/py.typed", "envkit/measure/report/report.html.j2", "envkit/agents/local.py"} <= found
