"""Grade with a repository's own pytest suite.

Weaker than the split oracle, and every grade says so. Tests share a process with the candidate's code, which
can read their expectations and forge their outcomes. The grader detects a process that ends early, tests that
are skipped, deselected or missing, output other than the report, and files that configure pytest.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, cast

from envkit.env.compare import printable
from envkit.env.grade import Grade
from envkit.env.submission import SubmissionRejected, reject_reserved
from envkit.errors import ConfigError, ContractError, SandboxError
from envkit.sandbox import (
    PACKAGES,
    PYTHON_OPTIONS,
    Contents,
    ExecResult,
    Limits,
    Sandbox,
    SandboxBackend,
    StopReason,
    guest_source,
)
from envkit.types import Verdict

#: Packages that the sandbox needs. One version, so that the verdict of a suite does not depend on the day.
PYTEST: Final = Contents(("pytest==9.2.0",))
#: Names of this version's plugins, which pytest imports before any test.
_PLUGINS: Final = (
    "mark main runner fixtures helpconfig python terminal debugging unittest capture skipping legacypath "
    "tmpdir monkeypatch recwarn pastebin assertion junitxml doctest cacheprovider setuponly setupplan "
    "stepwise unraisableexception threadexception warnings logging reports faulthandler subtests"
)
#: Modules for backends to import ahead (``warm``).
PYTEST_MODULES: Final = (
    "pytest",
    *(f"_pytest.{name}" for name in _PLUGINS.split()),
    *("difflib", "pdb", "unittest", "xml.etree.ElementTree"),
)
#: The `Grade.weakness` of every grade made here.
WEAKNESS: Final = "tests ran in one process with the candidate's code, which could have forged their outcome"
#: Limits for the suite of a small repository.
SUITE_LIMITS: Final = Limits(cpu_s=20.0, wall_s=60.0)
#: Files that configure pytest. A candidate must not add one.
_STEERING: Final = (
    *("conftest.py", "pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini"),
    *("pyproject.toml", "tox.ini", "setup.cfg"),
)


def is_test_file(path: str) -> bool:
    """True if pytest collects tests from a file of this name."""
    name = PurePosixPath(path).name
    return name.endswith("_test.py") or (name.startswith("test_") and name.endswith(".py"))


def with_pytest(backend: SandboxBackend, packages: Sequence[str] = ()) -> SandboxBackend:
    """A copy of a backend whose sandboxes also hold pytest and ``packages``.

    Args:
        backend: the backend; returned unchanged if it holds them already.
        packages: further packages; see `envkit.sandbox.Contents.packages`.

    Raises:
        ConfigError, SandboxUnavailable: see `envkit.sandbox.SandboxBackend.with_contents`.
    """
    contents = backend.contents | PYTEST | Contents(tuple(packages))
    if contents == backend.contents:
        return backend
    # Another package could hold modules of these names, and would be imported with more rights.
    is_alone = contents.packages == PYTEST.packages and not contents.toolchains
    return backend.with_contents(contents, PYTEST_MODULES if is_alone else ())


def outcomes(
    backend: SandboxBackend,
    files: Mapping[str, bytes],
    tests: Mapping[str, bytes],
    limits: Limits = SUITE_LIMITS,
) -> dict[str, str]:
    """Run a suite on trusted code in a new sandbox and return the outcome of each test.

    Args:
        backend: makes a sandbox that holds `PYTEST`.
        files: workspace path -> content, of the code.
        tests: workspace path -> content, of the suite; pytest's configuration belongs here.

    Returns:
        Test id -> ``"passed"``, ``"failed"``, ``"skipped"`` or ``"error"``.

    Raises:
        ConfigError: the backend's sandboxes hold no pytest.
        SandboxError: the machinery failed, or the suite did not run to its end.
    """
    _require_pytest(backend)
    with backend.create() as sandbox:
        token, result = _run(sandbox, files, tests, limits)
    try:
        return _reported(token, result)
    except SubmissionRejected as refused:
        tail = result.stderr[-500:].decode(errors="replace").strip()
        raise SandboxError(f"the suite did not run to its end: {refused.evidence} {tail}".rstrip()) from None


def grade_suite(
    backend: SandboxBackend,
    files: Mapping[str, bytes],
    tests: Mapping[str, bytes],
    wanted: Sequence[str],
    limits: Limits = SUITE_LIMITS,
) -> Grade:
    """Run a suite on a candidate's files in a new sandbox.

    PASS needs every wanted test to pass. A run that wall time ended is a FAIL with `Grade.timed_out`. Broken
    machinery is INFRA. A candidate cannot cause an exception.

    Args:
        backend: makes a sandbox that holds `PYTEST`.
        files: the candidate's files, from `Submission.collect`.
        tests: the suite, which overwrites files of the same path.
        wanted: ids of the tests that must pass: those that `outcomes` found passing on the reference.

    Raises:
        ConfigError: the backend's sandboxes hold no pytest.
        ContractError: no test is wanted.
    """
    _require_pytest(backend)
    if not wanted:
        raise ContractError("no tests are wanted; a suite without tests would pass everything")
    total = len(wanted)
    if steering := [path for path in files if PurePosixPath(path).name in _STEERING and path not in tests]:
        evidence = f"{steering[0]} configures pytest, which a candidate may not do"
        return Grade(Verdict.TAMPERED, evidence, weakness=WEAKNESS, total=total)
    try:
        with backend.create() as sandbox:
            token, result = _run(sandbox, files, tests, limits)
            reject_reserved(sandbox, tests)
        if result.stop is StopReason.WALL:
            evidence = f"the tests took longer than {limits.wall_s:g} s ({result.stop})"
            return Grade(Verdict.FAIL, evidence, weakness=WEAKNESS, total=total, timed_out=True)
        found = _reported(token, result)
    except SubmissionRejected as refused:
        return Grade(refused.verdict, refused.evidence, weakness=WEAKNESS, total=total)
    except SandboxError as error:
        return Grade(Verdict.INFRA, str(error), weakness=WEAKNESS, total=total)
    passed = [test for test in wanted if found.get(test) == "passed"]
    if len(passed) == total:
        verdict, evidence = Verdict.PASS, f"all {total} tests passed"
    else:
        first = next(test for test in wanted if found.get(test) != "passed")
        verdict, evidence = Verdict.FAIL, f"{first}: {printable(found.get(first, 'not run')[:40])}"
    return Grade(verdict, evidence, weakness=WEAKNESS, passed=len(passed), total=total)


def _run(
    sandbox: Sandbox, files: Mapping[str, bytes], tests: Mapping[str, bytes], limits: Limits
) -> tuple[str, ExecResult]:
    """Run the suite; return the token that its report must contain, and the result of the process."""
    for path, data in {**files, **tests}.items():
        sandbox.write(path, data)
    token = secrets.token_hex(16)
    job = {"packages": PACKAGES, "tests": [path for path in tests if is_test_file(path)], "token": token}
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", guest_source("envkit.sandbox.programs", "suite_worker.py")]
    result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=limits)
    return token, result


def _require_pytest(backend: SandboxBackend) -> None:
    if backend.contents | PYTEST != backend.contents:
        raise ConfigError(
            f"sandbox {backend.name!r} was made without pytest; pass with_pytest(backend), of"
            " envkit.environments.code_editor.graders.suite"
        )


def _reported(token: str, result: ExecResult) -> dict[str, str]:
    """Read the outcomes from the report of a finished run.

    Raises:
        SubmissionRejected: the process failed, or its output is not the report.
    """
    if not result.ok:
        ended = result.stop if result.exit is None else f"{result.stop}, status {result.exit}"
        raise SubmissionRejected(Verdict.FAIL, f"the tests' process ended early ({ended})")
    if not result.stdout:
        raise SubmissionRejected(Verdict.FAIL, "the tests' process ended early and reported nothing")
    try:
        [line] = result.stdout.splitlines()
        report: object = json.loads(line)
    except (ValueError, RecursionError):
        raise SubmissionRejected(Verdict.TAMPERED, "wrote something beside the tests' report") from None
    fields = cast("dict[str, object]", report) if isinstance(report, dict) else {}
    found = fields.get("outcomes")
    if fields.get("token") != token or not isinstance(found, dict):
        raise SubmissionRejected(Verdict.TAMPERED, "forged the tests' report")
    return {str(test): str(outcome) for test, outcome in cast("dict[object, object]", found).items()}
