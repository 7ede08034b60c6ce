"""The split oracle: a sandbox answers calls, the host compares them with the expected answers."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast, final

from envkit.env.compare import EXACT, STRICT, Leniency, NumericPolicy, equal, opaque, printable, relaxed, show
from envkit.env.grade import Grade
from envkit.env.submission import SubmissionRejected, reject_reserved
from envkit.environments.code_editor.inputs.call import Call
from envkit.errors import ContractError, SandboxError
from envkit.sandbox import (
    PACKAGES,
    PYTHON_OPTIONS,
    Limits,
    Peer,
    PeerGone,
    Sandbox,
    SandboxBackend,
    guest_source,
)
from envkit.types import JSON, Verdict

#: Enough to import one module and make a few dozen calls of small functions.
GRADING_LIMITS = Limits(cpu_s=2.0, wall_s=20.0, memory_bytes=256 * 2**20, processes=16, output_bytes=2**20)
#: Calls in one message to a candidate. A message for each call would take most of a grade's time.
CALLS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one call: the value and the arguments after the call, or the type of the exception.

    Args:
        value: encoded by `envkit.sandbox.programs.worker.encode`.
        after: the arguments after the call, likewise.
        raises: type of the exception.
        within: of an expected answer, the absolute tolerance that the call's own argument sets, as in
            ``sqrt(2, epsilon=0.01)``.
    """

    value: JSON = None
    after: JSON = None
    raises: str | None = None
    within: float = 0.0

    def show(self) -> str:
        """The value as source, or the exception, for people and agents."""
        return f"raises {printable(self.raises)}" if self.raises else show(self.value)


@dataclass(frozen=True, slots=True)
class Questions:
    """Calls with the answers that they must get.

    Args:
        calls: in any order.
        expected: the answer to each call.
        policy: how numbers compare: one policy, or one for each call.

    Raises:
        ContractError: they differ in number.
    """

    calls: Sequence[Call]
    expected: Sequence[Answer]
    policy: NumericPolicy | Sequence[NumericPolicy] = STRICT

    def __post_init__(self) -> None:
        policies = len(self.calls) if isinstance(self.policy, NumericPolicy) else len(self.policy)
        if not len(self.calls) == len(self.expected) == policies:
            raise ContractError(
                f"{len(self.calls)} calls, {len(self.expected)} expected answers and {policies} policies; "
                "expected as many of each"
            )

    def policy_of(self, index: int) -> NumericPolicy:
        return self.policy if isinstance(self.policy, NumericPolicy) else self.policy[index]


@dataclass(frozen=True, slots=True)
class Program:
    """A function to call, with the files that it needs.

    Args:
        files: workspace path -> bytes.
        module: path of the module that defines the function.
        function: its name. ``Class.method`` is called on a new instance each time, made without arguments, so
            that calls do not affect each other.
        modules: modules that call arguments may use, of the standard library or of ``packages``.
        packages: the module may import the sandbox's packages; see `envkit.sandbox.Contents.packages`.
    """

    files: Mapping[str, bytes]
    module: str
    function: str
    modules: tuple[str, ...] = ()
    packages: bool = False


@final
class _Worker:
    """A running worker that answers calls."""

    def __init__(self, sandbox: Sandbox, program: Program, limits: Limits) -> None:
        for path, data in program.files.items():
            sandbox.write(path, data)
        argv = [sandbox.python, *PYTHON_OPTIONS, "-c", guest_source("envkit.sandbox.programs", "worker.py")]
        argv += [program.module, program.function, ",".join(program.modules)]
        argv += [PACKAGES] if program.packages else []
        self._limits = limits
        self._peer: Peer = sandbox.open(argv, limits=limits)
        try:
            loaded = self._ask({})
            if (raises := loaded.get("raises")) is not None:
                raise PeerGone(f"does not load: {printable(str(raises)[:80])}")
        except BaseException:
            self.close()
            raise

    def call(self, calls: Sequence[Call]) -> list[Answer]:
        """Make calls; the answers may be fewer, but at least one.

        Raises:
            PeerGone: no proper answer.
        """
        asked: JSON = [[list(call.args), dict(call.kwargs)] for call in calls]
        found = self._ask({"calls": asked}).get("answers")
        if not isinstance(found, list) or not 0 < len(found) <= len(calls):
            raise PeerGone(f"did not answer {len(calls)} calls with as many answers", tampered=True)
        return [_answer(fields) for fields in found]

    def _ask(self, request: Mapping[str, JSON]) -> dict[str, JSON]:
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
        return fields

    def close(self) -> None:
        self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(fields: JSON) -> Answer:
    if not isinstance(fields, dict):
        raise PeerGone("gave an answer that is not an object", tampered=True)
    if (raises := fields.get("raises")) is not None:
        return Answer(raises=str(raises)[:80])
    return Answer(value=fields.get("value"), after=fields.get("after"))


