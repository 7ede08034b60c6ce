"""The audit as tests that an environment's author inherits.

::

    class TestMyEnv(EnvSuite):
        kind = MyEnv
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable
from envkit.audit.runner import AUDIT_CHECKS
from envkit.env import Env
from envkit.sandbox import SandboxBackend
from envkit.types import Task


class EnvSuite:
    """Tests of an environment: one for each check of `envkit audit`, some with fewer episodes.

    The environment should come from a module that other processes can import, because some checks play it in
    others. A subclass may replace the fixtures ``backend`` and ``tasks``, which have class scope. With other
    tasks, the environment's splits are not checked, as with ``envkit audit --tasks``.

    Args:
        kind: the environment.
        max_turns: actions per episode, enough for the oracle; ``None`` for the environment's own number.
    """

    kind: ClassVar[type[Env]]
    max_turns: ClassVar[int | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> SandboxBackend:
        """The best isolated backend on this machine, with what the environment's class declares."""
        return cls.kind.equip()

    @pytest.fixture(scope="class")
    @classmethod
    def tasks(cls, backend: SandboxBackend) -> Sequence[Task]:
        """The environment's starter tasks."""
        return cls.kind.tasks_of("starter", backend)

    @pytest.fixture(scope="class")
    @classmethod
    def audited(cls, backend: SandboxBackend, tasks: Sequence[Task]) -> AuditedEnv:
        """The environment under audit."""
        turns = cls.kind.max_turns if cls.max_turns is None else cls.max_turns
        are_own = inspect.getattr_static(cls, "tasks") is vars(EnvSuite)["tasks"]
        return AuditedEnv(cls.kind, tasks, backend, turns, own_tasks=are_own, quick=True)

    @pytest.fixture
    def env(self, backend: SandboxBackend, tasks: Sequence[Task]) -> Iterator[Env]:
        """A fresh instance, closed after the test."""
        made = self.kind(tasks=tasks, sandbox=backend, max_turns=self.max_turns)
        yield made
        made.close()

    @pytest.mark.parametrize("check", AUDIT_CHECKS)
    def test_audit(self, audited: AuditedEnv, check: str) -> None:
        """The environment passes this check of `envkit audit`."""
        try:
            AUDIT_CHECKS[check](audited)
        except NotApplicable as reason:
            pytest.skip(str(reason))
        except AuditFailure as fault:
            pytest.fail(str(fault), pytrace=False)
