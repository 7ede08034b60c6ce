"""A rewritten function is copied with the imports, constants and helpers that it uses."""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.actions import Rewrite
from envkit.environments.code_editor.source.dependencies import with_dependencies
from envkit.environments.code_editor.source.edits import apply_rewrite

STUB = '"""A module."""\n\nfrom math import sqrt\n\n\n@cached\ndef f(a):\n    raise NotImplementedError\n'
BODY = "def f(a):\n    return {}\n"


def written(block: str, source: str = STUB) -> str:
    return apply_rewrite(source, Rewrite(block))


@pytest.mark.parametrize(
    ("needed", "use"),
    [
        ("import re", "re.escape(a)"),
        ("import os.path", "os.path.join(a)"),
        ("import numpy as np", "np.abs(a)"),
        ("from collections import Counter, deque", "deque(a)"),
        ("from typing import *", "cast(int, a)"),
        ("MOD = 10**9 + 7", "a % MOD"),
        ("LOW, HIGH = 0, 9", "min(a, HIGH)"),
        ("SEEN: dict[int, int] = {}", "SEEN.get(a)"),
        ("def helper(a):\n    return a + 1", "helper(a)"),
        ("async def helper(a):\n    return a + 1", "helper(a)"),
        ("class Pair:\n    pass", "[Pair() for _ in a]"),
        (
            "@decorator\ndef helper(a):\n    return a\ndef decorator(f):\n    return f",
            "(lambda: helper(a))()",
        ),
        ("import re\ndef helper(a):\n    return re.escape(a)", "helper(a)"),
        ("def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return even(n - 1)", "even(a)"),
    ],
)
def test_dependencies_are_inserted_right_above_the_function(needed: str, use: str) -> None:
    block = f"{needed}\nunused = 3\n{BODY.format(use)}print(f(2))\n"
    above, body = STUB.split("@cached\n")
    assert (
        written(block) == f"{above}{needed}\n\n\n{body.replace('raise NotImplementedError', f'return {use}')}"
    )


def test_decorators_defaults_and_annotations_are_uses() -> None:
    block = "import a1\nimport b1\nimport c1\n@a1.x\ndef f(a: b1.T = c1.y):\n    return a\n"
    assert written(block, "def f(a):\n    return 0\n") == (
        "import a1\nimport b1\nimport c1\n\n\n@a1.x\ndef f(a: b1.T = c1.y):\n    return a\n"
    )


@pytest.mark.parametrize(
    "block",
    [
        "from math import sqrt\ndef f(a):\n    return sqrt(a)\n",
        "from math import sqrt, pi\ndef f(a):\n    return sqrt(a)\n",
        "from __future__ import annotations\ndef f(a):\n    return sqrt(a)\n",
        "import os\ndef main():\n    return os.name\ndef f(a):\n    return sqrt(a)\nmain()\n",
        # A local name; the call below the function uses the same name by coincidence.
        "def f(a):\n    result = sqrt(a)\n    return result\nresult = f(3)\n",
    ],
)
def test_present_or_unused_statements_are_not_copied(block: str) -> None:
    assert with_dependencies(STUB, block, ["f"]) == STUB
    assert "f(3)" not in written(block)
    assert "os" not in written(block)


def test_a_copied_statement_excludes_other_code_on_its_lines() -> None:
    block = 'é = """a\nb"""; LOW = (1,\n  2); print(LOW)  # é\ndef f(a):\n    return LOW\n'
    assert written(block, "def f(a):\n    return 0\n") == "LOW = (1,\n  2)\n\n\ndef f(a):\n    return LOW\n"


def test_a_constant_is_copied_only_if_its_value_differs() -> None:
    source = "MOD = 7\n\n\ndef f(a):\n    return a\n"
    assert written("MOD = 7\ndef f(a):\n    return a % MOD\n", source).count("MOD = 7") == 1
    assert "MOD = 11\n\n\ndef f" in written("MOD = 11\ndef f(a):\n    return a % MOD\n", source)


def test_a_methods_dependencies_are_inserted_above_its_class() -> None:
    source = "x = 1\n\n\nclass Stack:\n    def top(self):\n        return 0\n"
    assert written("import re\ndef top(self):\n    return re.escape('a')\n", source) == (
        "x = 1\n\n\nimport re\n\n\nclass Stack:\n    def top(self):\n        return re.escape('a')\n"
    )


def test_dependencies_are_copied_into_a_repaired_file() -> None:
    broken = "def f(a:\n    return a\nother = 3\n"
    assert written("import re\ndef f(a):\n    return re.escape(a)\n", broken) == (
        "import re\n\n\ndef f(a):\n    return re.escape(a)\nother = 3\n"
    )


def test_several_functions_share_what_they_need() -> None:
    source = "def g(a):\n    return 0\n\n\ndef f(a):\n    return 0\n"
    block = "import re\ndef f(a):\n    return re.A\ndef g(a):\n    return re.B\n"
    assert written(block, source).count("import re") == 1
    assert written(block, source).startswith("import re\n\n\ndef g")


def test_long_chains_of_dependencies_are_copied() -> None:
    names = "".join(f"a{index} = b\n" for index in range(3_000))
    many = "".join(f"b = a{index}\n" for index in range(3_000))
    found = written(f"{names}{many}def f(a):\n    return b\n", "def f(a):\n    return 0\n")
    assert found.count("\n") > 6_000
