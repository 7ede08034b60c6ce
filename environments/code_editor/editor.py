"""The editor: a real file in a sandbox, edited and run through text actions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import final

from envkit.environments.code_editor.actions import (
    HELP,
    HELP_WHOLE,
    Action,
    Command,
    Malformed,
    Replace,
    Rewrite,
    parse,
)
from envkit.environments.code_editor.edits import EditError, apply_replace, apply_rewrite
from envkit.environments.code_editor.syntax import Definition, definitions, find, syntax_problem
from envkit.errors import ContractError, UsageError
from envkit.sandbox import PYTHON_OPTIONS, Limits, Sandbox, StopReason

#: Limits of the ``run`` command, which makes a few calls of small functions.
RUN_LIMITS = Limits(cpu_s=2.0, wall_s=10.0, memory_bytes=256 * 2**20, processes=16, output_bytes=16_384)

_MAX_FILE_BYTES = 262_144
_MAX_SHOWN_CHARS = 1_500


@final
class CodeEditor:
    """Edits one Python file of a workspace. Knows no task and no reward.

    Args:
        path: workspace path of the only file that may be edited.
        focus: function that takes precedence if an edit matches several places.
        check: workspace path of the script that ``run`` executes; ``None`` disables ``run``.
        viewable: workspace paths of further files that ``view`` may show.
        whole: True if a python block replaces the whole file, False if it replaces single definitions.
    """

    def __init__(
        self,
        path: str,
        *,
        focus: str | None = None,
        check: str | None = None,
        viewable: Sequence[str] = (),
        whole: bool = False,
    ) -> None:
        self._path = path
        self._focus = focus
        self._check = check
        self._viewable = tuple(viewable)
        self._whole = whole
        self._sandbox: Sandbox | None = None
        self._history: list[str] = []
        self.submitted = False

    def launch(self, sandbox: Sandbox) -> None:
        """Start on a workspace that holds the file. The caller closes the sandbox.

        Raises:
            UsageError: the file does not exist or is not UTF-8.
        """
        self._sandbox = sandbox
        self._history = []
        self.submitted = False
        self.read()  # raises now, not at the first action

    def observe(self) -> str:
        """Return the focus function's source, or the whole file."""
        source = self.read()
        found = find(source, self._focus) if self._focus else []
        return found[0].lines(source) if found else source

    def act(self, action: str) -> str:
        """Carry out the actions of one message. A failure is part of the observation, not an exception."""
        seen: list[str] = []
        actions = parse(action)
        blocks = [item for item in actions if isinstance(item, Rewrite)]
        for item in actions:
            try:
                seen.append(self._do(item))
            except EditError as error:
                seen.append(f"Not done. {error}")
                # Later actions may depend on a failed one. A python block before the last may be an example.
                if not any(item is block for block in blocks[:-1]):
                    break
        return "\n".join(seen)

    def read(self) -> str:
        """Return the file's present text.

        Raises:
            UsageError: the file does not exist or is not UTF-8.
        """
        return self._read(self._path)

    def _read(self, path: str) -> str:
        try:
            return self._running().read(path, _MAX_FILE_BYTES).decode()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: expected a UTF-8 file in the workspace, found none") from error

    # One method per action.

    def _do(self, action: Action) -> str:
        match action:
            case Malformed(hint):
                raise EditError(hint.replace(HELP, HELP_WHOLE) if self._whole else hint)
            case Replace():
                return self._save(apply_replace(self.read(), action, self._focus))
            case Rewrite(source) if self._whole:
                return self._save(source)
            case Rewrite():
                return self._save(apply_rewrite(self.read(), action))
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
            case Command(name):
                raise ContractError(f"the grammar has a command {name!r} that the editor does not know")

    def _save(self, source: str) -> str:
        before = self.read()
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
        self._running().write(self._path, source.encode())
        return "Changed:\n" + self._diff(before, source)

    def _undo(self) -> str:
        if not self._history:
            raise EditError("There is no edit to undo.")
        now, before = self.read(), self._history.pop()
        self._running().write(self._path, before.encode())
        return "Undone:\n" + self._diff(now, before)

    def _view(self, argument: str) -> str:
        words = argument.split()
        path = next((word for word in words if word in self._viewable), self._path)
        source = self._read(path)
        words = [word for word in words if word != path]
        if not words:
            return source
        if span := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", words[0]):
            lines = source.split("\n")
            first, last = int(span[1]), int(span[2] or span[1])
            if not 1 <= first <= min(last, len(lines)):
                raise EditError(f"Lines {first}-{last} are no range in a file of {len(lines)} lines.")
            return "\n".join(lines[first - 1 : last])
        return self._find(words[0], path)[0].lines(source)

    def _outline(self) -> str:
        rows = [
            f"{'  ' * item.depth}{item.signature}  (lines {item.first_line}-{item.last_line})"
            for item in definitions(self.read())
        ]
        beside = f"\nFiles beside it, for view: {', '.join(self._viewable)}" if self._viewable else ""
        return f"{self._path} defines:\n" + ("\n".join(rows) or "nothing") + beside

    def _definition(self, name: str) -> str:
        source, found = self.read(), self._find(name)
        return "\n".join(f"lines {d.first_line}-{d.last_line}:\n{d.lines(source)}" for d in found[:3])

    def _find(self, name: str, path: str | None = None) -> list[Definition]:
        found = find(self._read(path or self._path), name)
        if not found:
            raise EditError(f"There is no {name or 'name to look for'}. {self._outline()}")
        return found

    def _run(self) -> str:
        if self._check is None:
            raise EditError("There are no tests to run here.")
        sandbox = self._running()
        before = sandbox.snapshot()
        result = sandbox.run([sandbox.python, *PYTHON_OPTIONS, self._check], limits=RUN_LIMITS)
        # The edited code has run, and may have changed any file.
        sandbox.reset(before)
        text = result.stdout.decode(errors="replace").strip()
        if len(text) > _MAX_SHOWN_CHARS:
            text = text[:_MAX_SHOWN_CHARS] + "\n[... cut ...]"
        if result.stop is not StopReason.EXITED:
            text += f"\nstopped: {result.stop.value}"
        elif result.exit:
            text += "\n" + result.stderr.decode(errors="replace").strip()[-400:]
        return text.strip() or "The tests printed nothing."

    def _running(self) -> Sandbox:
        if self._sandbox is None:
            raise ContractError("the editor is not launched")
        return self._sandbox

    def _diff(self, before: str, after: str) -> str:
        old, new = before.split("\n"), after.split("\n")
        return "\n".join(difflib.unified_diff(old, new, self._path, self._path, lineterm="", n=1))
