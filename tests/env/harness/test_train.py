"""`envkit.train` with a harness: measured before and after, recorded, and resumed by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

import envkit
from envkit.cli.main import app
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import starter_tasks
from envkit.errors import ConfigError, UsageError
from envkit.runs.folder.claim import ClaimedHardware

#: Asks once, and writes the answer into the file to repair.
WRITES = """
import json, os, sys, urllib.request
body = {"model": "policy", "messages": [{"role": "user", "content": sys.argv[1]}]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
    said = json.load(answer)["choices"][0]["message"]["content"]
open("solution.py", "w").write(said)
"""


def test_a_harness_without_rl_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("silent.toml").write_text('command = ["python3", "-c", "pass"]\n')
    with pytest.raises(
        UsageError, match=r"code-editor@silent\.toml has no known answers to imitate: .*; set max_steps, so"
    ):
        envkit.train("code-editor@silent.toml", config={"max_steps": 0}, display="quiet")


@pytest.mark.slow
def test_a_run_with_a_harness_trains_reports_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("writes.toml").write_text(
        f'command = ["python3", "-c", {json.dumps(WRITES)}, "{{prompt}}"]\nmax_calls = 1\n'
    )
    tasks = starter_tasks()
    heldout = [replace(task, split="heldout") for task in tasks[4:6]]
    settings: dict[str, Any] = {
        "model": str(tiny.make(tmp_path / "model").path),
        **{
            "lora_r": 2,
            "max_steps": 2,
            "groups_per_step": 2,
            "num_generations": 2,
            "max_completion_length": 4,
        },
    }
    with pytest.raises(UsageError, match="backend 'trl' cannot train code-editor@writes"):
        envkit.train("code-editor@writes.toml", config=settings, backend="trl", display="quiet")
    found = envkit.train(
        "code-editor@writes.toml",
        config=settings,
        tasks=tasks[:4],
        heldout_tasks=heldout,
        root=tmp_path / "runs",
        display="quiet",
    )
    [report] = found.reports
    assert report.solve_rate("oracle").estimate == 1
    assert report.solve_rate("no-op").estimate == 0
    assert report.solve_rate("base").estimate == report.solve_rate("RL").estimate == 0
    episodes = (found.run / "eval-base.jsonl").read_text()
    assert '\\"messages\\"' in episodes  # what the harness asked
    write_tasks(tmp_path / "heldout.jsonl", heldout, 0)
    spec = envkit.bench_spec(adapters=[found.run], tasks=tmp_path / "heldout.jsonl", model=settings["model"])
    assert [each.name for each in spec.environments] == ["code-editor@writes.toml"]
    [measured] = envkit.bench(spec, root=tmp_path / "runs", display="quiet").reports
    rates = [measured.solve_rate(row).estimate for row in measured.rows]
    assert (measured.rows[:3], rates) == (("oracle", "no-op", "base"), [1, 0, 0, 0])
    with pytest.raises(UsageError, match=r"episodes of code-editor@writes\.toml cannot be graded again"):
        envkit.rescore(measured.page.parents[1], root=tmp_path / "again", display="quiet")
    assert not (tmp_path / "again").exists()
    shown = replace(spec, agents=(*spec.agents[:2], replace(spec.agents[2], shots=1)))
    with pytest.raises(ConfigError, match="a harness has no solved tasks to show; leave shots out"):
        envkit.bench(shown, root=tmp_path / "again", display="quiet")
    assert not (tmp_path / "again").exists()
    with pytest.raises(UsageError, match=r"code-editor@writes\.toml has no known answers to imitate"):
        envkit.sft(tmp_path / "sft", environment="code-editor@writes.toml", config=settings, display="quiet")
    said = CliRunner().invoke(app, ["audit", "code-editor@writes.toml"])
    assert isinstance(said.exception, UsageError)
    assert "audit code-editor instead" in str(said.exception)
    again = envkit.resume_train(found.run, display="quiet")
    assert again.reports[0].solve_rate("RL") == report.solve_rate("RL")
    pushed = envkit.push_adapter(found.run, "me/writes", dry_run=tmp_path / "pushed")
    assert "writes.toml" in pushed.files
    assert "envkit verify ." in (tmp_path / "pushed" / "README.md").read_text()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "pushed")
        options: dict[str, Any] = {"tasks": heldout, "model": settings["model"], "display": "quiet"}
        assert envkit.verify(".", **options).reproduced
        here = ClaimedHardware.here
        other = classmethod(lambda cls, dtype: replace(here(dtype), cpu="another"))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(ClaimedHardware, "here", other)
            found_elsewhere = envkit.verify(".", **options)
        assert found_elsewhere.reproduced
        assert any("on other hardware than claimed" in each.detail for each in found_elsewhere.findings)
        Path("writes.toml").unlink()
        with pytest.raises(ConfigError, match=r"harness writes\.toml: cannot be read .* looked for in "):
            envkit.verify(".", **options)
    Path("writes.toml").write_text('command = ["python3", "-c", "pass"]\n')
    with pytest.raises(UsageError, match="is another than the claim was made with"):
        envkit.push_adapter(found.run, "me/writes", dry_run=tmp_path / "pushed-again")
    assert not (tmp_path / "pushed-again").exists()
    with pytest.raises(envkit.EnvkitError, match="changed since the run began"):
        envkit.resume_train(found.run, display="quiet")
