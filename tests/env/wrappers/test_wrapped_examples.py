"""The examples that wrap an application: a Gymnasium environment, an MCP server, a repository, an image."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from own_engine import import_root, make_root, own_engine

from envkit import Env, SandboxBackend
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.certificate import certify
from envkit.audit.runner import run_audit
from envkit.runtime.display import Silent
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes._docker import engine as docker_engine

FOLDER = Path(__file__).parents[3] / "examples"
#: Folder -> programs of this machine that stand for those of the image, which no registry here has.
EXAMPLES = {
    "frozen_lake": (),
    "notes_mcp": (),
    "repository_command": (),
    "shell_image": ("bash", "grep", "mkdir", "mv", "rm", "wc"),
}
#: What every environment has. The rest of an example's class is about its application.
OF_EVERY_ENVIRONMENT = {"make_task", "oracle", "exploits", "as_asked"}


class Example(NamedTuple):
    """An environment's class, its id in the entry point, and a backend that can run it."""

    kind: type[Env]
    id: str
    backend: SandboxBackend


def parameters(in_docker: pytest.MarkDecorator, at_night: Sequence[str] = ()) -> list[Any]:
    marks = [in_docker, pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine")]
    return [
        pytest.param(name, marks=marks if programs else pytest.mark.nightly if name in at_night else ())
        for name, programs in EXAMPLES.items()
    ]


@pytest.fixture(scope="module", params=parameters(pytest.mark.slow))
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    settings = tomllib.loads((FOLDER / request.param / "pyproject.toml").read_text())["project"]
    [(id, place)] = settings["entry-points"]["envkit.environments"].items()
    with contextlib.ExitStack() as until:
        patch = until.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "path", [str(FOLDER / request.param), *sys.path])
        module, _, name = place.partition(":")
        kind = getattr(importlib.import_module(module), name)
        if programs := EXAMPLES[request.param]:
            request.getfixturevalue("docker")
            until.enter_context(own_engine())
            root = tmp_path_factory.mktemp("image") / "root"
            make_root(root, programs)
            import_root(docker_engine.client(os.getpid()), root, kind.image)
        yield Example(kind, id, sandbox_backend("docker" if programs else "auto"))


def test_every_split_is_solved_by_the_oracle_and_by_no_exploit(example: Example) -> None:
    kind, id, backend = example
    assert kind.id == id
    seen: set[str] = set()
    for split in ("train", "heldout", "starter"):
        tasks = kind.tasks_of(split, backend)
        assert split == "starter" or not seen & {task.source for task in tasks}
        seen |= {task.source for task in tasks}
        env = kind(tasks=tasks, sandbox=backend)
        for task in tasks[:3]:
            episodes = [kind.oracle(task), *(exploit.actions for exploit in kind.exploits(task))]
            assert len(episodes) > 2
            for number, actions in enumerate(episodes):
                env.reset(seed=0, options={"task": task.id})
                rewards, ended, info = 0.0, False, {}
                for action in [*actions, *[actions[-1]] * env.max_turns]:
                    _, reward, terminated, truncated, info = env.step(action)
                    rewards += reward
                    if ended := terminated or truncated:
                        break
                assert ended
                assert (info["solved"], rewards) == (number == 0, float(number == 0)), (task.id, actions)
        env.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_application_takes_about_ten_lines(name: str) -> None:
    source = (FOLDER / name / name / "env.py").read_text()
    [made] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.Assign)]
    parts = [made] if isinstance(made, ast.Assign) else made.body
    ours = [part for part in parts if getattr(part, "name", "") not in OF_EVERY_ENVIRONMENT]
    assert len(parts) == len(ours) + (0 if isinstance(made, ast.Assign) else len(OF_EVERY_ENVIRONMENT))
    assert sum(len(ast.get_source_segment(source, part).splitlines()) for part in ours) <= 10


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "example", parameters(pytest.mark.nightly, at_night=["repository_command"]), indirect=True
)
def test_it_passes_its_audit_of_fewer_episodes(example: Example) -> None:
    kind, _, backend = example
    tasks = kind.make_tasks("starter", sandbox=backend, display=Silent())
    audited = AuditedEnv(kind, tasks, backend, kind.max_turns, own_tasks=True, quick=True)
    assert [finding for finding in run_audit(audited, Silent()) if finding.ok is False] == []


@pytest.mark.nightly
def test_it_passes_its_whole_audit(example: Example) -> None:
    found = certify(example.kind, example.backend, Silent())
    assert [finding for finding in found.findings if finding.ok is False] == []
