"""The split oracle against honest and hostile candidates, in a real sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from envkit.env.compare import NumericPolicy
from envkit.env.grade import Grade
from envkit.environments.code_editor.graders import oracle
from envkit.environments.code_editor.graders.base import REFERENCE_LIMITS
from envkit.environments.code_editor.graders.oracle import (
    Answer,
    Program,
    Questions,
    answerable,
    answers,
    answers_and_end,
    grade,
)
from envkit.environments.code_editor.inputs.call import Call
from envkit.errors import ContractError, SandboxError
from envkit.sandbox import Limits, Sandbox, SandboxBackend
from envkit.types import Verdict

ORIGINAL = "def total(items, start=0):\n    for item in items:\n        start += item\n    return start\n"
CALLS = (Call(("[1, 2, 3]",)), Call(("[10]",), {"start": "5"}), Call(("[]",)))
LIMITS = Limits(cpu_s=1.0, wall_s=5.0, memory_bytes=128 * 2**20, processes=8, output_bytes=2**18)


def subject(source: str, modules: tuple[str, ...] = (), function: str = "total") -> Program:
    return Program({"solution.py": source.encode()}, "solution.py", function, modules)


def judge(backend: SandboxBackend, source: str, calls: Sequence[Call] = CALLS) -> Grade:
    expected = [Answer(6, [[1, 2, 3]]), Answer(15, [[10]]), Answer(0, [[]])]
    return grade(backend, subject(source), Questions(calls, expected), limits=LIMITS)


def test_the_original_gives_the_expected_answers(backend: SandboxBackend) -> None:
    found = answers(backend, subject(ORIGINAL), CALLS)
    assert found == [Answer(6, [[1, 2, 3]]), Answer(15, [[10]]), Answer(0, [[]])]
    assert grade(backend, subject(ORIGINAL), Questions(CALLS, found)).verdict is Verdict.PASS


def test_answers_record_exceptions_and_changed_arguments(backend: SandboxBackend) -> None:
    source = "def total(items):\n    items.sort()\n    return items[0]\n"
    found = answers(backend, subject(source), [Call(("[2, 1]",)), Call(("[]",)), Call(("None",))])
    assert found == [Answer(1, [[1, 2]]), Answer(raises="IndexError"), Answer(raises="AttributeError")]


CHANGEABLE = {
    "a list by name": Call((), {"items": "[2, 1]"}),
    "a list within a tuple": Call(("(3, ([2, 1],))",)),
    "bytearray": Call(("bytearray(b'ba')",)),
    "deque": Call(("collections.deque([2, 1])",)),
    "Counter": Call(("collections.Counter('bba')",)),
    "OrderedDict": Call(("collections.OrderedDict(b=2)",)),
    "defaultdict": Call(("collections.defaultdict(int, b=2)",)),
}


@pytest.mark.parametrize("call", CHANGEABLE.values(), ids=CHANGEABLE.keys())
def test_a_candidate_that_does_not_change_its_argument_as_expected_fails(
    backend: SandboxBackend, call: Call
) -> None:
    clearing = "def total(items):\n    while isinstance(items, tuple):\n        items = items[-1]\n"
    clearing += "    items.clear()\n"
    expected = answers(backend, subject(clearing, ("collections",)), [call])
    assert expected[0].raises is None
    idle = subject("def total(items):\n    pass\n", ("collections",))
    assert grade(backend, idle, Questions([call], expected)).verdict is Verdict.FAIL
    right = subject(clearing, ("collections",))
    assert grade(backend, right, Questions([call], expected)).verdict is Verdict.PASS


def test_immutable_arguments_are_not_part_of_an_answer(backend: SandboxBackend) -> None:
    source = "def total(*args, **kwargs):\n    return 0\n"
    calls = [Call(("(1, 'a', b'b', (2.5,))", "lambda: 0", "iter([1])"), {"f": "len", "n": "frozenset([1])"})]
    assert answers(backend, subject(source), calls) == [Answer(0, [])]


def test_arguments_can_use_only_the_listed_modules(backend: SandboxBackend) -> None:
    source = "def total(f, items):\n    return [f(x, 1) for x in items]\n"
    call = Call(("operator.add", "[1, 2]"))
    assert answers(backend, subject(source, ("operator",)), [call]) == [Answer([2, 3], [[1, 2]])]
    assert answers(backend, subject(source), [call]) == [Answer(raises="NameError")]


def test_answers_stop_at_the_call_that_ends_the_original(backend: SandboxBackend) -> None:
    source = "import os\ndef total(n):\n    if n == 2:\n        os._exit(0)\n    return n\n"
    calls = [Call(("1",)), Call(("2",)), Call(("3",))]
    assert answers(backend, subject(source), calls, at_once=1) == [Answer(1, [])]
    assert answers(backend, subject(source), calls) == []  # all are in one message
    assert answers(backend, subject("def total(:"), CALLS) == []


CORRECT = {
    "as it was": ORIGINAL,
    "another way": "def total(items, start=0):\n    return sum(items, start)\n",
    "prints": "def total(items, start=0):\n    print('{\"id\": 1}')\n    return sum(items, start)\n",
    "in a thread": (
        "import threading\ndef total(items, start=0):\n    box = []\n"
        "    thread = threading.Thread(target=lambda: box.append(sum(items, start)))\n"
        "    thread.start()\n    thread.join()\n    return box[0]\n"
    ),
    "recursive": (
        "def total(items, start=0):\n    return total(items[1:], start + items[0]) if items else start\n"
    ),
    "imports late": "def total(items, start=0):\n    import math\n    return int(math.fsum(items)) + start\n",
    "closes stdin": "import os\nos.close(0)\ndef total(items, start=0):\n    return sum(items, start)\n",
}


@pytest.mark.parametrize("source", CORRECT.values(), ids=CORRECT.keys())
def test_correct_variants_pass(backend: SandboxBackend, source: str) -> None:
    found = judge(backend, source)
    assert found.verdict is Verdict.PASS, found.evidence
    assert (found.passed, found.total) == (3, 3)


PREFIX = "def total(items, start=0):\n    "
WRONG = {
    "nothing": "",
    "syntax error": "def total(:",
    "wrong answer": PREFIX + "return 0",
    "float for int": PREFIX + "return float(sum(items, start))",
    "bool for int": PREFIX + "return bool(items) and sum(items, start)",
    "changes its argument": PREFIX + "s = sum(items, start); items.clear(); return s",
    "equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def total(items, start=0):\n    return Any(6)"
    ),
    "named like a tag": PREFIX + "return {'t': 'int', 'v': '6'}",
    "nan": PREFIX + "return float('nan')",
    "exits on import": "import os\nos._exit(0)",
    "exits in the call": "import os\n" + PREFIX + "os._exit(0)",
    "exits at exit": "import atexit, os\natexit.register(os._exit, 0)\n" + PREFIX + "raise SystemExit(0)",
    "system exit": PREFIX + "raise SystemExit(0)",
    "hangs": PREFIX + "\n    while True: pass",
    "hangs on import": "while True: pass",
    "ignores SIGTERM": (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PREFIX + "\n    while True: pass"
    ),
    "memory bomb": PREFIX + "return len(bytearray(10**9)) and 6",
    "huge result": PREFIX + "return 'x' * 10**8",
    "endless generator": PREFIX + "\n    while True: yield 6",
    "lazy result": "class Lazy:\n    def __reduce__(self): return (int, (6,))\n" + PREFIX + "return Lazy()",
    "patched builtins": "import builtins\nbuiltins.sorted = builtins.len = lambda *a, **k: 6\n"
    + PREFIX
    + "return 6",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{}'\n" + PREFIX + "return 6",
    "looks for the expected value": (
        "import sys, gc\ndef total(items, start=0):\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'expected' in frame.f_locals: return frame.f_locals['expected']\n"
        "        frame = frame.f_back\n"
        "    return [o for o in gc.get_objects() if isinstance(o, dict) and 'want' in o]\n"
    ),
    "output flood": "import os\n" + PREFIX + "\n    while True: os.write(2, b'x' * 65536)",
    "deep result": "import json\n" + PREFIX + "\n    x = 6\n    for _ in range(900): x = [x]\n    return x",
    "kills everybody": "import os\n" + PREFIX + "os.kill(-1, 9)",
}


@pytest.mark.parametrize("source", WRONG.values(), ids=WRONG.keys())
def test_wrong_programs_fail(backend: SandboxBackend, source: str) -> None:
    found = judge(backend, source)
    assert found.verdict in (Verdict.FAIL, Verdict.TAMPERED), found
    assert found.passed < found.total


@pytest.mark.parametrize(
    ("body", "timed_out"),
    [("time.sleep(60)", True), ("while True: pass", False), ("import os; os._exit(0)", False)],
)
def test_a_grade_tells_if_wall_time_ended_the_candidate(
    backend: SandboxBackend, body: str, timed_out: bool
) -> None:
    limits = replace(LIMITS, cpu_s=0.5, wall_s=1 if timed_out else 60)
    wrong = subject(f"import time\n{PREFIX}{body}")
    found = grade(backend, wrong, Questions(CALLS, [Answer(0)] * 3), limits)
    assert (found.verdict, found.timed_out) == (Verdict.FAIL, timed_out)
    later = subject(f"import time\ndef total(n):\n    if n == 1: return 1\n    {body}")
    first, second = Questions([Call(("1",))], [Answer(1, [])]), Questions([Call(("2",))], [Answer(2, [])])
    found = grade(backend, later, first, limits, confirming=second)
    assert (found.verdict, found.timed_out) == (Verdict.FAIL, timed_out)
    _, gone = answers_and_end(backend, wrong, CALLS, limits)
    assert gone is not None
    assert gone.timed_out == timed_out
    assert answers_and_end(backend, subject(ORIGINAL), CALLS)[1] is None


TO_EVERY_FD = (
    "import os\ndef total(items, start=0):\n    for fd in range(3, 64):\n"
    "        try:\n            os.write(fd, {frame})\n        except OSError:\n            pass\n"
    "    return {value}\n"
)
#: Writes its answers as it likes; ids are left as they are.
PATCHED = (
    "import json\nwas = json.dumps\n"
    "json.dumps = lambda value, **k: was(value, **k) if isinstance(value, str) else '{text}'\n"
    "def total(items, start=0):\n    return 6\n"
)
TAMPERED = {
    "more answers than calls": PATCHED.format(text="{}, {}, {}, {}"),
    "answers that are no JSON": PATCHED.format(text=""),
    "answers that are no objects": PATCHED.format(text="1"),
    "forged frame": TO_EVERY_FD.format(frame='b\'{"id": "0", "value": 6}\\n\'', value=0),
    "no JSON": TO_EVERY_FD.format(frame="b'PASS\\n'", value=0),
    "no object": TO_EVERY_FD.format(frame="b'[1]\\n'", value=0),
    "absurdly deep": TO_EVERY_FD.format(frame="b'[' * 100000 + b'\\n'", value=0),
}


@pytest.mark.parametrize("source", TAMPERED.values(), ids=TAMPERED.keys())
def test_forged_frames_are_tampering(backend: SandboxBackend, source: str) -> None:
    assert judge(backend, source).verdict is Verdict.TAMPERED


def test_a_candidate_that_forges_its_first_answer_is_killed(backend: SandboxBackend) -> None:
    """A living candidate could change the workspace while the host reads it."""
    source = (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'[]\\n')\n"
        "    except OSError:\n        pass\n"
        "while True:\n    for n in range(50): os.makedirs(f'd/{n}/e')\n"
        "    for n in range(50): os.removedirs(f'd/{n}/e')\n"
    )
    for _ in range(5):
        assert judge(backend, source).verdict is Verdict.TAMPERED


def test_a_candidate_finds_no_calls_in_its_descriptors(backend: SandboxBackend) -> None:
    reads_ahead = (
        "import os, select\ndef total(items, start=0):\n    seen = b''\n    for fd in range(3, 64):\n"
        "        try:\n            if select.select([fd], [], [], 0)[0]: seen += os.read(fd, 65536)\n"
        "        except (OSError, ValueError):\n            pass\n"
        "    return seen.decode() or sum(items, start)\n"
    )
    assert judge(backend, reads_ahead).verdict is Verdict.PASS


def test_evidence_names_the_first_wrong_call(backend: SandboxBackend) -> None:
    found = judge(backend, PREFIX + "return sum(items)")
    assert (found.verdict, found.passed, found.total) == (Verdict.FAIL, 2, 3)
    assert found.evidence == "total([10], start=5) gave 10, expected 15"


def test_every_call_is_made_whatever_was_answered_in_an_order_of_the_candidates_own(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    call_worker = oracle._Worker.call

    def recorded(worker: oracle._Worker, calls: Sequence[Call]) -> list[Answer]:
        asked.extend(call.source("") for call in calls)
        return call_worker(worker, calls)

    monkeypatch.setattr(oracle._Worker, "call", recorded)
    calls = [Call((f"[{number}]",)) for number in range(20)]
    expected = [Answer(number, [[number]]) for number in range(20)]
    orders: list[list[str]] = []
    for answer in ("sum(items)", "sum(items)", "0", "1"):
        asked.clear()
        grade(backend, subject(f"{PREFIX}return {answer}"), Questions(calls, expected))
        orders.append([*asked])
    assert all(sorted(order) == sorted(call.source("") for call in calls) for order in orders)
    assert orders[0] == orders[1]
    assert len({*map(tuple, orders)}) == 3


#: More calls than fit into one message, by number and, for the longer ones, by size.
SIZES = [*((number, 3) for number in range(30)), *((number, 9000) for number in range(6))]
MANY = Questions(
    [Call((f"[{number}] * {size}",)) for number, size in SIZES],
    [Answer(number * size, [[number] * size]) for number, size in SIZES],
)
NOTES = "import pathlib\nnotes = pathlib.Path('notes.py')\n"


def test_many_calls_with_long_answers_are_all_asked(backend: SandboxBackend) -> None:
    found = grade(backend, subject(ORIGINAL), MANY)
    assert (found.verdict, found.passed, found.total) == (Verdict.PASS, 36, 36)
    wrong = ORIGINAL.replace("return", "if len(items) > 3 and items[0] == 5: return 0\n    return")
    found = grade(backend, subject(wrong), MANY)
    assert (found.verdict, found.passed, found.total) == (Verdict.FAIL, 35, 36)


def test_a_message_without_answers_is_tampering(backend: SandboxBackend) -> None:
    one = Questions([Call(("[6]",))], [Answer(6, [[6]])])
    assert grade(backend, subject(PATCHED.format(text="")), one, limits=LIMITS).verdict is Verdict.TAMPERED


def test_a_large_answer_fits_beside_others(backend: SandboxBackend) -> None:
    """In any order: what the original answers alone, a candidate can answer among others."""
    long = subject("def total(n, odd):\n    return ['\u20ac' * 9000] * n if n > 1 else 'x' * 60_000\n")
    calls = [Call((str(n), str(odd))) for n in (1, 14, 17) for odd in range(6)]
    kept, right = answerable(backend, long, calls, REFERENCE_LIMITS)
    assert 6 <= len(kept) < len(calls)
    for odd in range(6):  # another order each
        again = Program({"solution.py": long.files["solution.py"] + b"#" * odd}, "solution.py", "total")
        assert grade(backend, again, Questions(kept, right)).verdict is Verdict.PASS


def test_a_second_set_of_calls_confirms_a_pass_only(backend: SandboxBackend) -> None:
    first = Questions([Call(("[1]",)), Call(("[2]",))], [Answer(1, [[1]]), Answer(2, [[2]])])
    second = Questions([Call(("[3]",))], [Answer(3, [[3]])])
    outcomes = {
        "sum(items)": (Verdict.PASS, 3, 3, "2 calls answered as expected, 1 others confirm it"),
        "sum(items) % 3": (Verdict.FAIL, 2, 3, "others do not confirm it: total([3]) gave 0, expected 3"),
        "sum(items) % 2": (Verdict.FAIL, 1, 2, "total([2]) gave 0, expected 2"),
    }
    for answer, (verdict, passed, total, evidence) in outcomes.items():
        source = subject(f"def total(items):\n    return {answer}\n")
        found = grade(backend, source, first, confirming=second)
        assert (found.verdict, found.passed, found.total) == (verdict, passed, total)
        assert evidence in found.evidence
    dies = "import os\ndef total(items):\n    return sum(items) if items < [3] else os._exit(0)\n"
    found = grade(backend, subject(dies), first, confirming=second)
    assert (found.verdict, found.passed, found.total) == (Verdict.FAIL, 2, 3)


def test_calls_may_have_different_policies(backend: SandboxBackend) -> None:
    near, exact = NumericPolicy(rel_tol=1e-6), NumericPolicy(rel_tol=0, abs_tol=0)
    nearly = subject("def total(x):\n    return x + 1e-9\n")
    calls = [Call(("1.0",)), Call(("2.0",))]
    expected = answers(backend, subject("def total(x): return x"), calls)
    assert grade(backend, nearly, Questions(calls, expected, [near, near])).verdict is Verdict.PASS
    found = grade(backend, nearly, Questions(calls, expected, [near, exact]))
    assert (found.verdict, found.passed) == (Verdict.FAIL, 1)
    with pytest.raises(ContractError, match="1 policies"):
        grade(backend, nearly, Questions(calls, expected, [near]))


def test_an_answer_that_depends_on_earlier_calls_is_not_asked_for(backend: SandboxBackend) -> None:
    counts = "seen = []\ndef total(n):\n    seen.append(n)\n    return n if n < 3 else len(seen)\n"
    calls = [Call((str(n),)) for n in (3, 0, 1, 4)]
    kept, found = answerable(backend, subject(counts), calls)
    assert (kept, found) == (calls[1:3], [Answer(0, []), Answer(1, [])])


#: For tests in which nothing runs.
NOWHERE = cast("SandboxBackend", None)


def test_calls_after_a_death_in_the_second_round_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends the second round early, at call 1; the first calls come last in it."""
    rounds: list[list[str]] = []

    def cut(_: object, __: object, asked: Sequence[Call], *___: object) -> list[Answer]:
        rounds.append([call.args[0] for call in asked])
        survived = asked[:4] if len(rounds) in (2, 3) else asked
        return [Answer(call.args[0]) for call in survived]

    monkeypatch.setattr(oracle, "answers", cut)
    calls = [Call((str(n),)) for n in range(6)]
    kept, _ = answerable(NOWHERE, subject(""), calls)
    assert rounds[1:] == [[*"543210"], [*"543210"], [*"54320"]]
    assert kept == [calls[n] for n in (0, 2, 3, 4, 5)]


