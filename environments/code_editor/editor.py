"""The editor: a real file in a sandbox, edited through text actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, final

from envkit.environments.code_editor.actions import (
    HELP,
    HELP_WHOLE,
    Command,
    Malformed,
    Replace,
    Rewrite,
    parse,
)
from envkit.environments.code_editor.examples import RunExamples
from envkit.environments.code_editor.source.edits import (
    AmbiguousEdit,
    EditError,
    apply_replace,
    apply_rewrite,
    show_change,
)
from envkit.environments.code_editor.source.syntax import (
    Definition,
    SyntaxProblem,
    definitions,
    find,
    syntax_problem,
)
from envkit.errors import ContractError, UsageError
from envkit.sandbox import Sandbox

#: Largest file, and most bytes by which edits may let a file grow.
_MAX_FILE_BYTES: Final = 262_144
_MAX_GROWTH_BYTES: Final = 32_768
#: Most work of the edits of one message, apart from its first edit, in bytes of the texts that are searched.
#: Parsing and compiling hostile text costs up to 64 times as much per byte as comparing lines.
_MAX_WORK_BYTES: Final = 2_400_000
_PARSING: Final = 64
#: Most commands that one message carries out.
_MAX_COMMANDS: Final = 3


@final
class CodeEditor:
    """Edits one Python file of a workspace. Knows no task and no reward.

    Args:
        path: workspace path of the only file that may be edited.
        focus: function that takes precedence if an edit matches several places.
        run_examples: what ``run`` does, and what shows the effect of an edit; ``None`` disables both.
        viewable: workspace paths of further files that ``view`` may show.
        whole: True if a python block replaces the whole file, False if it replaces single definitions.
    """

    def __init__(
        self,
        path: str,
        *,
        focus: str | None = None,
        run_examples: RunExamples | None = None,
        viewable: Sequence[str] = (),
        whole: bool = False,
    ) -> None:
        self._path = path
        self._focus = focus
        self._run_examples = run_examples
        self._viewable = tuple(viewable)
        self._whole = whole
        self._sandbox: Sandbox | None = None
        self._history: list[str] = []
        self._max_bytes = _MAX_FILE_BYTES
        self.submitted = False

    def launch(self, sandbox: Sandbox) -> None:
        """Start on a workspace that holds the file. The caller closes the sandbox.

        Raises:
            UsageError: the file does not exist or is not UTF-8.
        """
        self._sandbox = sandbox
        self._history = []
        self.submitted = False
        size = len(self.read().encode())  # raises now, not at the first action
        self._max_bytes = min(_MAX_FILE_BYTES, size + _MAX_GROWTH_BYTES)

    @property
    def runs_examples(self) -> bool:
        """True if ``run`` and edits show what examples give."""
        return self._run_examples is not None

    def observe(self) -> str:
        """Return the focus function's source, or the whole file."""
        source = self.read()
        found = find(source, self._focus) if self._focus else []
        return found[0].lines(source) if found else source

    def act(self, action: str, *, shows_results: bool = False) -> str:
        """Carry out the actions of one message. A failure is part of the observation, not an exception.

        The edits of a message are one change, made before its commands: the file is checked and written once.

        Args:
            action: the message.
            shows_results: after an edit, show what the examples give. A ``submit`` of the same message then
                counts only if all hold, so that an agent may submit and still learn that it is wrong.
        """
        actions = parse(action)
        before = self.read()
        seen, succeeded = self._edit([item for item in actions if not isinstance(item, Command)])
        commands = [item for item in actions if isinstance(item, Command)] if succeeded else []
        after = self.read()
        if shows_results and self._run_examples is not None and after != before:
            results = self._run_examples(after)
            seen.append(f"The examples now:\n{results.since(self._run_examples(before))}")
            commands = [item for item in commands if item.name != "run"]
            if results.failed and Command("submit") in commands:
                commands = [item for item in commands if item.name != "submit"]
                seen.append("Not submitted, because an example fails.")
        try:
            for number, command in enumerate(commands):
                if number == _MAX_COMMANDS:  # each may run the code for seconds
                    raise EditError(
                        f"A message may have {_MAX_COMMANDS} commands; give the others in the next."
                    )
                seen.append(self._do(command))
        except EditError as error:
            seen.append(f"Not done. {error}")
        return "\n".join(seen)

    def _edit(self, edits: Sequence[Replace | Rewrite | Malformed]) -> tuple[list[str], bool]:
        """Make the edits of a message; returns what the agent sees, and False if an edit failed.

        Earlier edits are kept if a later one fails. A python block before the last may be an example, so its
        failure does not count.
        """
        seen: list[str] = []
        last_block = next((item for item in reversed(edits) if isinstance(item, Rewrite)), None)
        before = after = self.read() if edits else ""
        saved_at, left, succeeded = -1, _MAX_WORK_BYTES, True
        for item in edits:
            try:
                if left <= 0:
                    raise EditError("These are too many edits for one message; give the others in the next.")
                rewrites = isinstance(item, Rewrite) and not self._whole
                left -= len(after) * (_PARSING if rewrites else 1)
                if rewrites and after != before and (problem := syntax_problem(after)):
                    raise _left(problem)  # a broken text is not parsed, see `apply_replace`
                try:
                    # In an edited text, the focus is looked for only if that decides.
                    edited = self._edited(after, item, None if after != before else self._focus)
                except AmbiguousEdit:
                    if after == before or (left := left - len(after) * _PARSING) <= 0:
                        raise
                    edited = self._edited(after, item, self._focus)
                if len(edited.encode()) > self._max_bytes:
                    raise EditError(f"The file would grow beyond {self._max_bytes} bytes.")
                after, saved_at = edited, len(seen)
            except EditError as error:
                seen.append(f"Not done. {error}")
                if left <= 0 or not isinstance(item, Rewrite) or item is last_block:
                    succeeded = False
                    break
        if saved_at >= 0:
            try:
                seen.insert(saved_at, self._save(before, after))
            except EditError as error:
                seen.insert(saved_at, f"Not done. {error}")
                succeeded = False
        return seen, succeeded

    def _edited(self, source: str, edit: Replace | Rewrite | Malformed, focus: str | None) -> str:
        match edit:
            case Malformed(hint):
                raise EditError(hint.replace(HELP, HELP_WHOLE) if self._whole else hint)
            case Replace():
                return apply_replace(source, edit, focus)
            case Rewrite(new):
                return new if self._whole else apply_rewrite(source, edit)

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

    # One method per command.

    def _do(self, command: Command) -> str:
        match command:
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

    def _save(self, before: str, source: str) -> str:
        if source == before:
            raise EditError("The edit leaves the file as it is.")
        problem = syntax_problem(source)
        if problem is not None:
            raise _left(problem)
        self._history.append(before)
        self._running().write(self._path, source.encode())
        return "Changed:\n" + show_change(self._path, before, source)

    def _undo(self) -> str:
        if not self._history:
            raise EditError("There is no edit to undo.")
        now, before = self.read(), self._history.pop()
        self._running().write(self._path, before.encode())
        return "Undone:\n" + show_change(self._path, now, before)

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
        if self._run_examples is None:
            raise EditError("There are no tests to run here.")
        return "\n".join(self._run_examples(self.read()).lines)

    def _running(self) -> Sandbox:
        if self._sandbox is None:
            raise ContractError("the editor is not launched")
        return self._sandbox


def _left(problem: SyntaxProblem) -> EditError:
    return EditError(
        f"It would leave a syntax error at line {problem.line}, column {problem.column}: {problem.message}."
    )