def answers(
    backend: SandboxBackend,
    program: Program,
    calls: Sequence[Call],
    limits: Limits = GRADING_LIMITS,
    at_once: int = CALLS_AT_ONCE,
) -> list[Answer]:
    """Call a program in a new sandbox and return its answers.

    If the program dies, the list is shorter than ``calls``: it ends before the message with the call at which
    the program died.

    Args:
        backend: makes the sandbox.
        program: the program, such as an original or a mutant of one.
        calls: the calls, made in this order.
        limits: for all calls together.
        at_once: calls in one message.

    Raises:
        SandboxError: the machinery failed.
    """
    return answers_and_end(backend, program, calls, limits, at_once)[0]


def answers_and_end(
    backend: SandboxBackend,
    program: Program,
    calls: Sequence[Call],
    limits: Limits = GRADING_LIMITS,
    at_once: int = CALLS_AT_ONCE,
) -> tuple[list[Answer], PeerGone | None]:
    """Return the answers as `answers` does, and how the program ended early; ``None`` if it did not.

    Raises:
        SandboxError: the machinery failed.
    """
    found: list[Answer] = []
    with backend.create() as sandbox:
        try:
            with _Worker(sandbox, program, limits) as worker:
                for some in _answers_to(worker, calls, at_once):
                    found += some
        except PeerGone as gone:
            return found, gone
    return found, None


def answerable(
    backend: SandboxBackend,
    program: Program,
    calls: Sequence[Call],
    limits: Limits = GRADING_LIMITS,
    deaths: int = 3,
) -> tuple[list[Call], list[Answer]]:
    """The calls to which a trusted program gives a comparable answer, and these answers.

    A call that kills the program is dropped, and the others are made again: all remaining calls together
    must stay within the limits. Then they are made once more in reverse order, with twice the CPU time, and
    calls whose answer differs are dropped, because it depends on chance or on other calls.

    Args:
        backend: makes the sandbox, as for `answers`.
        program: the trusted program.
        calls: costly ones last, because the remaining calls are dropped after too many deaths.
        limits: for all remaining calls together.
        deaths: number of calls that may kill the program.

    Raises:
        SandboxError: the machinery failed.
    """

    def survived(asked: list[int], limits: Limits) -> dict[int, Answer]:
        """Answers to calls by number, without those to calls that kill the program."""

        def ask(at_once: int = 1) -> list[Answer]:
            return answers(backend, program, [calls[number] for number in asked], limits, at_once)

        found = ask(CALLS_AT_ONCE)
        if len(found) < len(asked):  # single calls tell which one it was, unless it was the machine's fault
            found = ask()
        for _ in range(deaths):
            if len(found) < len(asked):
                del asked[len(found)]
                found = ask()
        return dict(zip(asked, found, strict=False))

    first = {
        number: answer
        for number, answer in survived([*range(len(calls))], limits).items()
        if answer.raises is None and not opaque([answer.value, answer.after])
    }
    # They took about all of their CPU time if they were cut, and may take slightly more now.
    again = survived([*first][::-1], replace(limits, cpu_s=2 * limits.cpu_s)) if first else {}
    kept = [number for number, answer in first.items() if again.get(number) == answer]
    return [calls[number] for number in kept], [first[number] for number in kept]