def test_a_program_that_dies_before_its_first_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([[], [Answer(1), Answer(2)], [Answer(2), Answer(1)]])
    monkeypatch.setattr(oracle, "answers", lambda *_: next(ends))
    calls = [Call(("1",)), Call(("2",))]
    assert answerable(NOWHERE, subject(""), calls) == (calls, [Answer(1), Answer(2)])


def test_an_expected_exception_must_be_raised(backend: SandboxBackend) -> None:
    calls, expected = [Call(("None",))], [Answer(raises="TypeError")]
    assert grade(backend, subject(ORIGINAL), Questions(calls, expected)).verdict is Verdict.PASS
    assert grade(backend, subject(PREFIX + "return 0"), Questions(calls, expected)).verdict is Verdict.FAIL


def test_a_different_number_of_calls_and_answers_is_refused(backend: SandboxBackend) -> None:
    with pytest.raises(ContractError, match="0 expected answers and 3 policies; expected as many of each"):
        grade(backend, subject(ORIGINAL), Questions(CALLS, []))
    with pytest.raises(ContractError):
        grade(backend, subject(ORIGINAL), Questions([], []))


class Broken(SandboxBackend):
    """A backend that cannot make a sandbox."""

    name = "broken"
    isolated = True

    def available(self) -> str | None:
        return None

    def create(self) -> Sandbox:
        raise SandboxError("no cgroup left")


def test_a_sandbox_error_is_neither_pass_nor_fail() -> None:
    found = grade(Broken(), subject(ORIGINAL), Questions(CALLS, [Answer(6)] * 3))
    assert (found.verdict, found.evidence) == (Verdict.INFRA, "no cgroup left")
    with pytest.raises(SandboxError):
        answers(Broken(), subject(ORIGINAL), CALLS)


def test_calls_survive_conversion_to_plain_data() -> None:
    call = Call(("[1]", "lambda x: x"), {"key": "len"})
    assert Call.from_plain(call.to_plain()) == call
    assert call.source("f") == "f([1], lambda x: x, key=len)"
