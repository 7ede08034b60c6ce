"""The sandbox checks pass on isolating backends and name the cases that fail on others."""

from __future__ import annotations

import pytest

from envkit.errors import SandboxUnavailable
from envkit.sandbox import SandboxBackend
from envkit.sandbox.check import CASES, ESSENTIAL, require_isolation, self_check
from envkit.sandbox.check.quota import QUOTA
from envkit.sandbox.check.suite import SandboxSuite
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend

#: Cases that a plain child process fails, whichever user runs it.
FAILED_WITHOUT_ISOLATION = {
    "hides the host's files",
    "hides the host's packages",
    "hides the host's processes",
    "hides the host's name",
    "reaches no network",
    "reaches no socket of the host",
    "cannot gain rights",
    "opens no sockets that leave its namespaces",
    "reaches no keyring",
    "sees no counters of the machine",
    "watches no files",
    "learns nothing from locks on shared files",
    "bounds scratch space",
    "empties scratch folders between commands",
    *QUOTA,
}


@pytest.mark.slow
class TestBubblewrap(SandboxSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> SandboxBackend:
        return BubblewrapBackend()


class TestZygote(SandboxSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> SandboxBackend:
        return ZygoteBackend()


class TestDocker(SandboxSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, docker: SandboxBackend) -> SandboxBackend:
        return docker


def test_the_process_backend_follows_the_protocol_and_fails_the_isolation_cases() -> None:
    findings = self_check(ProcessBackend())
    assert [finding.name for finding in findings] == list(CASES)
    failed = {finding.name: finding.detail for finding in findings if not finding.ok}
    assert failed.keys() >= FAILED_WITHOUT_ISOLATION
    assert all(failed.values())
    # All other cases, such as files, commands and limits, pass without isolation.
    assert not [name for name in failed if name not in ESSENTIAL and name not in FAILED_WITHOUT_ISOLATION]
    with pytest.raises(SandboxUnavailable, match="'process' does not isolate"):
        require_isolation(ProcessBackend())


def test_the_suite_has_at_least_60_cases() -> None:
    assert len(CASES) >= 60
    assert len(ESSENTIAL) < len(CASES) / 2
