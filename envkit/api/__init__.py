"""The Python interface: train, evaluate, bench and load an adapter, as the command line does, in a call.

`envkit` offers these names itself: ``envkit.train(...)``. Nothing here imports PyTorch before it is needed.
"""

from envkit.api.adapter import Adapter, load_adapter
from envkit.api.measuring import bench, evaluate, leaderboard, rescore, resume_bench, spec_of
from envkit.api.results import BenchResult, EvalResult, Report, RescoreResult, SFTResult, TrainResult
from envkit.api.training import resume_train, sft, train

__all__ = [
    "Adapter",
    "BenchResult",
    "EvalResult",
    "Report",
    "RescoreResult",
    "SFTResult",
    "TrainResult",
    "bench",
    "evaluate",
    "leaderboard",
    "load_adapter",
    "rescore",
    "resume_bench",
    "resume_train",
    "sft",
    "spec_of",
    "train",
]
