"""The code editor passes its audit, and its shipped certificate matches the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from envkit import SandboxBackend
from envkit.audit import certificate
from envkit.audit.runner import AuditedEnv, run_audit
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.runtime.display import Silent


def test_the_shipped_certificate_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change: envkit audit code-editor -o environments/code_editor/certificate.json."""
    monkeypatch.setattr(certificate, "cache_dir", lambda: tmp_path)
    assert certificate.certificate_problem(CodeEditorEnv) == ""


@pytest.mark.slow
def test_the_code_editor_passes_its_audit(backend: SandboxBackend) -> None:
    findings = run_audit(AuditedEnv(CodeEditorEnv, starter_tasks(), backend, 3, quick=True), Silent())
    assert [finding for finding in findings if finding.ok is False] == []
