"""A Docker engine that stops during a run: one logged wait of bounded length, then immediate errors."""

from __future__ import annotations

import logging
import time

import pytest

from envkit.errors import SandboxUnavailable
from envkit.sandboxes._docker import engine
from envkit.sandboxes._docker.engine import Reconnect


class Engine:
    """Fails the first ``failing_pings`` pings, as a stopped dockerd does, and answers afterwards."""

    def __init__(self, failing_pings: int) -> None:
        self.failing_pings, self.pings = failing_pings, 0

    def ping(self) -> None:
        from docker.errors import DockerException

        self.pings += 1
        if self.pings <= self.failing_pings:
            raise DockerException("Connection refused")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only `time.sleep` advances; the list holds the current time."""
    pytest.importorskip("docker")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(engine, "_try_socket", lambda: None)
    return now


def test_waiting_for_a_restart_is_logged(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Reconnect(30.0).wait(Engine(failing_pings=20).ping)
    assert clock[0] == pytest.approx(2.0)
    assert [record.message for record in caplog.records] == [
        "Docker does not answer; trying for 30 s to reach it again",
        "Docker answers again",
    ]


def test_a_stopped_engine_is_waited_for_only_once(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    reconnect, gone = Reconnect(30.0), Engine(failing_pings=10**9)
    for _ in range(5):  # an evaluation continues with other episodes
        with pytest.raises(SandboxUnavailable, match="is dockerd running"):
            reconnect.wait(gone.ping)
    assert 30.0 <= clock[0] < 31.0
    assert len(caplog.records) == 1


def test_the_waiting_time_starts_anew_after_an_answer(clock: list[float]) -> None:
    reconnect = Reconnect(30.0)
    for _ in range(3):
        before = clock[0]
        reconnect.wait(Engine(failing_pings=200).ping)
        assert clock[0] - before == pytest.approx(20.0)
