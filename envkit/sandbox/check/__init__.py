"""Checks that a sandbox backend isolates code and follows the protocol, by trying to break it.

Call `require_isolation` before hostile code runs. `self_check` tries all cases. Authors of a backend run
them as tests by inheriting from `envkit.sandbox.check.suite.SandboxSuite`.
"""

from __future__ import annotations

from typing import Final

from envkit.errors import SandboxUnavailable
from envkit.sandbox import SandboxBackend
from envkit.sandbox.check.commands import COMMANDS
from envkit.sandbox.check.context import Case, CaseResult, CheckContext, OutOfMemory, attempt
from envkit.sandbox.check.diagnosis import address_space_bytes, out_of_memory
from envkit.sandbox.check.files import FILES
from envkit.sandbox.check.isolation import ISOLATION
from envkit.sandbox.check.life import LIFE
from envkit.sandbox.check.limits import LIMITS
from envkit.sandbox.check.quota import QUOTA

#: All cases: the property that must hold, and the function that tries to break it.
CASES: Final[dict[str, Case]] = {**ISOLATION, **FILES, **COMMANDS, **LIMITS, **QUOTA, **LIFE}

#: The cases that must hold before hostile code may run; they take about a second.
ESSENTIAL: Final[dict[str, Case]] = {
    **ISOLATION,
    **{
        name: CASES[name]
        for name in (
            "keeps workspaces private",
            "follows no symlink",
            "refuses paths out of the workspace",
            "opens no FIFO",
            "kills the whole tree at the wall limit",
            "stops at the CPU limit",
            "stops at the output limit",
            "bounds memory",
            "bounds file size",
            "bounds what all files hold",
            "bounds how many files there are",
            "bounds processes",
            "answers line by line",
            "notices a forged answer",
            "resets to a snapshot",
            "keeps forks apart",
            "bounds what a fork holds",
            "leaves no trace",
        )
    },
}


def self_check(backend: SandboxBackend, cases: dict[str, Case] = CASES) -> list[CaseResult]:
    """Try to escape from this backend's sandboxes and to overload them; return one finding per case.

    Raises:
        SandboxUnavailable: the backend cannot make a sandbox here, or memory ran out.
    """
    try:
        with CheckContext.open(backend) as context:
            return [attempt(name, case, context) for name, case in cases.items()]
    except OutOfMemory as error:
        found = out_of_memory(address_space_bytes())
        raise SandboxUnavailable(
            f"cannot check sandbox {backend.name!r}: {found.cause}; {found.remedy}"
        ) from error


def require_isolation(backend: SandboxBackend) -> None:
    """Raise if a backend fails one of the `ESSENTIAL` cases. Call it before hostile code runs.

    Raises:
        SandboxUnavailable: names the backend, the first case it fails and what was found; or memory ran out.
    """
    if failed := [finding for finding in self_check(backend, ESSENTIAL) if not finding.ok]:
        raise SandboxUnavailable(
            f"sandbox {backend.name!r} does not isolate: {failed[0].name}: {failed[0].detail} "
            f"({len(failed)} of {len(ESSENTIAL)} cases fail); use another with --sandbox, see: envkit list"
        )


__all__ = ["CASES", "ESSENTIAL", "Case", "CaseResult", "require_isolation", "self_check"]
