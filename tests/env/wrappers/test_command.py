"""Environments around a command-line program: its arguments, its input, and what an agent sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from envkit import CommandEnv, ContractError, Env, Limits, SandboxBackend, Task, check

PROGRAM = """
import os, sys, time
match sys.argv[1:]:
    case ["fail", text]:
        print("before", flush=True)
        sys.exit(text)
    case ["spin"]:
        while True: pass
    case ["quiet"]:
        pass
    case ["end"]:
        os.kill(os.getpid(), 9)
    case ["keep", path]:
        open(path, "w").write(sys.stdin.read())
    case arguments:
        print(arguments, sys.stdin.read())
"""
TASK = Task("t", "train", "Use it.", {"program.py": PROGRAM})


class Kept(CommandEnv):
    """Solved once the program has kept a text."""

    id: ClassVar[str] = "kept"
    command = ("python3", "program.py")
    limits = Limits(cpu_s=1)

    @check()
    def is_kept(self) -> bool:
        return self.sandbox.read("note.txt", 100) == b"tea\n"


@pytest.fixture
def env(backend: SandboxBackend) -> Iterator[Env]:
    made = Kept(tasks=[TASK], sandbox=backend, max_turns=9)
    yield made
    made.close()


def test_an_agent_is_told_of_the_tools(env: Env) -> None:
    assert env.reset(seed=0)[0].split("\n") == [
        "Use it.",
        "",
        "Say one call per turn, such as run(arguments=..., stdin=...):",
        "run(arguments: list[str] = [], stdin: str = '')  Run the program with these arguments and this "
        "standard input; returns what it prints.",
        "done()  Say that the work is done, which ends the episode.",
    ]


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("run(['a b', '$HOME', '; ls', '*'])", "['a b', '$HOME', '; ls', '*']"),
        ("run(['a'], 'x\\ny')", "['a'] x\ny"),
        ("run(['a'])\n```\nx; y\n```", "['a'] x; y"),
        ("run", "[]"),
        ("run(['quiet'])", "(no output)"),
        ("run(['fail', 'no tea'])", "before\nno tea\n(exit status 1)"),
        ("run(['spin'])", "(stopped: cpu limit)"),
        ("run(['end'])", "(stopped: signaled)"),
        (
            "run(['a\\0'])",
            "'a\\x00' holds a NUL or half a surrogate pair, which no command can take; remove it",
        ),
        ("run('ls -l')", "run: arguments: Input should be a valid list."),
    ],
)
def test_arguments_and_input_are_data_and_the_ending_is_shown(env: Env, action: str, seen: str) -> None:
    env.reset(seed=0)
    assert env.step(action)[0].rstrip().startswith(seen)


def test_the_check_reads_what_the_program_has_kept(env: Env) -> None:
    for path, reward in (("note.txt", 1.0), ("other.txt", 0.0)):
        env.reset(seed=0)
        assert env.step(f"run(['keep', '{path}'], 'tea\\n')")[0] == "(no output)"
        assert env.step("done()")[1:3] == (reward, True)


@pytest.mark.parametrize("command", [(), "python3 program.py", None])
def test_a_command_must_be_a_list(backend: SandboxBackend, command: Any) -> None:
    kind = type("Odd", (Kept,), {"command": command, "__module__": __name__})
    with pytest.raises(
        ContractError, match=r"Odd.command is .*; expected a list such as \['python3', 'main.py'\]"
    ):
        kind(tasks=[TASK], sandbox=backend).reset(seed=0)
