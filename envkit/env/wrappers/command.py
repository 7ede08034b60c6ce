"""Command-line programs as applications: an agent calls one with arguments, and sees what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from envkit.env import Env
from envkit.env.tools import tool
from envkit.errors import ContractError
from envkit.sandbox import ExecResult, Limits, StopReason
from envkit.types import Task


class CommandEnv(Env):
    """An environment whose application is a command-line program, which runs in the episode's sandbox.

    An agent has two tools: ``run`` starts the program, and ``done`` ends the episode. Arguments reach the
    program as they are: no shell reads them. The program keeps its data in files of the workspace, which is
    its current directory. Checks read them with `Env.sandbox`.

    A subclass writes `command`, the tasks and the checks. The program comes with the sandbox (`Env.image`,
    `Env.packages`, `Env.toolchains`), as `Env.data` (a script, or a git repository at a commit) or as a file
    of the tasks.

    Raises:
        ContractError: `command` is not a list of texts, or empty.
    """

    #: The program and its first arguments, such as ``["python3", "/data/stock/stock.py"]``. Those that an
    #: agent gives follow.
    command: ClassVar[Sequence[str]] = ()
    #: Limits of each call.
    limits: ClassVar[Limits] = Limits()

    def setup(self, task: Task) -> str:
        """Return the task's prompt and a description of the tools."""
        command: object = self.command
        if not isinstance(command, list | tuple) or not command:
            raise ContractError(
                f"{type(self).__name__}.command is {command!r}; expected a list such as "
                "['python3', 'main.py']"
            )
        return f"{task.prompt}\n\n{self.help}"

    @tool
    def run(self, arguments: list[str] = [], stdin: str = "") -> str:  # noqa: B006  (agents read the signature)
        """Run the program with these arguments and this standard input; returns what it prints."""
        return _shown(self.call(arguments, stdin))

    @tool(ends=True)
    def done(self) -> str:
        """Say that the work is done, which ends the episode."""
        return "The work is done."

    def call(self, arguments: Sequence[str], stdin: str = "") -> ExecResult:
        """Run the program to its end, for `run` and for checks.

        Raises:
            UsageError: an argument holds a null character.
        """
        return self.sandbox.run([*self.command, *arguments], stdin=stdin.encode(), limits=self.limits)


def _shown(result: ExecResult) -> str:
    """Join output, errors and an exit status that is not 0 into the text that an agent sees."""
    parts = [text.decode(errors="replace").rstrip("\n") for text in (result.stdout, result.stderr)]
    if result.stop is not StopReason.EXITED:
        parts.append(f"(stopped: {result.stop})")
    elif result.exit:
        parts.append(f"(exit status {result.exit})")
    return "\n".join(filter(None, parts)) or "(no output)"
