"""MLflow, set up by its own variables (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and others)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

from envkit.training.trackers.protocol import Log, TrackedRun, imported

#: Tag with the run's id, by which a resumed run finds its MLflow run: the server chooses the MLflow id.
_TAG: Final = "envkit.run"
#: Training waits for every call, and MLflow would try a dead server for minutes. Values of the user's own are
#: kept.
_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def library() -> Any:
    """Import MLflow; see `imported`."""
    return imported("mlflow", "mlflow")


@contextmanager
def track(run: TrackedRun) -> Generator[Log]:
    """Log to an MLflow run; the seeds of a run are children of one parent run."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    mlflow = library()
    client = mlflow.MlflowClient()
    experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or "envkit")
    parent = {"mlflow.parentRunId": _run(client, experiment, run.group, {})} if run.group else {}
    run_id = _run(client, experiment, run.id, parent)
    client.log_batch(
        run_id, params=[mlflow.entities.Param(name, str(value)) for name, value in run.config.items()]
    )

    def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(
            run_id,
            metrics=[
                mlflow.entities.Metric(f"{phase}/{name}", value, now, step) for name, value in metrics.items()
            ],
        )

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        with redirect_stdout(sys.stderr):  # MLflow prints the run's address; stdout is for results
            for ended in (run_id, *parent.values()):
                client.set_terminated(ended, status)


def _experiment(client: Any, name: str) -> str:
    """Return the id of the experiment of this name; make one if there is none."""
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _run(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the id of the MLflow run of this name, now running; make one if there is none."""
    if found := client.search_runs([experiment], f"tags.`{_TAG}` = '{name}'"):
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    return str(client.create_run(experiment, run_name=name, tags={_TAG: name, **tags}).info.run_id)
