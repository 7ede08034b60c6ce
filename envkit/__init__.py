"""RL environments around real applications, and the loop that trains small models on them.

`train`, `evaluate`, `bench`, `load_adapter` and their like are loaded from `envkit.api` when they are first
used, so that ``import envkit`` stays fast and needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from envkit.agent import Agent, Session
from envkit.authored import ActionResult, Baseline, Exploit, ImportedTasks, Variant
from envkit.checks import Check, Score, check
from envkit.command import CommandEnv
from envkit.env import Env
from envkit.errors import (
    AgentError,
    BrokenTask,
    ConfigError,
    ContractError,
    EnvkitError,
    MissingExtraError,
    ModelError,
    ModelUnavailable,
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
from envkit.judging import LabelledText, Rubric
from envkit.registry import make
from envkit.registry import register_gymnasium as _register_gymnasium
from envkit.rollout import Rollouts
from envkit.sandbox import (
    Contents,
    ExecResult,
    Limits,
    Peer,
    PeerGone,
    Quota,
    Sandbox,
    SandboxBackend,
    StopReason,
)
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
from envkit.wrapped import GymnasiumEnv, wrap

if TYPE_CHECKING:
    from envkit.api import (
        Adapter,
        BenchResult,
        ControlResult,
        EvalResult,
        InterferenceResult,
        PromptResult,
        PushResult,
        Report,
        RescoreResult,
        RouterResult,
        SFTResult,
        SteerResult,
        StudyResult,
        StudyState,
        SupportResult,
        TrainResult,
        VerifyResult,
        bench,
        bench_spec,
        compare_controls,
        evaluate,
        forgetting,
        interference,
        leaderboard,
        list_studies,
        load_adapter,
        pass_at_k,
        push_adapter,
        rescore,
        resume_bench,
        resume_controls,
        resume_interference,
        resume_prompt_search,
        resume_train,
        search_prompt,
        sft,
        steer,
        study,
        support,
        train,
        train_router,
        verify,
    )
    from envkit.benchmark.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.training.config import TrainConfig

#: Names that are loaded when they are first used, by the module that defines them.
_LAZY = {
    "envkit.api": (
        "Adapter",
        "BenchResult",
        "ControlResult",
        "EvalResult",
        "InterferenceResult",
        "PromptResult",
        "PushResult",
        "Report",
        "RescoreResult",
        "RouterResult",
        "SFTResult",
        "SteerResult",
        "StudyResult",
        "StudyState",
        "SupportResult",
        "TrainResult",
        "VerifyResult",
        "bench",
        "compare_controls",
        "evaluate",
        "forgetting",
        "interference",
        "leaderboard",
        "list_studies",
        "load_adapter",
        "pass_at_k",
        "push_adapter",
        "rescore",
        "resume_bench",
        "resume_controls",
        "resume_interference",
        "resume_prompt_search",
        "resume_train",
        "search_prompt",
        "sft",
        "bench_spec",
        "steer",
        "study",
        "support",
        "train",
        "train_router",
        "verify",
    ),
    "envkit.benchmark.spec": ("AgentSpec", "BenchSpec", "EnvironmentSpec"),
    "envkit.training.config": ("TrainConfig",),
}

__all__ = [
    "ActionResult",
    "Adapter",
    "Agent",
    "AgentError",
    "AgentSpec",
    "Baseline",
    "BenchResult",
    "BenchSpec",
    "BrokenTask",
    "Check",
    "CommandEnv",
    "ConfigError",
    "Contents",
    "ContractError",
    "ControlResult",
    "Env",
    "EnvironmentSpec",
    "EnvkitError",
    "EpisodeKey",
    "EvalResult",
    "ExecResult",
    "Exploit",
    "Grade",
    "GymnasiumEnv",
    "ImportedTasks",
    "InterferenceResult",
    "LabelledText",
    "Limits",
    "MissingExtraError",
    "ModelError",
    "ModelUnavailable",
    "Outcome",
    "Peer",
    "PeerGone",
    "PromptResult",
    "PushResult",
    "Quota",
    "RegistryError",
    "Report",
    "RescoreResult",
    "Rollouts",
    "RouterResult",
    "Rubric",
    "SFTResult",
    "Sandbox",
    "SandboxBackend",
    "SandboxError",
    "SandboxUnavailable",
    "Score",
    "Session",
    "SteerResult",
    "StepRecord",
    "StopReason",
    "StoreError",
    "StudyResult",
    "StudyState",
    "SupportResult",
    "Task",
    "TaskFileError",
    "Tokens",
    "TooLargeError",
    "Tool",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "Trajectory",
    "Turn",
    "UnenforceableLimit",
    "UnpricedError",
    "Usage",
    "UsageError",
    "Utf8",
    "Variant",
    "Verdict",
    "VerifyResult",
    "__version__",
    "bench",
    "bench_spec",
    "check",
    "compare_controls",
    "evaluate",
    "forgetting",
    "interference",
    "leaderboard",
    "list_studies",
    "load_adapter",
    "make",
    "pass_at_k",
    "push_adapter",
    "rescore",
    "resume_bench",
    "resume_controls",
    "resume_interference",
    "resume_prompt_search",
    "resume_train",
    "search_prompt",
    "sft",
    "steer",
    "study",
    "support",
    "tool",
    "train",
    "train_router",
    "verify",
    "wrap",
]

__version__ = _version("envkit-rl")

_register_gymnasium()


def __getattr__(name: str) -> Any:
    """Load a name of the Python interface when it is first used (PEP 562)."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(_import_module(module), name)
    raise AttributeError(f"module 'envkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
