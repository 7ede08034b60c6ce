"""Cost of API calls: plausible usage, and the budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from api_playing import PRICE, TOOLS, Playing, begin, key, spent_usd, turn
from api_server import USAGE, Api, Say, completion
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from envkit import Turn, Usage, UsageError
from envkit.agents import chat_completions
from envkit.agents.budget import Budget, BudgetError
from envkit.agents.cards import Card
from envkit.errors import AgentError
from envkit.runtime.store import trajectory_from_json, trajectory_to_json


def usage(**counts: Any) -> Any:
    return completion("x", usage={**USAGE, **counts})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: usage(), (20, 3, 0)),
        (lambda: usage(prompt_tokens_details={"cached_tokens": 8}), (20, 3, 8)),
        (lambda: usage(prompt_cache_hit_tokens=8, prompt_tokens_details=None), (20, 3, 8)),
        (lambda: usage(total_tokens=53), (20, 33, 0)),
        (lambda: usage(total_tokens=None), (20, 3, 0)),
        *[
            (lambda odd=odd: odd, None)
            for odd in (
                completion("x", usage=None),
                completion("x", usage=[1]),
                usage(prompt_tokens=-1),
                usage(completion_tokens=-5),
                usage(prompt_tokens=10**30),
                usage(prompt_tokens="20"),
                usage(prompt_tokens=2.5),
                usage(completion_tokens=True),
                usage(prompt_tokens_details={"cached_tokens": 21}),
                usage(prompt_tokens_details={"cached_tokens": -1}),
            )
        ],
    ],
)
def test_implausible_usage_is_replaced_by_the_upper_bound(
    serve: Callable[[Say], Api],
    playing: Playing,
    answer: Callable[[], Response],
    expected: tuple[int, int, int] | None,
) -> None:
    api = serve(lambda body, n: answer())
    with playing(api.url) as agent:
        found = turn(agent).usage
        spent = playing.spent_usd
    asked, answered = playing.records
    assert (answered["remark"] == "") == (expected is not None)
    wanted = expected or (asked["most"]["prompt_tokens"], 50, 0)
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == wanted
    assert spent == pytest.approx(PRICE.cost_usd(*wanted))
    assert "usd" not in str(playing.records)


def test_usage_above_the_limit_is_counted_and_remarked(serve: Callable[[Say], Api], playing: Playing) -> None:
    api = serve(lambda body, n: usage(completion_tokens=20_000))
    with playing(api.url) as agent:
        found = turn(agent).usage
        spent = playing.spent_usd
    assert found.completion_tokens == 20_000
    assert spent == pytest.approx(PRICE.cost_usd(20, 20_000, 0))
    assert "above the request's limit" in playing.records[1]["remark"]


@given(st.text(), st.text(), st.integers(1, 99))
def test_no_text_has_more_tokens_than_bytes(system: str, seen: str, most: int) -> None:
    card = Card("n", "m", "https://h/v1", "", price="m")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": seen}]
    request = chat_completions.request_body(card, messages, TOOLS, 1.0, most)
    found = chat_completions.max_usage(card, request)
    words = [system, seen, *(f"{tool['function']}" for tool in TOOLS)]
    assert found.prompt_tokens >= sum(len(text.encode()) for text in words)
    assert found.completion_tokens == most


def test_call_that_does_not_fit_the_budget_is_not_made_and_answers_are_kept(
    serve: Callable[[Say], Api], playing: Playing
) -> None:
    """Three calls fit at their highest cost. They turn out cheap, so more fit, until the budget is spent."""
    api = serve(lambda body, n: usage(prompt_tokens=1000, completion_tokens=50, total_tokens=1050))
    with playing(api.url, budget=Budget(0.006)) as agent:
        for row in range(9):
            agent.submit(begin(agent, row), "seen")
        answers: list[Turn | AgentError] = []

        def collect_all() -> None:
            for found in iter(agent.collect, []):
                answers.extend(answer for _, answer in found)

        with pytest.raises(BudgetError, match=r"the budget of \$0\.006 is used up: \$0\.0045 are spent, and"):
            collect_all()
        with pytest.raises(BudgetError):
            agent.collect()
    assert len(answers) == len(api.asked) == 3
    assert playing.kinds().count("answered") == 3
    assert playing.spent_usd == pytest.approx(0.0045)


def test_concurrent_calls_never_exceed_the_budget() -> None:
    budget, held, most = Budget(1.0), [0.0], [0.0]
    lock = threading.Lock()

    def spend() -> None:
        for _ in range(5):
            with budget.hold(0.4) as hold:
                with lock:
                    held[0] += 0.4
                    most[0] = max(most[0], held[0])
                hold.usd = 0.02
                with lock:
                    held[0] -= 0.4

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spent_usd(budget) == pytest.approx(0.4)
    assert most[0] < 1.0


def test_a_call_that_no_running_call_can_make_room_for_is_refused_at_once() -> None:
    budget, refused = Budget(1.0), list[str]()
    with budget.hold(0.75) as hold:
        hold.usd = 0.5

    def ask() -> None:
        try:
            with budget.hold(0.75):
                pass
        except BudgetError as error:
            refused.append(str(error))

    with budget.hold(0.25):  # it could free 0.25 at most
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(5)
        assert refused, "it waits"
    assert "$0.5000 are spent, and the next call may cost $0.7500" in refused[0]


def test_call_that_raises_is_booked_at_its_highest_cost() -> None:
    budget = Budget(1.0)
    with pytest.raises(ZeroDivisionError), budget.hold(0.75):
        raise ZeroDivisionError
    assert spent_usd(budget) == pytest.approx(0.75)
    with pytest.raises(BudgetError, match="the next call may cost"), budget.hold(0.5):
        pass
    with pytest.raises(UsageError, match="at least 0"):
        Budget(float("nan"))


def test_old_usages_still_load() -> None:
    step = {"observation": "o", "turn": {"text": "t", "tokens": None, "stop": "stop"}, "reward": 0.0}
    step["turn"]["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "seconds": 0.5}  # type: ignore[index]
    data = {"key": asdict(key()), "env": "e", "agent": "a", "outcome": "failed", "scores": {}, "info": {}}
    found = trajectory_from_json({**data, "steps": [step]})
    assert found.steps[0].turn.usage == Usage(3, 2, 0.5, cached_tokens=0)
    assert trajectory_from_json(trajectory_to_json(found)) == found
