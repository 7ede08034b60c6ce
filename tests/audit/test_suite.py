"""The suite that environments inherit: it runs every check of the audit, and says what it finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from echo_env import Echo, Gossip, Unmeasured

from envkit import Env, SandboxBackend, Task
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.suite import EnvSuite


class TestEcho(EnvSuite):
    kind = Echo


class TestGivenTasks(EnvSuite):
    """The environment's splits say nothing about tasks that a suite replaces."""

    kind = Echo

    @pytest.fixture(scope="class")
    @classmethod
    def tasks(cls) -> Sequence[Task]:
        return Echo.make_tasks("of a customer")

    @pytest.mark.parametrize("check", ["splits share no task"])
    def test_audit(self, audited: AuditedEnv, check: str) -> None:
        assert [task.split for task in audited.tasks] == ["of a customer"] * 3
        with pytest.raises(pytest.skip.Exception, match="the audit was given tasks"):
            super().test_audit(audited, check)


def run(kind: type[Env], check: str, backend: SandboxBackend) -> None:
    """Run a test of the suite, as pytest would."""
    suite: EnvSuite = type("Suite", (EnvSuite,), {"kind": kind})()
    suite.test_audit(AuditedEnv(kind, kind.make_tasks("starter"), backend, 3, own_tasks=True), check)  # pyright: ignore[reportCallIssue]


def test_what_does_not_apply_is_skipped_in_its_words(backend: SandboxBackend) -> None:
    with pytest.raises(pytest.skip.Exception, match="there are no heldout tasks"):
        run(Unmeasured, "splits share no task", backend)
    with pytest.raises(pytest.skip.Exception, match="it names no exploits"):
        run(Unmeasured, "exploits earn nothing", backend)


def test_a_fault_that_the_audit_finds_fails_in_its_words(backend: SandboxBackend) -> None:
    with pytest.raises(pytest.fail.Exception, match="equal episodes differ in observation 0"):
        run(Gossip, "episodes are reproducible", backend)
