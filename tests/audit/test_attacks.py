"""The attack corpus against the split oracle, and, to show that it is alive, against a naive grader."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import final

import pytest
from attack_runner import RUN_LIMITS, run_attack
from attack_target import CALLS, FILES, REFERENCE, TARGET

from envkit.env.compare import STRICT
from envkit.env.grade import Grade
from envkit.environments.code_editor.attacks import (
    ATTACKS,
    CORRECT,
    Attack,
    AttackTarget,
    Attempt,
    CorrectVariant,
)
from envkit.environments.code_editor.graders.oracle import Answer, Program, answers
from envkit.environments.code_editor.inputs.call import Call
from envkit.errors import SandboxUnavailable
from envkit.sandbox import Sandbox, SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.sandboxes.process import ProcessBackend
from envkit.types import Verdict


@pytest.fixture(scope="module", params=["bubblewrap", "docker", "zygote"])
def backend(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue("docker") if request.param == "docker" else sandbox_backend(request.param)


@pytest.fixture(scope="module")
def expected(backend: SandboxBackend) -> list[Answer]:
    found = answers(backend, Program({"solution.py": REFERENCE.encode()}, "solution.py", "total"), CALLS)
    assert len(found) == len(CALLS)
    return found


def judged(backend: SandboxBackend, one: Attack | CorrectVariant, expected: list[Answer]) -> Grade:
    policy = one.policy if isinstance(one, CorrectVariant) else STRICT
    return run_attack(backend, TARGET, one.build(TARGET), CALLS, expected, files=FILES, policy=policy)


def test_the_corpus_is_whole() -> None:
    assert {attack.number for attack in ATTACKS} == set(range(1, 67))
    names = [one.name for one in (*ATTACKS, *CORRECT)]
    assert len(set(names)) == len(names)
    assert len(CORRECT) >= 10
    assert [attack.name for attack in ATTACKS if attack.inapplicable(TARGET)] == []


def test_what_does_not_apply_says_why() -> None:
    bare = AttackTarget(TARGET.source, REFERENCE, "total", integers=False)
    reasons = {attack.number: reason for attack in ATTACKS if (reason := attack.inapplicable(bare))}
    assert set(reasons) == {14, 28, 43, 60, 61}
    assert reasons[61] == "the task was made from no package"


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{one.number} {one.name}" for one in ATTACKS])
def test_no_attack_wins(backend: SandboxBackend, expected: list[Answer], attack: Attack) -> None:
    found = judged(backend, attack, expected)
    assert found.verdict is attack.expected, found


@pytest.mark.parametrize("variant", CORRECT, ids=[one.name for one in CORRECT])
def test_right_solutions_pass(
    backend: SandboxBackend, expected: list[Answer], variant: CorrectVariant
) -> None:
    found = judged(backend, variant, expected)
    assert found.verdict is Verdict.PASS, found


# Controls: without what is tested above, the same programs win.


@final
class WithPackage(SandboxBackend):
    """Sandboxes in which the package that the task was made from can be imported."""

    name = "with-package"
    isolated = True

    def __init__(self, inner: SandboxBackend) -> None:
        self.inner = inner

    def available(self) -> str | None:
        return self.inner.available()

    def create(self) -> Sandbox:
        sandbox = self.inner.create()
        sandbox.write("sums.py", REFERENCE.encode())
        return sandbox


def test_importing_the_package_wins_where_it_can_be_imported(
    backend: SandboxBackend, expected: list[Answer]
) -> None:
    [attack] = [one for one in ATTACKS if one.number == 61]
    assert judged(WithPackage(backend), attack, expected).verdict is Verdict.PASS


def test_nothing_is_aimed_from_where_it_could_get_out() -> None:
    with pytest.raises(SandboxUnavailable, match="does not isolate"):
        run_attack(ProcessBackend(), TARGET, ATTACKS[0].build(TARGET), [], [])


def test_hard_coded_answers_win_where_no_input_is_new(backend: SandboxBackend) -> None:
    [attack] = [one for one in ATTACKS if one.number == 43]
    seen, known = [Call(("[1, 2, 3]",)), Call(("[10]",))], [Answer(6, [[1, 2, 3]]), Answer(10, [[10]])]
    assert run_attack(backend, TARGET, attack.build(TARGET), seen, known, files=FILES).verdict is Verdict.PASS


@cache
def pytest_itself() -> Mapping[str, bytes]:
    """What running pytest takes, by path below ``lib/``."""
    files: dict[str, bytes] = {}
    for name in ("py", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        if not spec.submodule_search_locations:
            files[f"{name}.py"] = Path(spec.origin).read_bytes()
            continue
        folder = Path(spec.origin).parent
        for path in folder.rglob("*.py"):
            if "lexers" not in path.parts or path.stem in ("__init__", "_mapping", "diff", "python"):
                files[f"{name}/{path.relative_to(folder)}"] = path.read_bytes()
    return files


_NAIVE = """
import json, os, runpy, sys
for path, text in json.load(sys.stdin).items():
    os.makedirs(os.path.dirname("/tmp/lib/" + path), exist_ok=True)
    open("/tmp/lib/" + path, "w").write(text)
sys.stdin = open(os.devnull)
sys.path.append("/tmp/lib")
sys.argv = ["pytest", "-q", "-p", "no:cacheprovider"]
runpy.run_module("pytest", run_name="__main__")
"""


def naive(backend: SandboxBackend, attempt: Attempt) -> bool:
    """Grader A: the candidate's workspace, ``python -m pytest``, and the exit status decides."""
    library = json.dumps({path: data.decode() for path, data in pytest_itself().items()}).encode()
    with backend.create() as sandbox:
        for path, text in {**FILES, "solution.py": TARGET.source.encode()}.items():
            sandbox.write(path, text)
        for path, text in attempt.files.items():
            sandbox.write(path, text.encode())
        return sandbox.run([sandbox.python, "-c", _NAIVE], stdin=library, limits=RUN_LIMITS).ok


def test_the_naive_grader_knows_right_from_wrong(backend: SandboxBackend) -> None:
    assert naive(backend, Attempt({"solution.py": REFERENCE}))
    assert not naive(backend, Attempt({}))


FOOLING = [attack for attack in ATTACKS if "A" in attack.fools]


@pytest.mark.parametrize("attack", FOOLING, ids=[f"{one.number} {one.name}" for one in FOOLING])
def test_attacks_that_fool_a_naive_grader_do(backend: SandboxBackend, attack: Attack) -> None:
    assert naive(backend, attack.build(TARGET))
