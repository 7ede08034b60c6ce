"""A Gymnasium environment, wrapped in one call: walk over a frozen lake."""

from frozen_lake.env import FrozenLake

__all__ = ["FrozenLake"]
