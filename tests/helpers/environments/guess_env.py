"""A number-guessing environment for tests of the core, whose sandbox fails on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

from envkit import ActionResult, Env, Sandbox, SandboxBackend, SandboxError, Task, check
from envkit.sandboxes.process import ProcessBackend

TASKS = tuple(Task(f"below-{top}", "train", "", {}, hidden={"top": top}) for top in (10, 50, 90))


@final
class Backend(SandboxBackend):
    """Counts its sandboxes; the first ``breaks`` of them cannot be made."""

    name = "counted"
    isolated = False

    def __init__(self, breaks: int = 0) -> None:
        self.breaks = breaks
        self.made = 0
        self.open: set[int] = set()

    def available(self) -> None:
        return None

    def create(self) -> Sandbox:
        if self.breaks:
            self.breaks -= 1
            raise SandboxError("no sandbox")
        sandbox = ProcessBackend().create()
        close, number = sandbox.close, self.made
        self.made += 1
        self.open.add(number)

        def closing() -> None:
            self.open.discard(number)
            close()

        sandbox.close = closing
        return sandbox


class GuessEnv(Env):
    """Say a number; the right one ends the episode, ``quit`` gives up.

    Args:
        faults: the places that fail once each: ``"setup"``, ``"check"``, or an action.
    """

    id: ClassVar[str] = "guess"

    def __init__(
        self,
        *,
        tasks: Sequence[Task] = TASKS,
        sandbox: SandboxBackend | None = None,
        faults: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(tasks=tasks, sandbox=sandbox or Backend(), **options)
        self.faults = list(faults)
        self.guess = self.low = self.high = 0

    @property
    def number(self) -> int:
        return self.visit_seed % int(str(self.task.hidden["top"]))

    def setup(self, task: Task) -> str:
        self._break_at("setup")
        self.guess, self.low, self.high = -1, 0, int(str(task.hidden["top"])) - 1
        return f"{self.low}..{self.high}"

    def apply(self, action: str) -> ActionResult:
        self._break_at(action)
        if action == "quit":
            return ActionResult("Given up.", done=True)
        if not action.isdecimal():
            return ActionResult("Say a number, such as: 7")
        self.guess = int(action)
        if self.guess == self.number:
            return ActionResult("Right.", done=True)
        if self.guess < self.number:
            self.low = self.guess + 1
        else:
            self.high = self.guess - 1
        return ActionResult(f"{self.low}..{self.high}")

    @check()
    def right(self) -> bool:
        self._break_at("check")
        return self.guess == self.number

    @check(weight=0)
    def quick(self) -> float:
        return self.turns_left / self.max_turns

    def _break_at(self, place: str) -> None:
        if place in self.faults:
            self.faults.remove(place)
            raise SandboxError(f"broken at {place}")


def halve(observation: str) -> str:
    """Return the middle of the remaining range, which always finds the number in time."""
    low, high = observation.split("..")
    return str((int(low) + int(high)) // 2)


@final
class NarrowingEnv(GuessEnv):
    """Guessing that pays half of its reward turn by turn, for how far the range has shrunk."""

    @check(each_turn=True)
    def narrowed(self) -> float:
        top = int(str(self.task.hidden["top"]))
        return 1.0 if self.guess == self.number else 1 - (self.high - self.low + 1) / top
