"""The code editor application: real files in a sandbox, edited and run through text actions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import final

from envkit.environments.code_editor.actions import (
    HELP,
    Action,
    Command,
    Malformed,
    Replace,
    Rewrite,
    parse,
)
from envkit.environments.code_editor.edits import EditError, apply_replace, apply_rewrite
from envkit.environments.code_editor.syntax import definitions, find, syntax_problem
from envkit.errors import ContractError, UsageError
from envkit.sandbox import Limits, Sandbox, StopReason

#: Feedback runs: a few calls of small functions.
RUN_LIMITS = Limits(cpu_s=2.0, wall_s=10.0, memory_bytes=256 * 2**20, processes=16, output_bytes=16_384)

_MAX_FILE_BYTES = 262_144
_MAX_SHOWN_CHARS = 1_500


@final
class CodeEditor:
    """Edits one Python file of a workspace. Implements `envkit.application.Application`.

    Args:
        path: workspace path of the file that may be edited; every other path is refused.
        focus: function whose lines win when an edit could mean several places.
        check: workspace path of a script that ``run`` executes, or ``None`` for no ``run``.
    """

    isolation = "sandbox"

    def __init__(self, path: str, *, focus: str | None = None, check: str | None = None) -> None:
        self._path = path
        self._focus = focus
        self._check = check
        self._sandbox: Sandbox | None = None
        self._first = ""
        self._history: list[str] = []
        self.submitted = False

    def launch(self, sandbox: Sandbox) -> None:
        """Start on a workspace that holds the file.

        Raises:
            UsageError: the file is not there or not UTF-8.
        """
        self._sandbox = sandbox
        self._history = []
        self.submitted = False
        self._first = self._read()

    def observe(self) -> str:
        """The function in focus, or the whole file."""
        return self._view(self._focus or "")

    def act(self, action: str) -> str:
        """Carry out the actions of one message; what could not be done is said, not raised."""
        seen: list[str] = []
        for item in parse(action):
            try:
                seen.append(self._do(item))
            except EditError as error:
                seen.append(f"Nothing was changed. {error}")
                break  # later actions of the message rely on this one
        return "\n".join(seen)

    def snapshot(self) -> str:
        return self._need().snapshot()

    def restore(self, snapshot: str) -> None:
        self._need().reset(snapshot)

    def diff(self) -> str:
        """Unified diff between the file as launched and as it is."""
        return self._diff(self._first, self._read())

    def close(self) -> None:
        self._sandbox = None

    # One method per action.

    def _do(self, action: Action) -> str:
        match action:
            case Malformed(mend):
                return mend
            case Replace():
                return self._save(apply_replace(self._read(), action, self._focus))
            case Rewrite():
                return self._save(apply_rewrite(self._read(), action))
            case Command("view", argument):
                return self._view(argument)
            case Command("outline"):
                return self._outline()
            case Command("definition", argument):
                return self._definition(argument)
            case Command("run"):
                return self._run()
            case Command("undo"):
                return self._undo()
            case Command("submit"):
                self.submitted = True
                return "Submitted."
            case Command():
                return HELP

    def _save(self, source: str) -> str:
        before = self._read()
        problem = syntax_problem(source)
        if problem is not None:
            raise EditError(
                f"It would leave a syntax error at line {problem.line}, column {problem.column}: "
                f"{problem.message}."
            )
        if source == before:
            raise EditError("The edit leaves the file as it is.")
        if len(source.encode()) > _MAX_FILE_BYTES:
            raise EditError(f"The file would grow beyond {_MAX_FILE_BYTES} bytes.")
        self._history.append(before)
        self._need().write(self._path, source.encode())
        return "Changed:\n" + self._diff(before, source)

    def _undo(self) -> str:
        if not self._history:
            raise EditError("There is no edit to undo.")
        now, before = self._read(), self._history.pop()
        self._need().write(self._path, before.encode())
        return "Undone:\n" + self._diff(now, before)

    def _view(self, argument: str) -> str:
        lines = self._read().split("\n")
        words = [word for word in argument.split() if word != self._path]
        first, last = 1, len(lines)
        if words and (span := re.fullmatch(r"(\d+)(?:-(\d+))?", words[0])):
            first, last = int(span[1]), int(span[2] or span[1])
            if not 1 <= first <= last:
                raise EditError(f"Lines {first}-{last} are not a range; the file has {len(lines)} lines.")
        elif words:
            found = find("\n".join(lines), words[0])
            if not found:
                raise EditError(f"No {words[0]} in {self._path}. {self._outline()}")
            first, last = found[0].first_line, found[0].last_line
        return "\n".join(lines[first - 1 : last])

    def _outline(self) -> str:
        rows = [
            f"{'  ' * item.depth}{item.signature}  (lines {item.first_line}-{item.last_line})"
            for item in definitions(self._read())
        ]
        return f"{self._path} defines:\n" + ("\n".join(rows) or "nothing")

    def _definition(self, name: str) -> str:
        found = find(self._read(), name) if name else []
        if not found:
            raise EditError(f"No definition of {name or 'an empty name'}. {self._outline()}")
        return "\n".join(f"lines {d.first_line}-{d.last_line}:\n{self._view(d.name)}" for d in found[:3])

    def _run(self) -> str:
        if self._check is None:
            raise EditError("There are no tests to run here.")
        sandbox = self._need()
        result = sandbox.run([sandbox.python, "-I", "-S", self._check], limits=RUN_LIMITS)
        text = result.stdout.decode(errors="replace").strip()
        if len(text) > _MAX_SHOWN_CHARS:
            text = text[:_MAX_SHOWN_CHARS] + "\n[... cut ...]"
        if result.stop is not StopReason.EXITED:
            text += f"\nstopped: {result.stop.value}"
        elif result.exit:
            text += "\n" + result.stderr.decode(errors="replace").strip()[-400:]
        return text.strip() or "The tests printed nothing."

    # Files.

    def _need(self) -> Sandbox:
        if self._sandbox is None:
            raise ContractError("the editor is not launched")
        return self._sandbox

    def _read(self) -> str:
        try:
            return self._need().read(self._path, _MAX_FILE_BYTES).decode()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._path}: expected a UTF-8 file in the workspace, found none") from error

    def _diff(self, before: str, after: str) -> str:
        lines: Sequence[str] = list(
            difflib.unified_diff(before.split("\n"), after.split("\n"), self._path, self._path, lineterm="", n=1)
        )
        return "\n".join(lines)
