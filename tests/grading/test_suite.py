"""A repository's own tests as the grader: right from wrong, what it catches, and that it is weaker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from attack_target import FILES, REFERENCE, TARGET

from envkit.audit.attacks import ATTACKS
from envkit.errors import ConfigError, ContractError, SandboxError, SandboxUnavailable
from envkit.grading import PYTEST, Grade, grade_suite, outcomes, pytest_modules
from envkit.sandbox import PYTHON_OPTIONS, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.docker import DockerBackend
from envkit.sandboxes.zygote import ZygoteBackend
from envkit.types import Verdict

MAKERS: dict[str, Callable[[], SandboxBackend]] = {
    "bubblewrap": partial(BubblewrapBackend, PYTEST),
    "docker": partial(DockerBackend, PYTEST),
    "zygote": partial(ZygoteBackend, PYTEST, warm=pytest_modules()),
}
WANTED = [f"test_solution.py::test_{number}" for number in ("first", "second", "third")]
#: Of the attacks that fool who believes pytest's exit status, those that fool this grader too.
STILL_FOOLED = [15, 16, 17, 18, 19, 20, 21, 43]


@pytest.fixture(scope="module", params=MAKERS)
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    if request.param == "docker":
        request.getfixturevalue("docker")
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def warm() -> SandboxBackend:
    return MAKERS["zygote"]()


def judged(backend: SandboxBackend, source: str, **more: str) -> Grade:
    files = {"solution.py": source, **{path.replace("__", "."): text for path, text in more.items()}}
    return grade_suite(backend, {path: text.encode() for path, text in files.items()}, FILES, WANTED)


def test_the_reference_passes_and_the_bug_does_not(backend: SandboxBackend) -> None:
    found = outcomes(backend, {"solution.py": REFERENCE.encode()}, FILES)
    assert found == dict.fromkeys(WANTED, "passed")
    right, wrong = judged(backend, REFERENCE), judged(backend, TARGET.source)
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
def test_tricks_that_end_or_skip_the_tests_earn_nothing(
    warm: SandboxBackend, source: str, verdict: Verdict | None, evidence: str
) -> None:
    found = judged(warm, source)
    assert found.verdict is (verdict or found.verdict)
    assert found.verdict in (Verdict.FAIL, Verdict.TAMPERED)
    assert evidence in found.evidence, found


def test_a_candidate_does_not_steer_the_tests(warm: SandboxBackend) -> None:
    hook = "def pytest_collection_modifyitems(items): items.clear()\n"
    assert judged(warm, TARGET.source, conftest__py=hook).verdict is Verdict.TAMPERED
    assert judged(warm, TARGET.source, test_solution__py="def test_first(): pass\n").verdict is Verdict.FAIL


def test_a_suite_may_have_files_under_a_graders_names(warm: SandboxBackend) -> None:
    tests = {**FILES, "data/junit-sample.xml": b"<testsuite/>"}
    forges = "open('data/junit-sample.xml', 'w')\n"
    for source, verdict in ((REFERENCE, Verdict.PASS), (forges + REFERENCE, Verdict.TAMPERED)):
        found = grade_suite(warm, {"solution.py": source.encode()}, tests, WANTED)
        assert found.verdict is verdict, found


def test_it_is_fooled_by_some_that_fool_the_exit_status_and_not_by_others(warm: SandboxBackend) -> None:
    """The known weakness: code that reads or patches the tests from inside passes."""
    fooled: list[int] = []
    for attack in [one for one in ATTACKS if "A" in one.fools]:
        files = {"solution.py": TARGET.source, **attack.build(TARGET).files}
        found = grade_suite(warm, {path: text.encode() for path, text in files.items()}, FILES, WANTED)
        assert found.verdict is not Verdict.INFRA, attack
        if found.verdict is Verdict.PASS:
            fooled.append(attack.number)
    assert fooled == STILL_FOOLED


def test_without_pytest_inside_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="packages="):
        grade_suite(ZygoteBackend(), {}, FILES, WANTED)
    with pytest.raises(ContractError, match="no tests are wanted"):
        grade_suite(MAKERS["zygote"](), {}, FILES, [])


def test_a_suite_that_does_not_end_is_no_reference(warm: SandboxBackend) -> None:
    with pytest.raises(SandboxError, match="ended early"):
        outcomes(warm, {"solution.py": b"import os; os._exit(3)"}, FILES)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("no-such-package", "not installed"), ("numpy", "compiled code")],
)
def test_packages_that_cannot_be_copied_are_refused_by_name(name: str, problem: str) -> None:
    with pytest.raises(SandboxUnavailable, match=f"'{name}' .*{problem}"):
        BubblewrapBackend([name]).create()


def test_packages_are_there_when_asked_for_and_only_then(warm: SandboxBackend) -> None:
    code = "import importlib.util, sys; sys.path.append('/usr/lib/packages'); "
    code += "print(importlib.util.find_spec('pluggy') is not None)"
    for backend, there in (
        (warm, b"True\n"),
        (ZygoteBackend(), b"False\n"),
        (BubblewrapBackend(), b"False\n"),
    ):
        with backend.create() as sandbox:
            assert sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", code]).stdout == there
