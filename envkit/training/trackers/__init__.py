"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, trackio, or one of your own.

A tracker of your own is a generator function::

    @contextmanager
    def to_console(run: TrackedRun) -> Generator[Log]:
        print(run.id, run.config["learning_rate"])
        yield lambda phase, step, metrics: print(phase, step, metrics)
        print("done")

    envkit.train("sql-desk", trackers=["wandb", to_console])

Trackers show a run. Its journals stay the source of every report.
"""

from envkit.training.trackers.protocol import Log, TrackedRun, Tracker
from envkit.training.trackers.tracking import DEFAULT, NAMES, NamedTracker, open_trackers, resolve

__all__ = ["DEFAULT", "NAMES", "Log", "NamedTracker", "TrackedRun", "Tracker", "open_trackers", "resolve"]
