"""Trackers by name and of one's own: begun together, and none of them can end a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recorder import Recorder

from envkit.errors import MissingExtraError, UsageError
from envkit.training.trackers import NAMES, TrackedRun, open_trackers, resolve

RUN = TrackedRun("run-7", "", Path("runs/run-7"), {"learning_rate": 1e-4})


def test_every_tracker_hears_every_step() -> None:
    first, second = Recorder(), Recorder()
    with open_trackers([("a", first.track), ("b", second.track)], RUN, pytest.fail) as log:
        log("sft", 1, {"loss": 2.0})
        log("rl", 1, {"reward": 0.5})
    assert first.events == second.events == [("begin", "run-7"), ("sft", 1), ("rl", 1), ("end", "run-7")]
    assert second.metrics["run-7", "rl", 1] == {"reward": 0.5}


def test_one_that_fails_is_left_out_from_then_on_and_the_others_go_on() -> None:
    broken, sound, said = Recorder(fails="rl"), Recorder(), list[str]()
    with open_trackers([("wandb", broken.track), ("mlflow", sound.track)], RUN, said.append) as log:
        log("sft", 1, {})
        log("rl", 1, {})
        log("rl", 2, {})
    assert broken.events == [("begin", "run-7"), ("sft", 1), ("failed", ConnectionError)]
    assert sound.events == [("begin", "run-7"), ("sft", 1), ("rl", 1), ("rl", 2), ("end", "run-7")]
    assert said == [
        "tracker wandb failed at step 1 of phase rl and is left out from here on (ConnectionError: no "
        "network); the run goes on, and its journals have every step"
    ]


def test_one_that_fails_at_the_end_is_named_and_the_others_end() -> None:
    broken, sound, said = Recorder(fails="end"), Recorder(), list[str]()
    with open_trackers([("a", broken.track), ("b", sound.track)], RUN, said.append):
        pass
    assert sound.events[-1] == ("end", "run-7")
    assert said == [
        "tracker a failed at the end (ConnectionError: no network); the run is whole in its folder"
    ]


def test_one_that_cannot_begin_is_refused_and_those_before_it_end() -> None:
    sound = Recorder()
    trackers = [("a", sound.track), ("b", Recorder(fails="begin").track)]
    with (
        pytest.raises(
            UsageError, match=r"^tracker b cannot begin \(ConnectionError: no network\); mend that"
        ),
        open_trackers(trackers, RUN, pytest.fail),
    ):
        pytest.fail("the run began")
    assert sound.events == [("begin", "run-7"), ("failed", UsageError)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_fails_is_told_to_its_trackers_and_fails_as_it_did(error: type[BaseException]) -> None:
    tracker = Recorder()
    with pytest.raises(error), open_trackers([("a", tracker.track)], RUN, pytest.fail):
        raise error
    assert tracker.events[-1] == ("failed", error)


def test_trackers_are_chosen_by_name_or_given() -> None:
    assert [name for name, _ in resolve(["tensorboard", Recorder().track])] == ["tensorboard", "track"]
    assert resolve([]) == []
    with pytest.raises(
        UsageError, match=f"no tracker is named 'comet'; expected one of: {', '.join(NAMES)};"
    ):
        resolve(["comet"])
    with pytest.raises(UsageError, match=r"trackers is 'wandb'; expected a list, such as \['wandb'\]"):
        resolve("wandb")
    with pytest.raises(UsageError, match="tracker 'tensorboard' is given twice"):
        resolve(["tensorboard", "tensorboard"])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda package: monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("tensorboard", "torch.utils.tensorboard", "train"),
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow"),
        ("trackio", "trackio", "trackio"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    without: Callable[[str], None], name: str, package: str, extra: str
) -> None:
    without(package)
    with pytest.raises(
        MissingExtraError, match=rf"^{package} is needed .*pip install 'envkit-rl\[{extra}\]'"
    ):
        resolve([name])
