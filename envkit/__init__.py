"""RL environments around real applications, and the loop that trains small models on them.

`train`, `evaluate`, `bench`, `load_adapter` and their like are loaded from `envkit.runs` and `envkit.studies`
when they are first used, so that ``import envkit`` stays fast and needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from envkit.agent import Agent, Session
from envkit.env import Env
from envkit.env.authored import ActionResult, Baseline, Exploit, ImportedTasks, Variant
from envkit.env.checks import Check, Score, check
from envkit.env.grade import Grade
from envkit.env.judging import LabelledText, Rubric
from envkit.env.registry import make
from envkit.env.registry import register_gymnasium as _register_gymnasium
from envkit.env.spaces import Utf8
from envkit.env.tools import Tool, tool
from envkit.env.wrappers.command import CommandEnv
from envkit.env.wrappers.gymnasium import GymnasiumEnv, wrap
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

if TYPE_CHECKING:
    from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
    from envkit.runs import (
        Adapter,
        BenchResult,
        EvalResult,
        PromptResult,
        PushResult,
        Report,
        RescoreResult,
        SFTResult,
        SupportResult,
        TrainResult,
        VerifyResult,
        bench,
        bench_spec,
        evaluate,
        leaderboard,
        load_adapter,
        pass_at_k,
        push_adapter,
        rescore,
        resume_bench,
        resume_prompt_search,
        resume_train,
        search_prompt,
        sft,
        support,
        train,
        verify,
    )
    from envkit.studies.controls.call import ControlResult, compare_controls, resume_controls
    from envkit.studies.forgetting.call import forgetting
    from envkit.studies.grid.run import StudyResult, StudyState, list_studies, study
    from envkit.studies.interference.call import InterferenceResult, interference, resume_interference
    from envkit.studies.specialists.call import RouterResult, train_router
    from envkit.studies.steering.call import SteerResult, steer
    from envkit.training.config import TrainConfig

#: Names that are loaded when they are first used, by the module that defines them.
_LAZY = {
    "envkit.runs": (
        "Adapter",
        "BenchResult",
        "EvalResult",
        "PromptResult",
        "PushResult",
        "Report",
        "RescoreResult",
        "SFTResult",
        "SupportResult",
        "TrainResult",
        "VerifyResult",
        "bench",
        "bench_spec",
        "evaluate",
        "leaderboard",
        "load_adapter",
        "pass_at_k",
        "push_adapter",
        "rescore",
        "resume_bench",
        "resume_prompt_search",
        "resume_train",
        "search_prompt",
        "sft",
        "support",
        "train",
        "verify",
    ),
    "envkit.studies.controls.call": (
        "ControlResult",
        "compare_controls",
        "resume_controls",
    ),
    "envkit.studies.forgetting.call": ("forgetting",),
    "envkit.studies.grid.run": (
        "StudyResult",
        "StudyState",
        "list_studies",
        "study",
    ),
    "envkit.studies.interference.call": (
        "InterferenceResult",
        "interference",
        "resume_interference",
    ),
    "envkit.studies.specialists.call": (
        "RouterResult",
        "train_router",
    ),
    "envkit.studies.steering.call": (
        "SteerResult",
        "steer",
    ),
    "envkit.measure.spec": ("AgentSpec", "BenchSpec", "EnvironmentSpec"),
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
