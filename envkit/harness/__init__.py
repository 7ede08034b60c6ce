"""Harnesses: agent programs that nobody rewrote play environments, and a model learns from it."""

from envkit.harness.env import harnessed
from envkit.harness.spec import Harness, load_harness, shipped_harnesses

__all__ = ["Harness", "harnessed", "load_harness", "shipped_harnesses"]
