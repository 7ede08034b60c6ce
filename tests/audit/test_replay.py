"""Episodes in a fresh process, whose clock can be set."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "sabotages"))

from honest import Diary
from quiz import Quiz
from sabotage_sameness import Date, Hour

from envkit import SandboxBackend, SandboxError
from envkit.audit import replay
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.checks.sameness import same_elsewhere
from envkit.audit.replay import Condition, Replay, ReplayedEpisode, ReplayRequest, play_elsewhere


def played(
    kind: type[Quiz], backend: SandboxBackend, *conditions: Condition, variables: dict[str, str] | None = None
) -> Sequence[ReplayedEpisode | str] | str:
    tasks = kind.make_tasks("starter")
    replays = [Replay(tasks[0], kind.oracle(tasks[0]), condition=each) for each in conditions]
    return play_elsewhere(ReplayRequest(kind, tasks, backend, 3, replays, variables or {}), 7)


def test_the_clock_is_set_for_each_episode(backend: SandboxBackend) -> None:
    day_s = 86_400.0
    found = played(Date, backend, Condition(), Condition(ahead_s=-400 * day_s), Condition(ahead_s=40 * day_s))
    assert not isinstance(found, str)
    now = time.time()
    for each, ahead_s in zip(found, (0.0, -400 * day_s, 40 * day_s), strict=True):
        assert isinstance(each, ReplayedEpisode)
        days = {time.strftime("%Y-%m-%d", time.localtime(now + ahead_s + late_s)) for late_s in (-60, 0)}
        assert any(f"Today is {day}." in each.observations[0] for day in days)
    names = played(Hour, backend, *(Condition(ahead_s=-day_s * days) for days in range(7)))
    assert (
        len({each.observations[0].rpartition(" ")[2] for each in names if isinstance(each, ReplayedEpisode)})
        == 7
    )


def test_times_as_arguments_are_what_they_were(backend: SandboxBackend) -> None:
    tasks = Diary.make_tasks("starter")
    assert "18 episodes are equal" in same_elsewhere(AuditedEnv(Diary, tasks, backend, 3))
    [found] = played(Diary, backend, Condition(ahead_s=-1e6))
    assert isinstance(found, ReplayedEpisode)
    assert found.observations[1].startswith("datetime.datetime(2020, 1, 2, 3, 4, 5), datetime.datetime(2021,")
    assert found.solved


def test_what_cannot_be_played_elsewhere_says_why(backend: SandboxBackend) -> None:
    class Local(Quiz):
        pass

    assert str(played(Local, backend)).startswith("another process cannot be given it: ")
    hidden = type("Quiz", (Quiz,), {"__module__": "quiz", "__qualname__": "NoSuchQuiz"})
    sys.modules["quiz"].NoSuchQuiz = hidden  # type: ignore[attr-defined]
    try:
        assert "another process cannot import it: " in str(played(hidden, backend))
    finally:
        del sys.modules["quiz"].NoSuchQuiz  # type: ignore[attr-defined]


def test_a_process_that_ends_or_hangs_is_an_error(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SandboxError, match="a fresh process for episodes ended with status 1: "):
        played(Quiz, backend, variables={"PYTHONPATH": "", "PYTHONHOME": "/nowhere"})
    monkeypatch.setattr(replay, "_TIMEOUT_S", 0.01)
    with pytest.raises(SandboxError, match=r"took more than 0\.01 s"):
        played(Quiz, backend)


def test_the_sample_is_spread_over_levels_and_sources(backend: SandboxBackend) -> None:
    tasks = Quiz.make_tasks("starter")
    for given in (tasks, tasks[::-1]):
        audited = AuditedEnv(Quiz, given, backend, 3)
        assert [task.id for task in audited.tasks] == [f"starter-{number}" for number in range(6)]
        assert [task.metadata["level"] for task in audited.spread(2)] == [1, 2]
    audited.play(tasks[0], ["pass"])
    seen = audited.coverage
    assert (seen.played, seen.tasks, seen.sources) == (1, 8, (1, 4))
    assert seen.levels == {"1": (1, 4), "2": (0, 4)}
