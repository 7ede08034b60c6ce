"""The split oracle: a sandbox answers calls, the host knows and compares the expected answers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import cast, final

from envkit.errors import ContractError, SandboxError
from envkit.grading.compare import EXACT, STRICT, Leniency, NumericPolicy, equal, opaque, relaxed, show
from envkit.grading.submission import SubmissionRejected, reject_reserved
from envkit.inputs.call import Call
from envkit.sandbox import PYTHON_OPTIONS, Limits, Peer, PeerGone, Sandbox, SandboxBackend
from envkit.types import JSON, Verdict

#: One function import and a few dozen calls of small functions.
GRADING_LIMITS = Limits(cpu_s=2.0, wall_s=20.0, memory_bytes=256 * 2**20, processes=16, output_bytes=2**20)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave: a value with the arguments after the call, or the raised type's name."""

    value: JSON = None
    after: JSON = None
    raises: str | None = None

    def show(self) -> str:
        """For people and agents: the value as source, or what was raised."""
        return f"raises {self.raises}" if self.raises else show(self.value)


@dataclass(frozen=True, slots=True)
class Program:
    """The code under question.

    Args:
        files: workspace path -> bytes.
        module: path of the module that defines the function.
        function: its name. ``Class.method`` is called on an instance of its own each time, made without
            arguments, so that no call finds what another left in one.
        modules: standard-library modules that call arguments may name.
    """

    files: Mapping[str, bytes]
    module: str
    function: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence; ``evidence`` may show hidden inputs, so it is for the host only.

    Args:
        weakness: why it proves less than the split oracle does, for every report; empty where it does not.
    """

    verdict: Verdict
    evidence: str
    passed: int
    total: int
    weakness: str = ""


@final
class _Conversation:
    """Asks one call at a time, so that a candidate never sees the inputs still to come."""

    def __init__(self, sandbox: Sandbox, subject: Program, limits: Limits) -> None:
        for path, data in subject.files.items():
            sandbox.write(path, data)
        worker = resources.files("envkit.grading").joinpath("worker.py").read_text()
        argv = [sandbox.python, *PYTHON_OPTIONS, "-c", worker]
        argv += [subject.module, subject.function, ",".join(subject.modules)]
        self._limits = limits
        self._peer: Peer = sandbox.open(argv, limits=limits)
        try:
            self.answer({})  # the import; a module that does not load is asked no calls
        except BaseException:
            self.close()
            raise

    def answer(self, request: Mapping[str, JSON]) -> Answer:
        ident = secrets.token_hex(8)
        line = self._peer.ask(json.dumps({**request, "id": ident}).encode(), self._limits.wall_s)
        try:
            reply: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PeerGone("answered with something that is not JSON", tampered=True) from error
        if not isinstance(reply, dict):
            raise PeerGone("answered with JSON that is not an object", tampered=True)
        fields = cast("dict[str, JSON]", reply)
        if fields.get("id") != ident:
            raise PeerGone("answered with a wrong request id", tampered=True)
        raises = fields.get("raises")
        if raises is not None:
            if not request:
                raise PeerGone(f"does not load: {str(raises)[:80]}")
            return Answer(raises=str(raises)[:80])
        return Answer(value=fields.get("value"), after=fields.get("after"))

    def call(self, call: Call) -> Answer:
        return self.answer({"args": list(call.args), "kwargs": dict(call.kwargs)})

    def close(self) -> None:
        self._peer.close()


def answers(
    backend: SandboxBackend, subject: Program, calls: Sequence[Call], limits: Limits = GRADING_LIMITS
) -> list[Answer]:
    """Run trusted code (an original, or a mutant of one) and return its answers.

    It runs in a sandbox of its own, never in one that a candidate has touched or will touch.
    Ends early where the program dies: the list is then shorter than ``calls``.

    Raises:
        SandboxError: the machinery failed.
    """
    found: list[Answer] = []
    with backend.create() as sandbox:
        talk: _Conversation | None = None
        try:
            talk = _Conversation(sandbox, subject, limits)
            for call in calls:
                found.append(talk.call(call))
        except PeerGone:
            pass
        finally:
            if talk is not None:
                talk.close()
    return found


def answerable(
    backend: SandboxBackend,
    subject: Program,
    calls: Sequence[Call],
    limits: Limits = GRADING_LIMITS,
    deaths: int = 3,
) -> tuple[list[Call], list[Answer]]:
    """The calls that trusted code answers with something that can be compared, and what it answers.

    A call that it dies of is left out, and the others are asked again: together they keep to the limits.

    Args:
        backend: where it runs, as for `answers`.
        subject: the trusted code.
        calls: costly ones last: after too many deaths the rest is left out.
        limits: for all calls that stay.
        deaths: calls that it may die of.

    Raises:
        SandboxError: the machinery failed.
    """
    asked = list(calls)
    found = answers(backend, subject, asked, limits)
    while len(found) < len(asked) and deaths > 0:
        del asked[len(found)]
        found = answers(backend, subject, asked, limits)
        deaths -= 1
    pairs = [
        (call, answer)
        for call, answer in zip(asked, found, strict=False)
        if answer.raises is None and not opaque([answer.value, answer.after])
    ]
    return [call for call, _ in pairs], [answer for _, answer in pairs]


def grade(
    backend: SandboxBackend,
    subject: Program,
    calls: Sequence[Call],
    expected: Sequence[Answer],
    policy: NumericPolicy = STRICT,
    limits: Limits = GRADING_LIMITS,
    leniency: Leniency = EXACT,
) -> Grade:
    """Ask a candidate every call, in a fresh sandbox, and compare on the host.

    PASS needs every answer equal; the first wrong one ends it. Nothing a candidate does can raise:
    dying, hanging, flooding and nonsense are FAIL, forged frames and files under a grader's names are
    TAMPERED, broken machinery is INFRA.

    Raises:
        ContractError: ``calls`` and ``expected`` differ in length, or there are none.
    """
    if not calls or len(calls) != len(expected):
        raise ContractError(f"{len(calls)} calls and {len(expected)} expected answers; they must pair up")
    try:
        with backend.create() as sandbox:
            found = _judge(sandbox, subject, calls, expected, policy, limits, leniency)
            reject_reserved(sandbox, subject.files)
            return found
    except SubmissionRejected as refused:
        return Grade(refused.verdict, refused.evidence, 0, len(calls))
    except SandboxError as error:
        return Grade(Verdict.INFRA, str(error), 0, len(calls))


def _judge(
    sandbox: Sandbox,
    subject: Program,
    calls: Sequence[Call],
    expected: Sequence[Answer],
    policy: NumericPolicy,
    limits: Limits,
    leniency: Leniency,
) -> Grade:
    """Ask every call and compare; no program of the candidate lives on afterwards."""
    passed, total = 0, len(calls)
    talk: _Conversation | None = None
    try:
        talk = _Conversation(sandbox, subject, limits)
        for call, want in zip(calls, expected, strict=True):
            got = talk.call(call)
            if not same(want, got, policy, leniency):
                shown = f"{call.source(subject.function)} gave {got.show()}, expected {want.show()}"
                return Grade(Verdict.FAIL, shown, passed, total)
            passed += 1
    except PeerGone as gone:
        return Grade(Verdict.TAMPERED if gone.tampered else Verdict.FAIL, gone.reason, passed, total)
    finally:
        if talk is not None:
            talk.close()
    return Grade(Verdict.PASS, f"all {total} calls answered as expected", passed, total)


def same(want: Answer, got: Answer, policy: NumericPolicy = STRICT, leniency: Leniency = EXACT) -> bool:
    """Whether two answers agree: same exception type, or equal value and equal arguments after."""
    if want.raises is not None or got.raises is not None:
        return want.raises == got.raises
    after_free = not leniency.arguments and want.value is not None
    try:
        return equal(relaxed(want.value, leniency), relaxed(got.value, leniency), policy) and (
            after_free or equal(want.after, got.after, policy)
        )
    except RecursionError:
        return False