def grade(
    backend: SandboxBackend,
    program: Program,
    questions: Questions,
    limits: Limits = GRADING_LIMITS,
    leniency: Leniency = EXACT,
    confirming: Questions | None = None,
) -> Grade:
    """Make every call to a candidate in a new sandbox; after the last, compare the answers on the host.

    PASS requires every answer to be equal. Every call of ``questions`` is made whatever was answered before,
    in an order that depends on the candidate's files. So being asked tells nothing, even to a candidate that
    remembers earlier gradings. A candidate cannot cause an exception here: crashes, timeouts, too much output
    and malformed answers are FAIL. Forged messages and files under reserved names are TAMPERED. Broken
    machinery is INFRA. `Grade.timed_out` tells if wall time ended the candidate.

    Args:
        backend: makes the sandbox.
        program: the candidate.
        questions: the calls and the right answers.
        limits: for all calls together.
        leniency: which differences are ignored.
        confirming: further calls, which must confirm a PASS. They are made likewise, of the same process, if
            all answers before are right: a candidate that fails never sees them, and one that sees them
            learns no more than its reward will tell.

    Raises:
        ContractError: there are no calls.
    """
    if not questions.calls:
        raise ContractError("no calls; expected at least one")
    more = confirming if confirming is not None and confirming.calls else None
    found: list[Grade] = []
    try:
        with backend.create() as sandbox:
            try:
                with _Worker(sandbox, program, limits) as worker:
                    found.append(_examined(worker, program, questions, leniency, is_last=more is None))
                    if more is not None and found[0].verdict is Verdict.PASS:
                        found.append(_examined(worker, program, more, leniency, is_last=True))
            except PeerGone as gone:
                found.append(_ended(gone, 0, len(questions.calls)))
            reject_reserved(sandbox, program.files)
    except SubmissionRejected as refused:
        return Grade(refused.verdict, refused.evidence, total=len(questions.calls))
    except SandboxError as error:
        return Grade(Verdict.INFRA, str(error), total=len(questions.calls))
    if len(found) == 1:
        return found[0]
    one, other = found
    confirmed = other.verdict is Verdict.PASS
    more = f"{other.total} others confirm it" if confirmed else f"others do not confirm it: {other.evidence}"
    evidence = f"{one.total} calls answered as expected, {more}"
    passed, total = one.passed + other.passed, one.total + other.total
    return Grade(other.verdict, evidence, passed=passed, total=total, timed_out=other.timed_out)


def _examined(
    worker: _Worker, program: Program, questions: Questions, leniency: Leniency, *, is_last: bool
) -> Grade:
    """Ask all questions, then compare. The candidate lives on only if it may be asked more.

    While the host compares, nobody watches the candidate's limits. Right answers are compared fast; a wrong
    one may be large, so it ends the candidate before the rest is compared.
    """
    calls, expected = questions.calls, questions.expected
    order, got, gone = _order(program, calls), list[Answer](), None
    try:
        for some in _answers_to(worker, [calls[index] for index in order]):
            got += some
    except PeerGone as error:
        gone = error
    if is_last or gone is not None:
        worker.close()
    answered = dict(zip(order, got, strict=False))
    wrong: list[int] = []
    for index, answer in sorted(answered.items()):
        if not same(expected[index], answer, questions.policy_of(index), leniency):
            worker.close()
            wrong.append(index)
    passed = len(answered) - len(wrong)
    if gone is not None:
        return _ended(gone, passed, len(calls))
    if wrong:
        at = wrong[0]
        gave, wanted = answered[at].show(), expected[at].show()
        evidence = f"{calls[at].source(program.function)} gave {gave}, expected {wanted}"
        return Grade(Verdict.FAIL, evidence, passed=passed, total=len(calls))
    evidence = f"all {len(calls)} calls answered as expected"
    return Grade(Verdict.PASS, evidence, passed=passed, total=len(calls))


def _ended(gone: PeerGone, passed: int, total: int) -> Grade:
    verdict = Verdict.TAMPERED if gone.tampered else Verdict.FAIL
    return Grade(verdict, gone.reason, passed=passed, total=total, timed_out=gone.timed_out)


def _order(program: Program, calls: Sequence[Call]) -> list[int]:
    """Indices of the calls, in an order that nobody can foresee who does not know all calls."""
    digest = hashlib.sha256()
    for path, data in sorted(program.files.items()):
        digest.update(f"{path} {len(data)}\n".encode() + data)
    for call in calls:
        digest.update(call.source("").encode(errors="surrogatepass"))
    order = [*range(len(calls))]
    random.Random(digest.digest()).shuffle(order)
    return order


def _answers_to(
    worker: _Worker, calls: Sequence[Call], at_once: int = CALLS_AT_ONCE
) -> Iterator[list[Answer]]:
    """Make every call; yields the answers as they come.

    Raises:
        PeerGone: the candidate is gone early.
    """
    done = 0
    while done < len(calls):
        yield (some := worker.call(calls[done : done + at_once]))
        done += len(some)


def same(want: Answer, got: Answer, policy: NumericPolicy = STRICT, leniency: Leniency = EXACT) -> bool:
    """True if two answers agree: same exception type, or equal values and equal arguments after the call."""
    if want.raises is not None or got.raises is not None:
        return want.raises == got.raises
    if want.within > policy.abs_tol:
        policy = replace(policy, abs_tol=want.within)
    after_free = not leniency.arguments and want.value is not None
    try:
        return equal(relaxed(want.value, leniency), relaxed(got.value, leniency), policy) and (
            after_free or equal(want.after, got.after, policy)
        )
    except RecursionError:
        return False
