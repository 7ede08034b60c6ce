"""A repository's own tests as the grader: right and wrong repairs, attacks, and its known weakness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from attack_target import FILES, REFERENCE, TARGET

from envkit.env.grade import Grade
from envkit.environments.code_editor.attacks import ATTACKS
from envkit.environments.code_editor.graders.suite import (
    PYTEST,
    PYTEST_MODULES,
    SUITE_LIMITS,
    grade_suite,
    outcomes,
)
from envkit.errors import ConfigError, ContractError, SandboxError
from envkit.sandbox import PYTHON_OPTIONS, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.docker import DockerBackend
from envkit.sandboxes.zygote import ZygoteBackend
from envkit.types import Verdict

MAKERS: dict[str, Callable[[], SandboxBackend]] = {
    "bubblewrap": partial(BubblewrapBackend, PYTEST),
    "docker": partial(DockerBackend, PYTEST),
    "zygote": partial(ZygoteBackend, PYTEST, warm=PYTEST_MODULES),
}
TEST_IDS = [f"test_solution.py::test_{number}" for number in ("first", "second", "third")]
#: Numbers of the attacks on pytest's exit status that also fool this grader.
STILL_FOOLED = [15, 16, 17, 18, 19, 20, 21, 43]


@pytest.fixture(scope="module", params=MAKERS)
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    if request.param == "docker":
        request.getfixturevalue("docker")
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def zygote_with_pytest() -> SandboxBackend:
    return MAKERS["zygote"]()


def grade_with(backend: SandboxBackend, source: str, **more: str) -> Grade:
    files = {"solution.py": source, **{path.replace("__", "."): text for path, text in more.items()}}
    return grade_suite(backend, {path: text.encode() for path, text in files.items()}, FILES, TEST_IDS)


def test_the_reference_passes_and_the_bug_does_not(backend: SandboxBackend) -> None:
    found = outcomes(backend, {"solution.py": REFERENCE.encode()}, FILES)
    assert found == dict.fromkeys(TEST_IDS, "passed")
    right, wrong = grade_with(backend, REFERENCE), grade_with(backend, TARGET.source)
    assert (right.verdict, right.passed, right.total) == (Verdict.PASS, 3, 3)
    assert (wrong.verdict, wrong.evidence) == (Verdict.FAIL, "test_solution.py::test_first: failed")
    assert "one process" in right.weakness
    assert "one process" in wrong.weakness


@pytest.mark.parametrize(
    ("source", "verdict", "evidence"),
    [
        ("import os; os._exit(0)", Verdict.FAIL, "ended early"),
        ("raise SystemExit(0)", Verdict.FAIL, "not run"),
        ("import pytest; pytest.skip(allow_module_level=True)", Verdict.FAIL, "not run"),
        ("import pytest; pytest.exit('done', 0)", Verdict.FAIL, "not run"),
        ("while True: pass", Verdict.FAIL, "cpu limit"),
        ("import os; os.write(3, b'{}\\n'); os.write(4, b'{}\\n'); os.write(5, b'{}\\n')", None, ""),
        ("print('{\"outcomes\": {}}')", Verdict.FAIL, "failed"),
        ("syntax error", Verdict.FAIL, "not run"),
    ],
)
def test_ending_or_skipping_the_tests_does_not_pass(
    zygote_with_pytest: SandboxBackend, source: str, verdict: Verdict | None, evidence: str
) -> None:
    files = {"solution.py": source.encode()}
    found = grade_suite(zygote_with_pytest, files, FILES, TEST_IDS, replace(SUITE_LIMITS, cpu_s=3))
    assert found.verdict is (verdict or found.verdict)
    assert found.verdict in (Verdict.FAIL, Verdict.TAMPERED)
    assert evidence in found.evidence, found


@pytest.mark.parametrize("source", ["import time; time.sleep(60)", "while True: pass"])
def test_a_suite_that_wall_time_ended_is_marked(zygote_with_pytest: SandboxBackend, source: str) -> None:
    limits = replace(SUITE_LIMITS, **({"wall_s": 3} if "sleep" in source else {"cpu_s": 1}))
    found = grade_suite(zygote_with_pytest, {"solution.py": source.encode()}, FILES, TEST_IDS, limits)
    assert (found.verdict, found.timed_out) == (Verdict.FAIL, "sleep" in source)
    assert ("wall limit" if "sleep" in source else "cpu limit") in found.evidence


def test_a_candidate_can_neither_add_a_conftest_nor_replace_the_tests(
    zygote_with_pytest: SandboxBackend,
) -> None:
    hook = "def pytest_collection_modifyitems(items): items.clear()\n"
    assert grade_with(zygote_with_pytest, TARGET.source, conftest__py=hook).verdict is Verdict.TAMPERED
    assert (
        grade_with(zygote_with_pytest, TARGET.source, test_solution__py="def test_first(): pass\n").verdict
        is Verdict.FAIL
    )


def test_a_suite_can_contain_files_with_reserved_names(zygote_with_pytest: SandboxBackend) -> None:
    tests = {**FILES, "data/junit-sample.xml": b"<testsuite/>"}
    tampering = "open('data/junit-sample.xml', 'w')\n"
    for source, verdict in ((REFERENCE, Verdict.PASS), (tampering + REFERENCE, Verdict.TAMPERED)):
        found = grade_suite(zygote_with_pytest, {"solution.py": source.encode()}, tests, TEST_IDS)
        assert found.verdict is verdict, found


def test_only_the_known_attacks_on_the_exit_status_fool_the_suite_grader(
    zygote_with_pytest: SandboxBackend,
) -> None:
    """Code that reads or patches the tests inside their process passes."""
    fooled: list[int] = []
    for attack in [one for one in ATTACKS if "A" in one.fools]:
        files = {"solution.py": TARGET.source, **attack.build(TARGET).files}
        found = grade_suite(
            zygote_with_pytest, {path: text.encode() for path, text in files.items()}, FILES, TEST_IDS
        )
        assert found.verdict is not Verdict.INFRA, attack
        if found.verdict is Verdict.PASS:
            fooled.append(attack.number)
    assert fooled == STILL_FOOLED


def test_a_sandbox_without_pytest_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="with_pytest"):
        grade_suite(ZygoteBackend(), {}, FILES, TEST_IDS)
    with pytest.raises(ContractError, match="no tests are wanted"):
        grade_suite(MAKERS["zygote"](), {}, FILES, [])


def test_outcomes_of_a_suite_that_ends_early_raise(zygote_with_pytest: SandboxBackend) -> None:
    with pytest.raises(SandboxError, match="ended early"):
        outcomes(zygote_with_pytest, {"solution.py": b"import os; os._exit(3)"}, FILES)


def test_the_modules_to_import_ahead_are_pytests_default_plugins(zygote_with_pytest: SandboxBackend) -> None:
    code = "import _pytest.config; print(*_pytest.config.default_plugins)"
    with zygote_with_pytest.create() as sandbox:
        done = sandbox.run([sandbox.python, "-c", code])
    plugins = [name.removeprefix("_pytest.") for name in PYTEST_MODULES if name.startswith("_pytest.")]
    assert done.stdout.decode().split() == plugins


def test_only_requested_packages_are_in_the_sandbox(zygote_with_pytest: SandboxBackend) -> None:
    code = "import importlib.util, sys; sys.path.append('/usr/lib/packages'); "
    code += "print(importlib.util.find_spec('pluggy') is not None)"
    for backend, there in (
        (zygote_with_pytest, b"True\n"),
        (ZygoteBackend(), b"False\n"),
        (BubblewrapBackend(), b"False\n"),
    ):
        with backend.create() as sandbox:
            assert sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code]).stdout == there
