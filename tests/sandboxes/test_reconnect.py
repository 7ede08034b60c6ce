"""An engine that goes away during a run: one bounded wait, announced, and none after it."""

from __future__ import annotations

import logging
import time

import pytest

from envkit.errors import SandboxUnavailable
from envkit.sandboxes._docker import engine
from envkit.sandboxes._docker.engine import Reconnect


class Engine:
    """Answers but for ``away`` pings, which fail as those of a stopped dockerd do."""

    def __init__(self, away: int) -> None:
        self.away, self.pings = away, 0

    def ping(self) -> None:
        from docker.errors import DockerException

        self.pings += 1
        if self.pings <= self.away:
            raise DockerException("Connection refused")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes in sleeps only; the list holds the present."""
    pytest.importorskip("docker")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(engine, "_try_socket", lambda: None)
    return now


def test_a_restart_is_waited_for_and_announced(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Reconnect(30.0).wait(Engine(away=20).ping)
    assert clock[0] == pytest.approx(2.0)
    assert [record.message for record in caplog.records] == [
        "Docker does not answer; trying for 30 s to reach it again",
        "Docker answers again",
    ]


def test_an_engine_that_is_gone_is_waited_for_once(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    reconnect, gone = Reconnect(30.0), Engine(away=10**9)
    for _ in range(5):  # as an evaluation does, which plays on
        with pytest.raises(SandboxUnavailable, match="is dockerd running"):
            reconnect.wait(gone.ping)
    assert 30.0 <= clock[0] < 31.0
    assert len(caplog.records) == 1


def test_patience_is_renewed_once_it_answers(clock: list[float]) -> None:
    reconnect = Reconnect(30.0)
    for _ in range(3):
        before = clock[0]
        reconnect.wait(Engine(away=200).ping)
        assert clock[0] - before == pytest.approx(20.0)
