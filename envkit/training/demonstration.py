"""A demonstration: an oracle's episode, as observations and correct actions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Correct actions to train on, each with the observation that it answers.

    Args:
        system: the environment's system message.
        exchanges: observation and action of each turn, at least one turn.
    """

    system: str
    exchanges: tuple[tuple[str, str], ...]
