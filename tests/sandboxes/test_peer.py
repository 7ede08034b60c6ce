"""Peers that keep or break the line protocol, beyond the cases of `envkit.sandbox.check`."""

from __future__ import annotations

import time

import pytest

from envkit.sandbox import Limits, Peer, PeerGone, Sandbox, StopReason


def start(sandbox: Sandbox, code: str, limits: Limits = Limits()) -> Peer:
    return sandbox.open([sandbox.python, "-ISuc", code], limits=limits)


def test_a_peer_answers_short_long_and_empty_lines(sandbox: Sandbox) -> None:
    peer = start(sandbox, "while True: print(input()[::-1])")
    for line in (b"abc", b"", b"x" * 500_000):
        assert peer.ask(line, 10) == line[::-1]
    result = peer.close()
    assert result.stop is StopReason.SIGNALED
    assert peer.close() is result


def test_the_error_of_an_ended_peer_holds_its_status_and_stderr(sandbox: Sandbox) -> None:
    peer = start(sandbox, "import sys; input(); sys.exit('broken pipe dream')")
    with pytest.raises(PeerGone, match=r"status 1.*broken pipe dream") as gone:
        peer.ask(b"", 10)
    assert not gone.value.tampered
    assert peer.close().exit == 1
    with pytest.raises(PeerGone):
        peer.ask(b"", 10)


def test_a_silent_peer_is_killed_after_the_timeout(sandbox: Sandbox) -> None:
    peer = start(sandbox, "import time; input(); time.sleep(60)")
    with pytest.raises(PeerGone, match="did not answer") as gone:
        peer.ask(b"", 0.3)
    assert gone.value.timed_out
    assert peer.close().stop is StopReason.SIGNALED


@pytest.mark.parametrize("answer", ["one\\ntwo\\n", "one\\ntw"])
def test_more_than_one_line_is_tampering(sandbox: Sandbox, answer: str) -> None:
    peer = start(sandbox, f"import os; input(); os.write(1, b'{answer}'); input()")
    with pytest.raises(PeerGone, match="more than one line") as gone:
        peer.ask(b"", 10)
    assert gone.value.tampered


def test_an_unrequested_line_is_tampering(sandbox: Sandbox) -> None:
    peer = start(sandbox, "print('unasked'); open('done', 'w'); input()")
    while "done" not in sandbox.export(["done"], 0):
        time.sleep(0.05)
    with pytest.raises(PeerGone, match="without being asked") as gone:
        peer.ask(b"", 10)
    assert gone.value.tampered


def test_an_answer_longer_than_the_output_limit_stops_the_peer(sandbox: Sandbox) -> None:
    peer = start(sandbox, "input()\nwhile True: print('x' * 1000, end='')", Limits(output_bytes=10_000))
    with pytest.raises(PeerGone, match="output limit"):
        peer.ask(b"", 10)
    assert peer.close().stop is StopReason.OUTPUT


def test_the_output_limit_applies_to_each_answer_separately(sandbox: Sandbox) -> None:
    peer = start(sandbox, "while True: print(input())", Limits(output_bytes=100))
    for _ in range(10):
        assert peer.ask(b"x" * 50, 10) == b"x" * 50


def test_limits_hold_while_a_peer_works(sandbox: Sandbox) -> None:
    busy = start(sandbox, "input()\nwhile True: pass", Limits(cpu_s=0.2))
    with pytest.raises(PeerGone, match="cpu limit") as gone:
        busy.ask(b"", 10)
    assert not gone.value.timed_out
    slow = start(sandbox, "import time; input(); time.sleep(60)", Limits(wall_s=0.5))
    with pytest.raises(PeerGone, match="wall limit") as gone:
        slow.ask(b"", 10)
    assert gone.value.timed_out


def test_an_answer_before_the_request_was_read_is_tampering(sandbox: Sandbox) -> None:
    peer = start(sandbox, "import os, time; os.read(0, 1); os.write(1, b'early\\n'); time.sleep(60)")
    with pytest.raises(PeerGone, match="answered before it had read the request") as gone:
        peer.ask(b"x" * 2_000_000, 10)
    assert gone.value.tampered
