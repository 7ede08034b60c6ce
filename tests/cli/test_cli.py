"""The command line as a user meets it: exit codes, one-line errors, one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import envkit, envkit_process


def test_list_names_what_is_installed(tmp_path: Path) -> None:
    found = json.loads(envkit_process("list", "--json", cwd=tmp_path).stdout)
    assert "code-editor" in found["environment"]
    assert {"bubblewrap", "process"} <= set(found["sandbox"])
    assert found["script"] == ["no-op", "oracle"]
    assert {"gpt-5.6", "ollama"} <= set(found["card"])


def test_doctor_finds_this_machine_ready(tmp_path: Path) -> None:
    done = envkit_process("doctor", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["ready"], done.stdout
    assert done.returncode == 0


def test_doctor_finds_a_machine_ready_that_runs_no_model(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "import envkit.sandbox.check\n"
        "envkit.sandbox.check.self_check = lambda backend: []\n"  # takes long, and is not what this tests
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft', 'trl')))\n"  # as if absent
        "from envkit.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    [torch] = [each for each in found["checks"] if each["name"] == "torch"]
    assert found["ready"]
    assert not torch["ok"]
    assert "only for models that run here" in torch["detail"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tasks", "mine", "no-such-package", "-o", "out.jsonl"), ("no-such-package", "not installed")),
        (("tasks", "build", "good.jsonl", "-o", "out.jsonl"), ("good.jsonl", "recipe")),
        (("tasks", "check", "corrupt.jsonl"), ("corrupt.jsonl", "line 2", "JSON")),
        (("bench", "--agent", "model", "--heldout", "empty.jsonl"), ("empty.jsonl", "empty")),
        (("bench", "--agent", "model", "--heldout", "corrupt.jsonl"), ("corrupt.jsonl", "line 2", "JSON")),
        (("bench", "--agent", "model", "--heldout", "missing.jsonl"), ("missing.jsonl", "does not exist")),
        (("train", "--config", "unknown.toml"), ("unknown.toml", "learning_rte")),
        (("train", "--config", "wrong.toml"), ("wrong.toml", "max_steps")),
        (("train", "--env", "sql-desk", "--env", "sql-desk"), ("environment 'sql-desk'", "twice")),
        (("train", "--seed", "1", "--seed", "2", "--seed", "1"), ("seed 1", "twice")),
        (("train", "--seed", "1", "--seed", "2", "--minutes", "1"), ("--minutes is 1.0; at least 2",)),
        (("train", "--seed", "1", "--seed", "2", "--backend", "trl"), ("'trl'", "one adapter at a time")),
        (("train", "--seed", "1", "--seed", "5000000000"), ("seed is 5000000000",)),
        (("train", "--tracker", "comet"), ("no tracker is named 'comet'", "wandb")),
        (("models", "push", "nothing", "me/tiny"), ("nothing", "no adapter there")),
        (
            ("train", "--env", "sql-desk", "--env", "code-editor", "--tasks", "good.jsonl"),
            ("task files", "one"),
        ),
        (("bench", "--model", "/etc/hostname", "--heldout", "good.jsonl"), ("/etc/hostname", "a file")),
        (("bench", "--agent", "nobody", "--heldout", "good.jsonl"), ("nobody", "oracle")),
        (
            ("bench", "--model", "x", "--sandbox", "nowhere", "--heldout", "good.jsonl"),
            ("nowhere", "bubblewrap"),
        ),
        (("play", "sql-desk", "--sandbox", "nowhere"), ("nowhere", "bubblewrap")),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    write_tasks(tmp_path / "good.jsonl", [replace(starter_tasks()[0], split="heldout")], seed=0)
    (tmp_path / "empty.jsonl").touch()
    header = (tmp_path / "good.jsonl").read_text().splitlines()[0]
    (tmp_path / "corrupt.jsonl").write_text(f"{header}\n{{torn\n")
    (tmp_path / "unknown.toml").write_text("learning_rte = 1e-4\n")
    (tmp_path / "wrong.toml").write_text('max_steps = "many"\n')
    done = envkit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out.jsonl").exists()


def test_verbose_shows_the_trace(tmp_path: Path) -> None:
    done = envkit_process("-v", "bench", "--agent", "model", "--heldout", "missing.jsonl", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_a_recipe_is_mined_and_built_again(tmp_path: Path) -> None:
    mined = envkit(
        *("tasks", "mine", "toolz", "--split", "heldout", "--per-function", "1", "--max-chars", "120"),
        *("--recipe", "-o", "recipe.json", "--json"),
        cwd=tmp_path,
    )
    built = envkit("tasks", "build", "recipe.json", "-o", "tasks.jsonl", "--json", cwd=tmp_path)
    assert json.loads(mined.stdout)["digest"] == json.loads(built.stdout)["digest"]
    assert json.loads(mined.stdout)["tasks"] == len((tmp_path / "tasks.jsonl").read_text().splitlines()) - 1


def test_checking_tasks_finds_the_broken_one(tmp_path: Path) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    good, other = starter_tasks()[:2]
    write_tasks(tmp_path / "good.jsonl", [good, other], seed=0)
    done = envkit("tasks", "check", "good.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 tasks of 2 sources, 0 broken" in done.stdout

    # Nothing to mend: doing nothing earns the reward.
    solved = replace(other, files={"solution.py": str(other.hidden["reference"])})
    write_tasks(tmp_path / "broken.jsonl", [good, solved], seed=0)
    done = envkit("tasks", "check", "broken.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 1
    [found] = json.loads(done.stdout)["sets"]
    assert [line.split(",")[0] for line in found["broken"]] == [f"no-op earns 1 on {other.id}"]


def test_exported_tasks_are_the_environments_own(tmp_path: Path) -> None:
    from envkit.env.taskfile import digest, read_tasks
    from envkit.environments.service_desk.tasks import generate

    command = ("tasks", "export", "--env", "service-desk", "--split", "heldout", "-o", "desk.jsonl")
    done = envkit(*command, "--json", cwd=tmp_path)
    own = generate("heldout")
    assert json.loads(done.stdout) == {"tasks": len(own), "digest": digest(own), "file": "desk.jsonl"}
    assert read_tasks(tmp_path / "desk.jsonl") == [*own]
    done = envkit(
        "tasks", "export", "--env", "service-desk", "--split", "test", "-o", "no.jsonl", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "has no 'test' tasks of its own" in done.stderr


def test_an_unsafe_sandbox_is_refused(tmp_path: Path) -> None:
    done = envkit("bench", "--sandbox", "process", "--agent", "no-op", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not isolate" in done.stderr


def test_eval_of_a_script_writes_a_report(tmp_path: Path) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    write_tasks(tmp_path / "tasks.jsonl", [replace(t, split="heldout") for t in starter_tasks()[:3]], seed=0)
    done = envkit("bench", "--agent", "oracle", "--heldout", "tasks.jsonl", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    [report] = found["reports"]
    assert report["summary"]["arms"][0]["solve_rate"]["interval"]["estimate"] == 1.0
    assert report["summary"]["arms"][0]["seconds"] > 0
    assert (tmp_path / report["report"]).exists()
    again = envkit("view", found["run"], "--rebuild", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["reports"] == [report["report"]]


def test_train_tasks_are_not_called_held_out(tmp_path: Path) -> None:
    from envkit.env.taskfile import write_tasks
    from envkit.environments.code_editor import starter_tasks

    write_tasks(tmp_path / "tasks.jsonl", starter_tasks()[:3], seed=0)
    done = envkit("bench", "--agent", "oracle", "--heldout", "tasks.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "is of split 'train'; expected 'heldout'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_push_says_what_it_would_upload(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"):
        (adapter / name).write_text("{}")
    (adapter / "base.json").write_text('{"model": "owner/base", "digest": "d1"}')
    done = envkit("models", "push", "adapter", "me/tiny", "--dry-run", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "manifest.json"]
    assert [line.split()[-1] for line in done.stdout.splitlines()[:-1]] == names
    assert done.stdout.splitlines()[-1] == "nothing is uploaded; the files are in out"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "owner/base"
    }
    assert "base_model: owner/base\n" in (tmp_path / "out" / "README.md").read_text()
    done = envkit("models", "push", "adapter", "me/tiny", "--dry-run", "again", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["adapter"], found["url"], [*found["files"]]) == ("adapter", "", names)


@pytest.mark.parametrize("minutes", ["0.5", "nan", "inf"])
def test_a_budget_that_is_too_small_is_refused_before_any_work(tmp_path: Path, minutes: str) -> None:
    done = envkit("demo", "--minutes", minutes, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--minutes is {minutes}" in done.stderr


def test_play_gives_up_at_end_of_input(tmp_path: Path) -> None:
    done = envkit_process("play", "code-editor", "--seed", "1", cwd=tmp_path, stdin="outline\n\n")
    assert "solution.py defines" in done.stdout
    assert "given up" in done.stdout
    assert done.returncode == 0


@pytest.mark.slow
def test_sandbox_check_names_the_cases_that_fail(tmp_path: Path) -> None:
    done = envkit("sandbox", "check", "bubblewrap", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, found["sandbox"], found["isolated"]) == (0, "bubblewrap", True)
    assert len(found["cases"]) >= 60
    done = envkit("sandbox", "check", "process", cwd=tmp_path)
    assert done.returncode == 1
    assert "no hides the host's files: found" in done.stdout


def test_packages_that_nobody_uses_are_reaped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.chmod(cache, 0o755)  # sandboxed code must be able to reach it
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        folder = Path(cache, "envkit/packages-0123456789abcdef")
        (folder / "plain-1.0.dist-info").mkdir(parents=True)
        (folder / "plain.py").write_bytes(bytes(2_340_000))
        assert "packages and data: none\n" in envkit_process("sandbox", "reap", cwd=tmp_path).stdout
        os.utime(folder, (0, 0))
        done = envkit_process("sandbox", "reap", cwd=tmp_path).stdout
        assert "packages and data: plain-1.0 (2.3 MB)\n" in done
        assert not folder.exists()


def test_leftovers_of_a_killed_run_are_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envkit.runtime.lease import Lease

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    lease = Lease(tmp_path)
    (lease.path / "work").mkdir()
    os.utime(lease.path, (0, 0))
    assert lease.path.name not in envkit_process("sandbox", "reap", cwd=tmp_path).stdout  # its owner lives
    os.close(lease._lock)  # as its owner's death would
    assert (
        lease.path.name
        in json.loads(envkit_process("sandbox", "reap", "--json", cwd=tmp_path).stdout)["folders"]
    )
    assert not lease.path.exists()
