"""Python interface: functions that train, evaluate, compare, load and publish, as the commands do.

The names are also in `envkit`: ``envkit.train(...)``. PyTorch is imported only when it is needed.
"""

from envkit.api.adapter import Adapter, load_adapter
from envkit.api.controlling import compare_controls, resume_controls
from envkit.api.forgotten import forgetting
from envkit.api.interfering import interference, resume_interference
from envkit.api.measuring import bench, bench_spec, evaluate, leaderboard, pass_at_k, rescore, resume_bench
from envkit.api.prompting import resume_prompt_search, search_prompt
from envkit.api.pushing import push_adapter
from envkit.api.results import (
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
)
from envkit.api.routing import train_router
from envkit.api.steering import steer
from envkit.api.studying import list_studies, study
from envkit.api.supporting import support
from envkit.api.training import resume_train, sft, train
from envkit.api.verifying import verify

__all__ = [
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
    "bench_spec",
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
    "steer",
    "study",
    "support",
    "train",
    "train_router",
    "verify",
]
