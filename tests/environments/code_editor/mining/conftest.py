"""A tiny installed package to mine."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Install = Callable[[str, str, Mapping[str, str]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return ``install(name, version, {path: source})``, which puts a distribution on the import path."""

    def lay_out(name: str, version: str, files: Mapping[str, str]) -> None:
        site = tmp_path / f"{name}-{version}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        for path, source in files.items():
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(site)

    return lay_out


TINY = {
    "tinypkg/__init__.py": "raise RuntimeError('mining must not import this')\n",
    "tinypkg/tests/test_maths.py": "def clamp_test(x):\n    '''>>> clamp_test(1)'''\n    return x\n",
    "tinypkg/maths.py": '''
        """Numbers."""

        from __future__ import annotations

        import random

        from tinypkg.limits import LOWEST, highest


        def clamp(value: int, low: int = LOWEST, high: int | None = None) -> int:
            """Bring a value into a range.

            >>> clamp(5, 1, 3)
            3
            >>> clamp(-5, 1)
            1
            >>> clamp(2, 1, 3)
            2
            """
            if high is None:
                high = highest()
            if value < low:
                return low
            return high if value > high else value


        def shuffled(items: list[int]) -> list[int]:
            """Put items into another order.

            >>> shuffled([1])
            [1]
            """
            return random.sample(items, len(items) + 0)


        def words(text: str) -> list[str]:
            """Distinct words, in no order that anyone could rely on.

            >>> words("a b")
            ['a', 'b']
            """
            return [word for word in set(text.split()) if len(word) > 0]


        taken = 0


        def ticket(value: int) -> int:
            """A number that grows from call to call.

            >>> ticket(3)
            4
            """
            global taken
            taken += 1
            return value + taken


        def seven(value: int) -> int:
            """Always the same.

            >>> seven(1)
            7
            """
            return 7 if value == value + 0 else 8


        def collatz(n: int) -> int:
            """Steps to one.

            >>> collatz(6)
            8
            """
            steps = 0
            while n != 1:
                n = n // 2 if n % 2 == 0 else 3 * n + 1
                steps += 1
            return steps
    ''',
    "tinypkg/limits.py": '''
        LOWEST = 0


        def highest():
            """Nothing goes beyond."""
            return 100
    ''',
}


@pytest.fixture
def tiny(install: Install) -> str:
    install("tinypkg", "1.0", TINY)
    return "tinypkg"
