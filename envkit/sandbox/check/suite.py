"""The cases as pytest tests, for authors of a backend to inherit.

::

    class TestMyBackend(SandboxSuite):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls) -> SandboxBackend:
            return MyBackend()
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from envkit.sandbox import SandboxBackend
from envkit.sandbox.check import CASES
from envkit.sandbox.check.context import CheckContext, attempt


class SandboxSuite:
    """One test per case. A subclass names the backend in a fixture ``backend`` of class scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, backend: SandboxBackend) -> Generator[CheckContext]:
        """The sandbox that the cases share."""
        with CheckContext.open(backend) as opened:
            yield opened

    @pytest.mark.parametrize("case", CASES)
    def test_sandbox(self, context: CheckContext, case: str) -> None:
        """The backend passes this case."""
        found = attempt(case, CASES[case], context)
        assert found.ok, found.detail
