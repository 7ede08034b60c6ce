"""Scripted agents: their actions depend on episode, turn and observation alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envkit import ContractError, EpisodeKey, Task
from envkit.agents.scripted import ScriptedAgent, noop, oracle

KEY = EpisodeKey(seed=0, step=0, group=0, row=0, task="t")
TASK = Task("t", "train", "", {"solution.py": "def f():\n    a = 1\n\n    return a\n"})


def said(agent: ScriptedAgent, key: EpisodeKey = KEY, turns: int = 1) -> list[str]:
    session = agent.start(key, "Answer.")
    found: list[str] = []
    for turn in range(turns):
        agent.submit(session, f"seen {turn}")
        ((answered, answer),) = agent.collect()
        assert answered is session
        found.append(answer.text)
    return found


def test_answers_depend_on_episode_turn_and_observation() -> None:
    agent = ScriptedAgent("echo", lambda key, turn, observation: f"{key.row} {turn} {observation}")
    assert said(agent, replace(KEY, row=7), turns=2) == ["7 0 seen 0", "7 1 seen 1"]


def test_many_sessions_at_once() -> None:
    agent = ScriptedAgent("echo", lambda key, turn, observation: observation)
    first, second = agent.start(KEY, "Answer."), agent.start(KEY, "Answer.")
    agent.submit(first, "a")
    agent.submit(second, "b")
    assert [(session, turn.text) for session, turn in agent.collect()] == [(first, "a"), (second, "b")]
    assert [*agent.collect()] == []


def test_each_answer_is_given_before_the_next_is_made() -> None:
    acted: list[str] = []

    def act(key: EpisodeKey, turn: int, observation: str) -> str:
        acted.append(observation)
        return observation

    agent = ScriptedAgent("echo", act)
    for seen in ("a", "b"):
        agent.submit(agent.start(KEY, "Answer."), seen)
    answers = iter(agent.collect())
    assert acted == []
    next(answers)
    assert acted == ["a"]


def test_session_of_another_agent_is_refused() -> None:
    class Other:
        key = KEY

    with pytest.raises(ContractError, match="session of another agent"):
        noop().submit(Other(), "")


def test_oracle_plays_the_solution_and_repeats_its_last_action() -> None:
    assert said(oracle({"t": ["edit", "submit"]}), turns=3) == ["edit", "submit", "submit"]


def test_noop_submits() -> None:
    assert said(noop()) == ["submit"]
    assert said(noop("quit")) == ["quit"]
