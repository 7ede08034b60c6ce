"""Runs: functions that train, evaluate, compare, load and publish, as the commands do.

The names are also in `envkit`: ``envkit.train(...)``. PyTorch is imported only when it is needed.
"""

from envkit.runs.adapter import Adapter, load_adapter
from envkit.runs.measuring import bench, bench_spec, evaluate, leaderboard, pass_at_k, rescore, resume_bench
from envkit.runs.pushing import push_adapter
from envkit.runs.results import (
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
)
from envkit.runs.tools.prompting import resume_prompt_search, search_prompt
from envkit.runs.tools.supporting import support
from envkit.runs.training import resume_train, sft, train
from envkit.runs.verifying import verify

__all__ = [
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
]
