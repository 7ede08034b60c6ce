"""The suite passes on backends that isolate, and names the failed cases on one that does not."""

from __future__ import annotations

import pytest

from envkit.errors import SandboxUnavailable
from envkit.sandbox import SandboxBackend
from envkit.sandbox_check import CASES, ESSENTIAL, require_isolation, self_check
from envkit.sandbox_check.quota import QUOTA
from envkit.sandbox_check.suite import SandboxSuite
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.process import ProcessBackend
from envkit.sandboxes.zygote import ZygoteBackend

#: Cases that a plain child process fails, whichever user runs it.
BROKEN_WITHOUT_ISOLATION = {
    "hides the host's files",
    "hides the host's packages",
    "hides the host's processes",
    "hides the host's name",
    "reaches no network",
    "reaches no socket of the host",
    "cannot gain rights",
    "opens no sockets that leave its namespaces",
    "reaches no keyring",
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


def test_a_plain_process_keeps_the_protocol_and_does_not_isolate() -> None:
    findings = self_check(ProcessBackend())
    assert [finding.name for finding in findings] == list(CASES)
    broken = {finding.name: finding.detail for finding in findings if not finding.ok}
    assert broken.keys() >= BROKEN_WITHOUT_ISOLATION
    assert all(broken.values())
    # Files, commands, limits and the like need no isolation.
    assert not [name for name in broken if name not in ESSENTIAL and name not in BROKEN_WITHOUT_ISOLATION]
    with pytest.raises(SandboxUnavailable, match="'process' does not isolate"):
        require_isolation(ProcessBackend())


def test_the_suite_is_broad() -> None:
    assert len(CASES) >= 60
    assert len(ESSENTIAL) < len(CASES) / 2
