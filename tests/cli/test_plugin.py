"""An environment in an installed package of its own: all commands find it and work on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ANALYST = (Path(__file__).parents[2] / "examples" / "analyst.py").read_text()
FEW = '    task_counts = {"train": 4, "heldout": 4}\n'
NAMED = '    id = "analyst"\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smallest example is installed as a package, as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_package.py").write_text(ANALYST.replace(NAMED, NAMED + FEW))
    about = folder / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[envkit.environments]\nanalyst = my_package:Analyst\n")
    return folder


def envkit(site: Path, *command: str, said: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "envkit.cli", *command],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_and_played(site: Path) -> None:
    assert "analyst" in json.loads(envkit(site, "list", "--json"))["environment"]
    seen = envkit(site, "play", "analyst", said="```\nrun\n```\n\nanswer(total=-1)\n")
    assert "What do the prices of item A in table.csv add up to?" in seen
    assert "FAIL, reward 0" in seen


@pytest.mark.parametrize(
    ("right", "wrong", "command", "words"),
    [
        ("from envkit import", "from csvv import", ["bench", "--agent", "oracle", "--env"], "No module"),
        ("class Analyst(Env)", "class Analyst(Env", ["play"], "SyntaxError: "),
        ("self.answered = None", "self.answered = Nome", ["play"], "NameError: name 'Nome'"),
        ("task.hidden['total']})", "task.hidden['sum']})", ["tasks", "check", "--env"], "KeyError: 'sum'"),
    ],
)  # fmt: skip
def test_a_fault_in_its_code_is_told_with_its_line(
    tmp_path: Path, site: Path, right: str, wrong: str, command: list[str], words: str
) -> None:
    shutil.copytree(site, tmp_path / "site")
    source = (site / "my_package.py").read_text()
    assert source.count(right) == 1
    (tmp_path / "site" / "my_package.py").write_text(source.replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-m", "envkit.cli", *command, "analyst"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert f"my_package.py, line {source[: source.index(right)].count(chr(10)) + 1}: " in done.stderr
    assert words in done.stderr
    assert "fault in envkit" not in done.stderr


def test_gymnasium_makes_it(site: Path) -> None:
    code = "import envkit, gymnasium; gymnasium.make('envkit/Analyst-v1', sandbox='process').close()"
    subprocess.run(
        [sys.executable, "-c", code], cwd=site, env={**os.environ, "PYTHONPATH": str(site)}, check=True
    )


def test_its_tasks_are_checked(site: Path) -> None:
    found = json.loads(envkit(site, "tasks", "check", "--env", "analyst", "--json"))
    assert found["ok"]
    assert [each["tasks"] for each in found["sets"]] == [4, 4]


def test_it_is_audited(site: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "envkit.cli", "train", "--env", "analyst"],
        env={**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(site / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert (
        "analyst has no valid certificate: it was never audited; run: envkit audit analyst" in refused.stderr
    )
    found = json.loads(envkit(site, "audit", "analyst", "-o", "certificate.json", "--json"))
    assert found["passed"], found["findings"]
    assert "# Audit of analyst" in (site / "certificate.md").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_it_is_trained_on(site: Path) -> None:
    settings = {
        "model": str(tiny.make(site / "model").path),
        **{"lora_r": 2, "sft_examples": 4, "sft_batch_size": 2, "max_steps": 1, "groups_per_step": 2},
        **{"num_generations": 2, "max_completion_length": 4},
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (site / "small.toml").write_text("\n".join(lines) + "\n")
    command = ("train", "--env", "analyst", "--config", "small.toml", "--unaudited", "--json")
    found = json.loads(envkit(site, *command))
    report = (Path(site, found["run"]) / "report.md").read_text()
    assert "analyst: held-out tasks before and after training" in report
    again = json.loads(envkit(site, "train", "--resume", found["run"], "--json"))
    assert again["reports"] == found["reports"]
