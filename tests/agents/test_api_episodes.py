"""Whole episodes of the API agent against a real server."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from api_playing import TOOLS, Desk, Playing, key
from api_server import Api, Body, Say, call, completion, refusal
from guess_env import Backend, GuessEnv, halve
from starlette.responses import Response

from envkit import Outcome, Rollouts, Task
from envkit.agents.api import ApiAgent
from envkit.environments.sql_desk import SqlDeskEnv
from envkit.environments.sql_desk.tasks import generate
from envkit.sandbox import SandboxBackend


def halving(body: Body) -> str:
    """The number that halves what is left."""
    ranges = re.findall(r"\d+\.\.\d+", str(body["messages"]))
    return halve(ranges[-1])


def plays(agent: AbstractContextManager[ApiAgent], env: Callable[..., Any], rows: int) -> list[Any]:
    keys = [key(row, task) for task in ("below-10", "below-90") for row in range(rows)]
    backend = Backend()
    with Rollouts(lambda: env(sandbox=backend, max_turns=8)) as rollouts, agent as agent_:
        played = rollouts.play(agent_, keys)
    assert not backend.open
    return played


@pytest.mark.parametrize("native", [False, True])
def test_whole_episodes_are_played_and_replayed(
    serve: Callable[[Say], Api], playing: Playing, native: bool
) -> None:
    known: list[str] = []

    def say(body: Body, number: int) -> Response:
        known.append(str(body))
        if known.count(known[-1]) == 1 and len(set(known)) % 3 == 0:  # never twice the same
            return refusal(503, "busy")
        guessed = halving(body)
        if native:
            return completion(None, tool_calls=[call("guess_number", {"number": int(guessed)}, number)])
        return completion(guessed)

    api = serve(say)
    env, tools = (Desk, TOOLS) if native else (GuessEnv, ())
    played = plays(playing(api.url, tools=tools), env, rows=3)
    assert [episode.solved for episode in played] == [True] * 6
    assert all(episode.agent == "api" for episode in played)
    turns = [step.turn for episode in played for step in episode.steps]
    assert {turn.usage.prompt_tokens for turn in turns} == {20}
    answered = playing.kinds().count("answered")
    assert answered == len(turns) > 6
    asked = len(api.asked)
    assert plays(playing(api.url, tools=tools), env, rows=3) == played
    assert len(api.asked) == asked, "all was recorded"


def test_episode_without_answer_is_void_and_others_continue(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    def say(body: Body, number: int) -> Response:
        talk = str(body["messages"])
        return refusal(500, "boom") if "..89" in talk and "assistant" in talk else completion(halving(body))

    api = serve(say)
    played = plays(playing(api.url), GuessEnv, rows=2)
    assert [episode.outcome for episode in played[:2]] == [Outcome.SOLVED] * 2
    for episode in played[2:]:
        if episode.outcome is not Outcome.VOID:
            continue
        assert len(episode.steps) >= 1
        assert episode.info == {"error": "agent api: no answer to 3 requests: 500: boom"}
    assert Outcome.VOID in {episode.outcome for episode in played[2:]}


def test_a_real_environment_is_played_with_tools(
    serve: Callable[[Say], Api], playing: Playing, backend: SandboxBackend
) -> None:
    tasks: list[Task] = list(generate("starter"))[:2]
    wanted = {task.prompt: str(task.hidden["reference"]) for task in tasks}

    def say(body: Body, number: int) -> Response:
        first = str(body["messages"][1]["content"])
        sql = next(reference for prompt, reference in wanted.items() if first.startswith(prompt))
        tried = any(message["role"] == "tool" for message in body["messages"])
        name, text = ("submit", sql) if tried else ("query", "SELECT 'it''s'")
        return completion(None, tool_calls=[call(name, {"sql": text}, number)])

    api = serve(say)
    tools = [tool.schema() for tool in SqlDeskEnv.tools]
    with (
        Rollouts(lambda: SqlDeskEnv(tasks=tasks, sandbox=backend, max_turns=3)) as rollouts,
        playing(api.url, tools=tools) as agent,
    ):
        played = rollouts.play(agent, [key(0, task.id) for task in tasks])
    assert [episode.outcome for episode in played] == [Outcome.SOLVED] * 2
    assert ["it's" in episode.steps[1].observation for episode in played] == [True, True]
    assert len(api.asked) == 4
