"""Helpers for tests of `ApiAgent`: an agent of `api_server`, its journal, and an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guess_env import GuessEnv

from envkit import EpisodeKey, Turn, check, tool
from envkit.agents.api import ApiAgent
from envkit.agents.budget import Budget, BudgetError
from envkit.agents.cards import Card
from envkit.agents.endpoint import Backoff
from envkit.env.tools import find_tools
from envkit.errors import AgentError
from envkit.runtime.prices import Price
from envkit.runtime.store import Journal, read_lines

KEY = "sk-test-0123456789/abcdef"
QUICK = Backoff(attempts=3, first_s=0.001, most_s=0.01)
PRICE = Price(1.0, 10.0, 0.1)


def key(row: int = 0, task: str = "t") -> EpisodeKey:
    return EpisodeKey(seed=1, step=2, group=3, row=row, task=task)


class Desk(GuessEnv):
    """`GuessEnv` with tools."""

    id = "desk"

    @tool
    def guess_number(self, number: int, why: str = "") -> str:
        """Guess.

        Args:
            number: from 0.
        """
        return super().apply(str(number)).observation

    @tool(ends=True)
    def give_up(self) -> str:
        """End it."""
        return "Bye."

    def apply(self, action: str) -> Any:
        return super(GuessEnv, self).apply(action)

    @check(weight=0)
    def says_why(self) -> bool:
        return True


#: Budget of agents that are given none.
_DOLLARS = 100.0


def spent_usd(budget: Budget) -> float:
    """Return what a budget has booked: its limit without the highest cost that it still accepts."""
    accepted, refused = 0.0, 2 * budget.limit_usd
    for _ in range(60):
        middle = (accepted + refused) / 2
        try:
            with budget.hold(middle) as hold:
                hold.usd = 0.0
        except BudgetError:
            refused = middle
        else:
            accepted = middle
    return budget.limit_usd - accepted


TOOLS = [each.schema() for each in find_tools(Desk)]


class Playing:
    """Makes agents for a server's URL; all write to one journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budget = Budget(_DOLLARS)

    @contextmanager
    def __call__(
        self,
        url: str,
        *,
        backoff: Backoff = QUICK,
        budget: Budget | None = None,
        most: int = 50,
        on_retry: Callable[[str], None] = lambda line: None,
        tools: Sequence[Mapping[str, Any]] = (),
        price: Price = PRICE,
        **changes: Any,
    ) -> Iterator[ApiAgent]:
        self.budget = Budget(_DOLLARS) if budget is None else budget
        fields = {"mode": "tools" if tools else "text", "timeout_s": 60.0, "price": "m", **changes}
        card = Card(**{"name": "card", "model": "m", "base_url": url, "key_env": "TEST_API_KEY", **fields})
        recorded = self.records
        with (
            Journal(self.path) as journal,
            ApiAgent(
                "api",
                card,
                temperature=0.5,
                max_completion_tokens=most,
                price=price,
                budget=self.budget,
                journal=journal,
                tools=tools,
                recorded=recorded,
                backoff=backoff,
                on_retry=on_retry,
            ) as agent,
        ):
            yield agent

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.path)

    @property
    def spent_usd(self) -> float:
        """Dollars booked by the latest agent's budget."""
        return spent_usd(self.budget)

    def kinds(self) -> list[str]:
        """Return the kind of each record."""
        return [
            next(word for word in ("asked", "answered", "failed") if word in each) for each in self.records
        ]


def begin(agent: ApiAgent, row: int = 0) -> Any:
    """Start a session of the agent."""
    return agent.start(key(row), "Play.")


def heard(agent: ApiAgent, seen: str = "seen", session: Any = None) -> Turn | AgentError:
    """Submit one observation and return its answer."""
    session = session or begin(agent)
    agent.submit(session, seen)
    ((answered, answer),) = agent.collect()
    assert answered is session
    return answer


def turn(agent: ApiAgent, seen: str = "seen", session: Any = None) -> Turn:
    answer = heard(agent, seen, session)
    assert isinstance(answer, Turn), answer
    return answer


def play_three(agent: ApiAgent) -> list[list[str]]:
    """Play three conversations of three turns; return the answers of each."""
    sessions = [begin(agent, row) for row in range(3)]
    said: dict[int, list[str]] = {id(session): [] for session in sessions}
    for session in sessions:
        agent.submit(session, "seen 0")
    while answers := agent.collect():
        for session, answer in answers:
            assert isinstance(answer, Turn), answer
            said[id(session)].append(answer.text)
            if len(said[id(session)]) < 3:
                agent.submit(session, f"seen {len(said[id(session)])} after {answer.text}")
    return [said[id(session)] for session in sessions]
