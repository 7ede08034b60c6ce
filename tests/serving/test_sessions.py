"""Sessions belong to their clients, branch where prompts differ, and stay within their memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.serving.sessions import Sessions

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def add(sessions: Sessions, client: str, name: str, prompt: list[int], answer: list[int]) -> None:
    sessions.add(client, name, "base", prompt, [(token, -0.5) for token in answer], "stop")


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_prompts_are_rebuilt_from_what_is_kept(asked: list[tuple[list[int], list[int]]]) -> None:
    sessions = Sessions()
    for prompt, answer in asked:
        add(sessions, "ada", "s", prompt, answer)
    ids: list[int] = []
    for turn, (prompt, answer) in zip(sessions.turns("ada", "s"), asked, strict=True):
        found: Any = turn.to_json()
        assert found["prompt_token_ids"]
        ids = ids[: found["kept"]] + found["prompt_token_ids"]
        assert (ids, found["token_ids"]) == (prompt, answer)
        ids += answer


def test_nobody_sees_anothers_session() -> None:
    sessions = Sessions()
    add(sessions, "ada", "s", [1], [2])
    for client, name in (("ben", "s"), ("ada", "t")):
        for call in (sessions.turns, sessions.delete):
            with pytest.raises(LookupError):
                call(client, name)
    add(sessions, "ben", "s", [3], [4])
    sessions.delete("ben", "s")
    assert len(sessions.turns("ada", "s")) == 1


def test_the_sessions_that_were_not_used_for_longest_are_dropped() -> None:
    sessions = Sessions(max_tokens=3 * 34)  # each of these turns counts as 32 tokens and its two
    add(sessions, "ben", "b", [1], [2])
    for name in ("a", "b", "a", "c"):
        add(sessions, "ada", name, [1], [2])
    with pytest.raises(LookupError):
        sessions.turns("ada", "b")
    assert len(sessions.turns("ada", "a")) == 2
    add(sessions, "ada", "d", [*range(90)], [2])  # too large on its own
    for name in ("a", "c", "d"):
        with pytest.raises(LookupError):
            sessions.turns("ada", name)
    add(sessions, "ada", "d", [1], [2])
    assert len(sessions.turns("ada", "d")) == len(sessions.turns("ben", "b")) == 1


def test_the_sessions_of_keys_that_are_gone_are_dropped() -> None:
    sessions = Sessions(max_tokens=2 * 34)
    for owner in ("ada", "ben"):
        add(sessions, owner, "s", [1], [2])
    sessions.keep({"ben", "cid"})
    with pytest.raises(LookupError):
        sessions.turns("ada", "s")
    assert len(sessions.turns("ben", "s")) == 1
    for _ in range(2):  # a whole allowance
        add(sessions, "ada", "s", [1], [2])
    assert len(sessions.turns("ada", "s")) == 2


def test_a_log_probability_that_is_not_known_is_none() -> None:
    sessions = Sessions()
    sessions.add("ada", "s", "base", [1], [(2, math.nan), (3, -1.0)], "length")
    [turn] = sessions.turns("ada", "s")
    assert turn.to_json()["logprobs"] == [None, -1.0]
