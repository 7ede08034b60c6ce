"""Many variants run in one process, isolated from each other and with reproducible outcomes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.mutations.run_variants import VariantBatch, variant_answers
from envkit.errors import SandboxError
from envkit.sandbox import SandboxBackend
from envkit.sandbox.programs.child_output import read_output

ONE_TO_THREE = (Call(("1",)), Call(("2",)), Call(("3",)))


def answers_of(
    backend: SandboxBackend, *variants: str, calls: Sequence[Call] = ONE_TO_THREE, hash_seed: int = 1
) -> list[list[Answer | None]]:
    [rows] = variant_answers(backend, [VariantBatch("f", variants, calls)], hash_seed)
    return rows


def values(row: Sequence[Answer | None]) -> list[object]:
    return [one and (one.raises or one.value) for one in row]


GOOD = "def f(x):\n    return x\n"


def test_every_variant_answers_every_call(backend: SandboxBackend) -> None:
    rows = answers_of(backend, GOOD, "def f(x):\n    return -x\n", "def f(x):\n    return 1 // (x - 2)\n")
    assert [values(row) for row in rows] == [[1, 2, 3], [-1, -2, -3], [-1, "ZeroDivisionError", 1]]


def test_batches_do_not_affect_each_other(backend: SandboxBackend) -> None:
    one = VariantBatch("f", [GOOD], ONE_TO_THREE)
    other = VariantBatch(
        "g", ["def g(x, y):\n    return y(x)\n"] * 2, [Call(("[2, 1]",), {"y": "operator.itemgetter(0)"})]
    )
    assert variant_answers(backend, [one, other, one], 1) == [
        [[Answer(1, []), Answer(2, []), Answer(3, [])]],
        [[Answer(2, [[2, 1]])]] * 2,
        [[Answer(1, []), Answer(2, []), Answer(3, [])]],
    ]
    assert variant_answers(backend, [], 1) == []


@pytest.mark.parametrize(
    "at_two",
    [
        "while True: pass",
        "[x for x in iter(int, 1)]",
        "sum(iter(int, 1))",
        "bytearray(10**10)",
        "return list(range(20_000))",
    ],
    ids=["loop", "comprehension", "loop in C", "memory", "large answer"],
)
def test_a_call_that_hangs_or_exceeds_a_limit_has_no_answer(backend: SandboxBackend, at_two: str) -> None:
    source = f"def f(x):\n    if x == 2: {at_two}\n    return x\n"
    if "while" in at_two:
        source = "def f(x):\n    while x == 2: pass\n    return x\n"
    [_, row] = answers_of(backend, GOOD, source)
    assert values(row)[:2] == [1, None]
    # Only a loop in C also costs the variant its remaining calls.
    assert values(row)[2] == (None if "sum" in at_two else 3)


def test_a_variant_that_waits_forever_is_ended(backend: SandboxBackend) -> None:
    waiting = "import queue\ndef f(x):\n    return queue.Queue().get() if x == 2 else x\n"
    [_, row, after] = answers_of(backend, GOOD, waiting, GOOD)
    assert values(row) == [1, None, None]
    assert values(after) == [1, 2, 3]


def test_reading_does_not_wait_for_processes_left_by_a_child() -> None:
    code = "import os, time; os.write(1, b'said'); os.fork() or time.sleep(60)"
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing) as child:
        os.close(writing)
        began = time.monotonic()
        assert read_output(reading, child.pid, 0.1) == b"said"
        assert time.monotonic() - began < 30


def test_variants_are_not_run_if_the_original_hangs(backend: SandboxBackend) -> None:
    rows = answers_of(backend, "def f(x):\n    while x == 2: pass\n    return x\n", GOOD)
    assert [values(row) for row in rows] == [[1, None, 3], [None] * 3]


def test_variants_cannot_affect_each_other(backend: SandboxBackend) -> None:
    interfering = (
        "import builtins, operator, sys\nbuiltins.len = None\nsys.setrecursionlimit(50)\nprint('noise')\n"
        + GOOD
    )
    exiting = "import os\ndef f(x):\n    os._exit(1)\n"
    rows = answers_of(
        backend, GOOD, interfering, exiting, "this is not Python", "def f(x):\n    return len([x])\n"
    )
    assert [values(row) for row in rows] == [[1, 2, 3], [1, 2, 3], [None] * 3, [None] * 3, [1, 1, 1]]


def test_variants_skip_calls_on_which_the_original_raises(backend: SandboxBackend) -> None:
    rows = answers_of(backend, "def f(x):\n    return 1 // (x - 2)\n", GOOD)
    assert [values(row) for row in rows] == [[-1, "ZeroDivisionError", 1], [1, None, 3]]


def test_the_hash_seed_determines_set_order(backend: SandboxBackend) -> None:
    source = "def f(x):\n    return list({str(i) for i in range(20)})\n"
    first, again, other = (answers_of(backend, source, hash_seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_batch_that_cannot_run_raises_a_sandbox_error(backend: SandboxBackend) -> None:
    class Wrong:
        name, isolated = "wrong", True

        def available(self) -> str | None:
            return None

        def create(self):  # type: ignore[no-untyped-def]
            sandbox = backend.create()
            sandbox.run = lambda argv, **rest: type(sandbox).run(
                sandbox, [sandbox.python, "-c", "raise 1"], **rest
            )
            return sandbox

    with pytest.raises(SandboxError, match="mining f: ended by exited"):
        answers_of(Wrong(), GOOD)  # type: ignore[arg-type]
