"""Edges that an original answers: costly and rejected ones are found without harm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envkit.environments.code_editor.graders import reach
from envkit.environments.code_editor.graders.oracle import Program
from envkit.environments.code_editor.graders.reach import reached_edges
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.edges import Examples
from envkit.errors import SandboxError
from envkit.sandbox import SandboxBackend


def reached(backend: SandboxBackend, source: str, *examples: str) -> dict[str, int]:
    """Kind of edge -> largest size that is reached, for ``f`` with one argument."""
    program = Program({"solution.py": source.encode()}, "solution.py", "f")
    found: dict[str, int] = {}
    for one in reached_edges(backend, program, Examples([Call((source,)) for source in examples])):
        found[one.edge.kind] = max(one.edge.size, found.get(one.edge.kind, 0))
    return found


#: A loop that catches whatever ends it.
LOOP = "        while n > 1000:\n            pass\n"


@pytest.mark.parametrize(
    ("body", "largest"),
    [
        ("return n + 1", 3),
        ("total = 0\n    for i in range(abs(n)):\n        total += i\n    return total", 0),
        ("return sum(range(n))", 1),  # one call into C, which no line of Python interrupts
        (f"try:\n{LOOP}    except BaseException:\n        pass\n    return n", 0),
        ("return len('a' * (8 * n)) if n < 2**31 else 0", 3),
    ],
)
def test_integers_as_large_as_the_original_answers(backend: SandboxBackend, body: str, largest: int) -> None:
    found = reached(backend, f"def f(n):\n    {body}\n", "5", "12")
    assert found["large"] == largest
    assert found["zero"] == 0


def test_edges_that_the_original_rejects_are_not_reached(backend: SandboxBackend) -> None:
    source = "def f(items):\n    if min(items) < 0:\n        raise ValueError\n    return max(items)\n"
    found = reached(backend, source, "[3, 1, 2]")
    assert "empty" not in found
    assert "negative" not in found
    assert found.keys() >= {"one", "two equal", "long", "zero", "large", "other sequence"}


def test_an_endless_loop_costs_only_its_own_edge(backend: SandboxBackend) -> None:
    source = "def f(n):\n    while n != 0:\n        n = n // 2\n    return n\n"
    found = reached(backend, source, "5")
    assert "negative" not in found  # -1 // 2 is -1
    assert found["large"] == 3


def test_a_call_that_kills_the_process_costs_only_its_own_edge(backend: SandboxBackend) -> None:
    source = "import ctypes\n\n\ndef f(n):\n    return n if n else ctypes.string_at(0)\n"
    found = reached(backend, source, "5")
    assert "zero" not in found
    assert found["negative"] == 1
    assert found["large"] == 3


def test_a_call_that_waits_costs_only_its_own_edge(backend: SandboxBackend) -> None:
    source = "import time\n\n\ndef f(n):\n    time.sleep(0 if n else 1e6)\n    return n\n"
    found = reached(backend, source, "5")
    assert "zero" not in found
    assert found["large"] == 3


def test_a_stalled_machine_is_no_fault_of_the_original(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_LIMITS", replace(reach._LIMITS, wall_s=0.2))
    source = "import time\n\n\ndef f(n):\n    return n\n\n\ntime.sleep(1)\n"
    with pytest.raises(SandboxError, match=r"f did not answer calls at its edges in 0\.2 s"):
        reached(backend, source, "5")


def test_a_module_that_does_not_load_reaches_nothing(backend: SandboxBackend) -> None:
    assert reached(backend, "def f(n):\n    return 1 +\n", "5") == {}


def test_answers_that_cannot_be_compared_do_not_count(backend: SandboxBackend) -> None:
    assert reached(backend, "def f(n):\n    return object()\n", "5") == {}
    assert reached(backend, "def f(n):\n    return 'x' * 30_000 if n > 100 else n\n", "5").keys() == {
        "zero",
        "negative",
    }


def test_the_same_edges_are_reached_every_time(backend: SandboxBackend) -> None:
    program = Program({"solution.py": b"def f(a, n):\n    return a[:n]\n"}, "solution.py", "f")
    examples = Examples([Call(("[3, 1]", "1")), Call(("'abc'", "2"))])
    found = reached_edges(backend, program, examples)
    assert found == reached_edges(backend, program, examples)
    assert {one.edge.kind for one in found} >= {"empty", "long", "zero", "negative", "large", "non-ASCII"}
