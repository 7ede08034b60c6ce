"""Running an attack directly against the split oracle, as a candidate's workspace would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envkit.env.compare import STRICT, NumericPolicy
from envkit.env.grade import Grade
from envkit.env.submission import Submission, SubmissionRejected
from envkit.environments.code_editor.attacks import AttackTarget, Attempt
from envkit.environments.code_editor.graders.oracle import Answer, Program, Questions, grade
from envkit.environments.code_editor.inputs.call import Call
from envkit.errors import SandboxUnavailable, UsageError
from envkit.sandbox import PYTHON_OPTIONS, Limits, Sandbox, SandboxBackend
from envkit.types import Verdict

#: Limits of the program that an attempt runs before it submits.
RUN_LIMITS = Limits(cpu_s=2.0, wall_s=5.0, memory_bytes=256 * 2**20, processes=16, output_bytes=2**16)


def run_attack(
    backend: SandboxBackend,
    target: AttackTarget,
    attempt: Attempt,
    calls: Sequence[Call],
    expected: Sequence[Answer],
    *,
    files: Mapping[str, bytes] | None = None,
    policy: NumericPolicy = STRICT,
) -> Grade:
    """Run an attempt in a new sandbox, collect its module, and grade that in another sandbox.

    Args:
        backend: makes both sandboxes.
        target: the function under attack.
        attempt: the candidate's files and program.
        calls, expected: the hidden calls and the reference's answers.
        files: the workspace's other files, among them ``target.protected``.
        policy: the tolerance for comparing numbers.

    Raises:
        SandboxError: the candidate's sandbox could not be made or does not isolate.
    """
    if not backend.isolated:  # some attempts kill every process they can
        raise SandboxUnavailable(f"sandbox {backend.name!r} does not isolate; attacks run in one that does")
    given = {target.module: target.source.encode(), **(files or {})}
    shown = {path: given[path] for path in [target.protected] if path is not None}
    with backend.create() as sandbox:
        for path, data in given.items():
            sandbox.write(path, data)
        try:
            _carry_out(sandbox, attempt)
            taken = Submission([target.module], shown).collect(sandbox)
        except SubmissionRejected as refused:
            return Grade(refused.verdict, refused.evidence)
    return grade(backend, Program(taken, target.module, target.function), Questions(calls, expected, policy))


def _carry_out(sandbox: Sandbox, attempt: Attempt) -> None:
    try:
        for path, text in attempt.files.items():
            sandbox.write(path, text.encode())
    except UsageError as error:
        raise SubmissionRejected(Verdict.TAMPERED, str(error)) from None
    if attempt.run is not None:
        sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", attempt.run], limits=RUN_LIMITS)
