"""Choose trackers by name, and log a run to several; one that fails never ends the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, TypeAlias

from envkit.errors import EnvkitError, UsageError
from envkit.training.trackers import mlflow, tensorboard, trackio, wandb
from envkit.training.trackers.protocol import Log, TrackedRun, Tracker

#: A tracker and its name in messages.
NamedTracker: TypeAlias = tuple[str, Tracker]

#: Name -> the function that imports the library, and the tracker.
_KNOWN: Final[Mapping[str, tuple[Callable[[], Any], Tracker]]] = {
    "tensorboard": (tensorboard.library, tensorboard.track),
    "wandb": (wandb.library, wandb.track),
    "mlflow": (mlflow.library, mlflow.track),
    "trackio": (trackio.library, trackio.track),
}
#: Names of the trackers that come with envkit.
NAMES: Final = tuple(_KNOWN)
#: Trackers of a run that names none.
DEFAULT: Final = ("tensorboard",)


def resolve(trackers: Sequence[str | Tracker]) -> list[NamedTracker]:
    """Look up trackers by name and import their libraries; trackers of the caller's own are kept.

    Raises:
        UsageError: there is none of that name, one is given twice, or it is no list.
        MissingExtraError: its library is not installed.
    """
    if isinstance(trackers, str):
        raise UsageError(f"trackers is {trackers!r}; expected a list, such as [{trackers!r}]")
    found: dict[str, Tracker] = {}
    for tracker in trackers:
        if isinstance(tracker, str):
            if tracker not in _KNOWN:
                raise UsageError(
                    f"no tracker is named {tracker!r}; expected one of: {', '.join(NAMES)}; or, from Python, "
                    "a function of your own"
                )
            name, (load, one) = tracker, _KNOWN[tracker]
            load()
        else:
            name, one = getattr(tracker, "__name__", type(tracker).__name__), tracker
        if name in found:
            raise UsageError(f"tracker {name!r} is given twice; give each one once")
        found[name] = one
    return [*found.items()]


@contextmanager
def open_trackers(
    trackers: Sequence[NamedTracker], run: TrackedRun, say: Callable[[str], None]
) -> Generator[Log]:
    """Open trackers for the length of the block, and yield a function that logs to all of them.

    A tracker that raises while a run trains is left out from then on: a network that is down must not end a
    run, nor delay each step. The run's journals have everything that it lacks.

    Args:
        trackers: see `resolve`.
        run: the run.
        say: prints a warning.

    Raises:
        UsageError: a tracker cannot begin. Nothing is trained yet.
    """
    opened: dict[str, tuple[AbstractContextManager[Log], Log]] = {}

    def log(phase: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, (context, log_to) in [*opened.items()]:
            try:
                log_to(phase, step, metrics)
            except Exception as error:
                say(
                    f"tracker {name} failed at step {step} of phase {phase} and is left out from here on "
                    f"({_described(error)}); the run goes on, and its journals have every step"
                )
                del opened[name]
                _close(name, context, error, lambda line: None)

    try:
        for name, tracker in trackers:
            try:
                context = tracker(run)
                opened[name] = context, context.__enter__()
            except EnvkitError:
                raise
            except Exception as error:
                whole = run.folder.parent if run.group else run.folder
                raise UsageError(
                    f"tracker {name} cannot begin ({_described(error)}); mend that, or choose another: "
                    f"envkit train --resume {whole} --tracker tensorboard"
                ) from error
        yield log
    finally:
        ended_by = sys.exception()
        for name, (context, _) in opened.items():
            _close(name, context, ended_by, say)


def _close(
    name: str,
    context: AbstractContextManager[Log],
    ended_by: BaseException | None,
    say: Callable[[str], None],
) -> None:
    """End a tracked run. What went wrong is said; the run that was tracked has ended already."""
    try:
        context.__exit__(type(ended_by) if ended_by else None, ended_by, ended_by and ended_by.__traceback__)
    except Exception as error:
        if error is not ended_by:
            say(f"tracker {name} failed at the end ({_described(error)}); the run is whole in its folder")


def _described(error: Exception) -> str:
    """The error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
