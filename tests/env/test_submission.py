"""Submissions: the files that a grader accepts, and tampering."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envkit.env.submission import Submission, SubmissionRejected
from envkit.environments.code_editor.graders.oracle import Answer, Program, Questions, grade
from envkit.environments.code_editor.inputs.call import Call
from envkit.sandbox import Limits, Sandbox, SandboxBackend
from envkit.types import Verdict

SUBMISSION = Submission(["a.py", "sub/b.py"], {"tests.py": b"given"}, limit_bytes=100)


@pytest.fixture
def sandbox(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.create() as made:
        for path, data in {"a.py": b"1", "sub/b.py": b"2", "tests.py": b"given", "own.txt": b"3"}.items():
            made.write(path, data)
        yield made


def rejection(sandbox: Sandbox) -> tuple[Verdict, str]:
    with pytest.raises(SubmissionRejected) as found:
        SUBMISSION.collect(sandbox)
    return found.value.verdict, found.value.evidence


def run_program(sandbox: Sandbox, program: str) -> None:
    # Generous limits for a busy machine: only the files left by the program are tested.
    limits = Limits(cpu_s=60.0, wall_s=120.0)
    assert sandbox.run([sandbox.python, "-c", program], limits=limits).ok


def test_only_the_named_files_are_collected(sandbox: Sandbox) -> None:
    assert SUBMISSION.collect(sandbox) == {"a.py": b"1", "sub/b.py": b"2"}


@pytest.mark.parametrize(
    ("program", "verdict", "evidence"),
    [
        ("import os; os.unlink('a.py')", Verdict.FAIL, "a.py is missing"),
        ("import os; os.unlink('a.py'); os.mkdir('a.py')", Verdict.FAIL, "a.py is missing"),
        ("open('a.py', 'w').write('x' * 101)", Verdict.FAIL, "larger"),
        ("import os; os.unlink('a.py'); os.symlink('own.txt', 'a.py')", Verdict.TAMPERED, "symlink"),
        ("import os; os.rename('sub', 'x'); os.symlink('x', 'sub')", Verdict.TAMPERED, "symlink"),
        ("open('tests.py', 'w').write('mine!')", Verdict.TAMPERED, "tests.py was changed"),
        ("open('tests.py', 'a').write('!')", Verdict.TAMPERED, "tests.py was changed"),
        ("import os; os.unlink('tests.py')", Verdict.TAMPERED, "tests.py was changed"),
        ("open('sub/reward.txt', 'w')", Verdict.TAMPERED, "sub/reward.txt has a name that is reserved"),
        (
            "open('reward.json', 'w').write('1' * 2**21)",
            Verdict.TAMPERED,
            "a large file has a name that is reserved",
        ),
        ("import os\nfor _ in range(70): os.mkdir('d'); os.chdir('d')", Verdict.FAIL, "64 levels"),
    ],
)
def test_a_rejected_submission_is_explained(
    sandbox: Sandbox, program: str, verdict: Verdict, evidence: str
) -> None:
    run_program(sandbox, program)
    found = rejection(sandbox)
    assert found[0] is verdict
    assert evidence in found[1]


def test_a_right_answer_with_a_forged_verdict_file_is_tampering(backend: SandboxBackend) -> None:
    source = b"def f():\n    open('verdict.json', 'w').write('{}')\n    return 1\n"
    found = grade(backend, Program({"a.py": source}, "a.py", "f"), Questions([Call(())], [Answer(1, [])]))
    assert (found.verdict, found.passed) == (Verdict.TAMPERED, 0)
    assert "verdict.json has a name that is reserved" in found.evidence


SAMPLE = {"data/junit-sample.xml": b"<testsuite/>", "data/verdict.json": b"x" * 2**21}
APPENDS_TO_RESERVED_FILE = "def f():\n    open('data/junit-sample.xml', 'a').write(' ')\n    return 1\n"


def test_reserved_names_are_allowed_for_unchanged_files_of_the_host(backend: SandboxBackend) -> None:
    submission = Submission(["a.py"], SAMPLE)
    with backend.create() as made:
        for path, data in {"a.py": b"1", **SAMPLE}.items():
            made.write(path, data)
        assert submission.collect(made) == {"a.py": b"1"}
        made.write("data/junit-sample.xml", b"<forged/>")
        with pytest.raises(
            SubmissionRejected, match=r"data/junit-sample.xml has a name that is reserved"
        ) as found:
            submission.collect(made)
    assert found.value.verdict is Verdict.TAMPERED
    for source, verdict in (
        ("def f():\n    return 1\n", Verdict.PASS),
        (APPENDS_TO_RESERVED_FILE, Verdict.TAMPERED),
    ):
        subject = Program({"a.py": source.encode(), **SAMPLE}, "a.py", "f")
        assert grade(backend, subject, Questions([Call(())], [Answer(1, [])])).verdict is verdict
