"""The isolation self-check passes where there is isolation and fails, by name, where there is none."""

from __future__ import annotations

import pytest

from envkit.sandbox import SandboxBackend
from envkit.sandbox_check import CASES, self_check
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend

#: What a plain child process cannot keep, whoever runs it.
BROKEN_WITHOUT_ISOLATION = {
    "hides the host's files",
    "hides the host's packages",
    "hides the host's processes",
    "reaches no network",
    "cannot gain rights",
    "opens no sockets that leave its namespaces",
    "reaches no keyring",
}


def test_bubblewrap_isolates() -> None:
    backend = BubblewrapBackend()
    if missing := backend.available():
        pytest.skip(missing)
    findings = self_check(backend)
    assert [finding.name for finding in findings] == list(CASES)
    assert [finding for finding in findings if not finding.ok] == []


def test_docker_isolates(docker: SandboxBackend) -> None:
    findings = self_check(docker)
    assert [finding.name for finding in findings] == list(CASES)
    assert [finding for finding in findings if not finding.ok] == []


def test_a_plain_process_does_not() -> None:
    findings = self_check(ProcessBackend())
    broken = {finding.name for finding in findings if not finding.ok}
    assert broken >= BROKEN_WITHOUT_ISOLATION
    assert all(finding.detail for finding in findings if not finding.ok)
    # The machinery that both backends share holds nevertheless.
    assert not broken & {
        "follows no symlink",
        "refuses paths out of the workspace",
        "notices a forged answer",
    }
