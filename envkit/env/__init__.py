"""The contract of an environment: what an author writes, and what the base class does with it."""

from envkit.env.base import LIMIT, Env, oracle_actions

__all__ = ["LIMIT", "Env", "oracle_actions"]
