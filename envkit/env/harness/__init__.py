"""Harnesses: agent programs that nobody rewrote play environments, and a model learns from it."""

from envkit.env.harness.env import harnessed
from envkit.env.harness.spec import Harness, load_harness, shipped_harnesses

__all__ = ["Harness", "harnessed", "load_harness", "shipped_harnesses"]
