"""A demonstration: what the oracle answers to an environment's first observation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One right answer to learn from, or to look up the chance of.

    Args:
        system: the environment's system message.
        observation: its first observation.
        answer: the right action.
    """

    system: str
    observation: str
    answer: str
