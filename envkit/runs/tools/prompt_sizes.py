"""Sizes of a search for a system message."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from envkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """Sizes of a search.

    Args:
        rounds: each plays fresh tasks, with the environment's own message, the best one so far and new ones.
        rewritings: new messages in each round.
        tasks_per_round: train tasks of each round, one episode of each message; at least 2. Every fourth is
            for examples of failures, the others compare the messages.
        checked: fresh train tasks that the last best message and the environment's own are compared on.
    """

    rounds: int = 4
    rewritings: int = 3
    tasks_per_round: int = 24
    checked: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.tasks_per_round < 2:
            raise ConfigError("tasks_per_round is 1; one task cannot both teach and compare: give 2 or more")

    @property
    def needed(self) -> int:
        """Tasks that a search takes."""
        return self.rounds * self.tasks_per_round + self.checked
