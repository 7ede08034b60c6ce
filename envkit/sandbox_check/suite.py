"""The suite as tests that a backend's author inherits.

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
from envkit.sandbox_check import CASES
from envkit.sandbox_check.lab import Lab, attempt


class SandboxSuite:
    """One test per case; a subclass says what it is about with a fixture ``backend`` of class scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def lab(cls, backend: SandboxBackend) -> Generator[Lab]:
        """The sandbox that the cases share."""
        with Lab.open(backend) as opened:
            yield opened

    @pytest.mark.parametrize("case", CASES)
    def test_sandbox(self, lab: Lab, case: str) -> None:
        """What ought to hold does."""
        found = attempt(case, CASES[case], lab)
        assert found.ok, found.detail
