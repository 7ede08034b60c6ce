"""A demonstration: the oracle's answer to an environment's first observation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One correct answer, to train on.

    Args:
        system: the environment's system message.
        observation: its first observation.
        answer: the correct action.
    """

    system: str
    observation: str
    answer: str
