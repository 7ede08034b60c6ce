"""Check that digests of envkit's code change with its syntax, and not with comments and docstrings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import envkit
from envkit.environments.code_editor import CodeEditorEnv
from envkit.runs.folder import provenance
from envkit.runs.folder.provenance import code_digest, training_code_digest


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of envkit's code, whose digests are computed."""
    folder = tmp_path / "envkit"
    others = shutil.ignore_patterns("__pycache__", "environments", "agents")
    shutil.copytree(Path(envkit.__file__).parent, folder, ignore=others)
    monkeypatch.setattr(provenance, "_ROOT", folder)
    return folder


def test_comments_and_docstrings_may_be_edited_during_a_run(copy: Path) -> None:
    began = code_digest(CodeEditorEnv), training_code_digest()
    for name in ("rollout.py", "training/learner/loss.py", "engine/torch_engine.py"):
        source = (copy / name).read_text()
        assert source.startswith('"""')
        (copy / name).write_text('"""Other words."""\n# A comment.\n' + source.split('"""', 2)[2])
    assert (code_digest(CodeEditorEnv), training_code_digest()) == began


@pytest.mark.parametrize("name", ["rollout.py", "training/learner/loss.py", "engine/torch_engine.py"])
def test_a_changed_line_is_another_version(copy: Path, name: str) -> None:
    began = code_digest(CodeEditorEnv), training_code_digest()
    (copy / name).write_text((copy / name).read_text() + "\nADDED = 1\n")
    now = code_digest(CodeEditorEnv), training_code_digest()
    assert [old == new for old, new in zip(began, now, strict=True)].count(False) == 1


def test_code_that_moves_to_another_file_is_another_version(copy: Path) -> None:
    began = training_code_digest()
    (copy / "training/learner/loss.py").rename(copy / "training/goal.py")
    assert training_code_digest() != began
