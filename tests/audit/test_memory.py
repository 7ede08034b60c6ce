"""A program that repairs nothing, and only remembers which of its answers were wrong, earns nothing.

The grader here is the weakest one: it asks the same calls in the same order and stops at the first wrong
answer. The control shows that the program then wins within a few samples, if it runs where a file on disk is
shared. In a sandbox it never wins, because it finds nothing of what it noted in an earlier episode.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from envkit.environments.code_editor.attacks import ATTACKS, AttackTarget
from envkit.sandbox import PYTHON_OPTIONS, SandboxBackend
from envkit.sandboxes.bubblewrap import BubblewrapBackend
from envkit.sandboxes.zygote import ZygoteBackend

TARGET = AttackTarget(
    source="def is_even(n):\n    return False\n",
    reference="def is_even(n):\n    return n % 2 == 0\n",
    function="is_even",
)
NUMBERS = (3, 8, 5, 2, 2, 7, 10, 9)
WORKER = resources.files("envkit.sandbox.programs").joinpath("worker.py").read_text()
ARGUMENTS = [*PYTHON_OPTIONS, "-c", WORKER, "solution.py", "is_even", ""]
[REMEMBERS] = [attack for attack in ATTACKS if attack.number == 66]
MODULE = REMEMBERS.build(TARGET).files["solution.py"]


def wins(ask: Callable[[bytes], bytes]) -> bool:
    """True if the program answers every call as it should."""
    assert json.loads(ask(b'{"id": "0"}'))["ready"]
    for number in NUMBERS:
        request = {"id": "1", "calls": [[[str(number)], {}]]}
        [answer] = json.loads(ask(json.dumps(request).encode()))["answers"]
        if answer["value"] is not (number % 2 == 0):
            return False
    return True


def evicts(path: Path) -> bool:
    """True if pages of a file can be evicted from memory, as those of a file on disk can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def test_it_wins_within_a_few_samples_where_a_file_on_disk_is_shared(tmp_path: Path) -> None:
    if not evicts(Path(pydoc_data.topics.__file__)):
        pytest.skip("the standard library does not lie on a disk here")
    (tmp_path / "solution.py").write_text(MODULE)

    def episode() -> bool:
        with subprocess.Popen(
            [sys.executable, *ARGUMENTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(line: bytes) -> bytes:
                process.stdin.write(line + b"\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                return process.stdout.readline()  # type: ignore[union-attr]

            try:
                return wins(ask)
            finally:
                process.kill()

    # Whatever else reads the file meanwhile spoils what the program noted, so it may need a second try.
    tries = [[episode() for _ in range(2 * len(NUMBERS))] for _ in range(4)]
    assert any(True in outcomes for outcomes in tries), tries
    assert any(False in outcomes for outcomes in tries), "it wins without a memory"


@pytest.mark.parametrize("episodes", [50, pytest.param(1000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["bubblewrap", "docker", "zygote"])
def test_it_never_wins_in_a_sandbox(request: pytest.FixtureRequest, name: str, episodes: int) -> None:
    kinds: dict[str, Callable[[], SandboxBackend]] = {
        "bubblewrap": BubblewrapBackend,
        "docker": lambda: request.getfixturevalue("docker"),
        "zygote": ZygoteBackend,
    }
    backend = kinds[name]()
    if missing := backend.available():
        pytest.skip(missing)

    def episode() -> bool:
        with backend.create() as sandbox:
            sandbox.write("solution.py", MODULE.encode())
            peer = sandbox.open([sandbox.python, *ARGUMENTS])
            try:
                return wins(lambda line: peer.ask(line, 20))
            finally:
                peer.close()

    assert sum(episode() for _ in range(episodes)) == 0
