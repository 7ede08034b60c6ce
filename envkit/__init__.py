"""RL environments around real applications, and the loop that trains small models on them."""

from __future__ import annotations

from importlib.metadata import version as _version

from envkit.agent import Agent, Session
from envkit.checks import Check, Score, check
from envkit.env import ActionResult, Env, Exploit, ImportedTasks
from envkit.errors import (
    AgentError,
    BrokenTask,
    ConfigError,
    ContractError,
    EnvkitError,
    MissingExtraError,
    ModelError,
    RegistryError,
    SandboxError,
    SandboxUnavailable,
    StoreError,
    TaskFileError,
    TooLargeError,
    TrainingError,
    UnenforceableLimit,
    UnpricedError,
    UsageError,
)
from envkit.grading import Grade
from envkit.registry import register_gymnasium as _register_gymnasium
from envkit.rollout import Rollouts
from envkit.sandbox import ExecResult, Limits, Peer, PeerGone, Quota, Sandbox, SandboxBackend, StopReason
from envkit.spaces import Utf8
from envkit.tools import Tool, tool
from envkit.types import (
    EpisodeKey,
    Outcome,
    StepRecord,
    Task,
    Tokens,
    Trajectory,
    Turn,
    Usage,
    Verdict,
)

__all__ = [
    "ActionResult",
    "Agent",
    "AgentError",
    "BrokenTask",
    "Check",
    "ConfigError",
    "ContractError",
    "Env",
    "EnvkitError",
    "EpisodeKey",
    "ExecResult",
    "Exploit",
    "Grade",
    "ImportedTasks",
    "Limits",
    "MissingExtraError",
    "ModelError",
    "Outcome",
    "Peer",
    "PeerGone",
    "Quota",
    "RegistryError",
    "Rollouts",
    "Sandbox",
    "SandboxBackend",
    "SandboxError",
    "SandboxUnavailable",
    "Score",
    "Session",
    "StepRecord",
    "StopReason",
    "StoreError",
    "Task",
    "TaskFileError",
    "Tokens",
    "TooLargeError",
    "Tool",
    "TrainingError",
    "Trajectory",
    "Turn",
    "UnenforceableLimit",
    "UnpricedError",
    "Usage",
    "UsageError",
    "Utf8",
    "Verdict",
    "__version__",
    "check",
    "tool",
]

__version__ = _version("envkit")

_register_gymnasium()
