"""Agent for a model behind an OpenAI-compatible API; plays many episodes concurrently."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, final

from envkit.agent import Session
from envkit.agents.budget import Budget, BudgetError
from envkit.agents.call_journal import CallJournal, RecordedCalls, RequestId
from envkit.agents.cards import Card
from envkit.agents.chat_completions import (
    AnswerKey,
    ChatAnswer,
    Message,
    RequestFailure,
    answer_key,
    chat_text,
    empty_reply,
    max_usage,
    observation_messages,
    request_body,
    request_digest,
    with_opaque,
)
from envkit.agents.endpoint import Backoff, Endpoint, ProviderError
from envkit.engine.protocol import uniforms
from envkit.errors import AgentError, ContractError, UsageError
from envkit.openai_api.messages import request_message
from envkit.runtime.prices import Price
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped
from envkit.runtime.store import Journal
from envkit.types import EpisodeKey, Turn

_BACKOFF = Backoff()
#: Seconds between two reports of failures, because many conversations usually fail at once.
_REPORTS_S = 30.0
#: Seconds between two looks at the stop request while answers are awaited.
_POLL_S = 0.1
#: Consecutive refusals after which the run ends: the provider seems to refuse everything.
_MAX_REFUSALS = 16


@dataclass(slots=True, eq=False)
class _Conversation:
    """An episode's append-only messages, with the provider's opaque fields.

    Args:
        tools: schemas of the tools that are offered.
        turn: answers so far.
    """

    key: EpisodeKey
    messages: list[Message]
    tools: Sequence[Mapping[str, Any]]
    turn: int = 0

    def observe(self, observation: str) -> None:
        self.messages += observation_messages(self.messages, observation)

    def is_to_blame(self, failure: RequestFailure) -> bool:
        """True if the model's own answers have made the conversation too long. A void would reward them."""
        return self.turn > 0 and failure.context_overflow

    def answer(self, reply: ChatAnswer) -> str:
        """Append a reply; returns the action."""
        self.messages.append(reply.message)
        self.turn += 1
        return reply.text


@dataclass(slots=True, eq=False)
class _Chats:
    """An episode whose observations are whole chats, with their tools; see `envkit.Env.harness`.

    An answer that comes back unchanged is sent with the provider's opaque fields.
    """

    key: EpisodeKey
    messages: list[Message] = field(default_factory=list[Message])
    tools: Sequence[Mapping[str, Any]] = ()
    turn: int = 0
    _answers: dict[AnswerKey, Message] = field(default_factory=dict[AnswerKey, Message])

    def observe(self, observation: str) -> None:
        chat = json.loads(observation)
        self.messages = [with_opaque(request_message(each), self._answers) for each in chat["messages"]]
        self.tools = chat.get("tools", ())

    def is_to_blame(self, failure: RequestFailure) -> bool:
        """True if the program may ask what is refused because an answer of the model made it do so."""
        return self.turn > 0 and failure.single_request

    def answer(self, reply: ChatAnswer) -> str:
        """Remember a reply; returns its text, with tool calls as a model writes them."""
        text = chat_text(reply.message, reply.text)
        # An empty answer is repeated empty, but the provider's message has words in its place.
        key = answer_key(reply.message) if text else ("", ())
        self._answers[key] = reply.message
        self.turn += 1
        return text


@final
class ApiAgent:
    """Plays episodes by requests to an API, up to ``card.concurrency`` at once.

    Every request is written to the journal before it is sent, and every answer when it arrives. A request
    that the journal has an answer to is not sent again. The API key is read from the environment variable
    that the card names, and is stored nowhere.

    Owns its threads and connections: use it as a context manager, inside the journal's. Leaving waits for
    running requests, because they are paid for.

    Args:
        name: name in reports.
        card: address, model and settings.
        temperature: sampling temperature; not sent if the card says that the API takes none.
        max_completion_tokens: token limit of a turn, hidden reasoning included.
        price: price of the model's tokens.
        budget: limit in dollars; may be shared with other agents.
        journal: journal of this agent's calls alone.
        tools: schemas of the environment's tools (`envkit.env.tools.Tool.schema`); offered if the card has
            ``mode = "tools"``. A harness's own tools are always offered.
        recorded: records of the journal from earlier runs.
        backoff: retry policy.
        on_retry: called with one line for people after the first failure that is retried, or refusal that
            counts as an empty answer; then at most every 30 s. Runs in one of the agent's threads.
        should_stop: polled while waiting for answers; True ends the wait with `Stopped`.

    Raises:
        UsageError: the API key is missing, or the card has ``mode = "tools"`` and there are no tools.
        MissingExtraError: the official client is not installed.
        StoreError: ``recorded`` is not from a journal of calls.
    """

    def __init__(
        self,
        name: str,
        card: Card,
        *,
        temperature: float,
        max_completion_tokens: int,
        price: Price,
        budget: Budget,
        journal: Journal,
        tools: Sequence[Mapping[str, Any]] = (),
        recorded: Iterable[Mapping[str, Any]] = (),
        backoff: Backoff = _BACKOFF,
        on_retry: Callable[[str], None] = lambda line: None,
        should_stop: ShouldStop = never,
    ) -> None:
        if card.mode == "tools" and not tools:
            raise UsageError(
                f'card {card.name} has mode = "tools", but there are no tools to offer; set mode = "text"'
            )
        self.name = name
        self._card, self._price, self._budget = card, price, budget
        self._tools = tools if card.mode == "tools" else ()
        self._temperature, self._max_completion_tokens = temperature, max_completion_tokens
        self._backoff, self._on_retry = backoff, on_retry
        self._quiet_until, self._report_lock = 0.0, threading.Lock()
        self._should_stop = should_stop
        self._recorded = RecordedCalls(recorded)
        self._calls = CallJournal(journal, self._recorded)
        self._endpoint = Endpoint(card)
        budget.count(sum(map(price.of, self._recorded.usages)), journal.path)
        self._pool = ThreadPoolExecutor(card.concurrency, thread_name_prefix="api")
        self._waiting: dict[Future[ChatAnswer | AgentError], _Conversation | _Chats] = {}
        self._refused: BudgetError | None = None
        #: Consecutive refusals. Until a first answer, one refusal is enough to end the run.
        self._refusals = 0 if self._recorded.replies else _MAX_REFUSALS
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send no further requests and wait for the running ones. Idempotent."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._endpoint.close()

    def start(self, key: EpisodeKey, system: str) -> _Conversation:
        return _Conversation(key, [{"role": "system", "content": system}], self._tools)

    def start_chats(self, key: EpisodeKey) -> _Chats:
        return _Chats(key)

    def submit(self, session: Session, observation: str) -> None:
        if not isinstance(session, (_Conversation, _Chats)):
            raise ContractError(f"agent {self.name} was given a session of another agent")
        session.observe(observation)
        self._waiting[self._pool.submit(self._answer, session)] = session

    def collect(self) -> Sequence[tuple[Session, Turn | AgentError]]:
        """Wait for at least one answer; see `envkit.agent.Agent`.

        Raises:
            ProviderError: the provider refuses the key or the model, its first request, or many in a row.
            Stopped: ``should_stop`` returned True.
            BudgetError: the remaining requests do not fit the budget, and no answer is pending.
        """
        while self._waiting:
            while not (done := wait(self._waiting, _POLL_S, FIRST_COMPLETED).done):
                raise_if_stopped(self._should_stop)
            answers: list[tuple[Session, Turn | AgentError]] = []
            for future in [waiting for waiting in self._waiting if waiting in done]:
                session = self._waiting.pop(future)
                try:
                    answers.append((session, _to_turn(session, future.result())))
                except BudgetError as refused:
                    self._refused = refused
                except ProviderError:
                    self._closing.set()
                    raise
            if answers:
                return answers
        if self._refused:
            raise self._refused
        return []

    # The methods below run in the threads of the pool.

    def _answer(self, session: _Conversation | _Chats) -> ChatAnswer | AgentError:
        """Return the recorded reply, or request one, with retries."""
        limits = (self._temperature, self._max_completion_tokens)
        request = request_body(self._card, session.messages, session.tools, *limits)
        place = RequestId(session.key, session.turn, request_digest(self._card, request))
        if recorded := self._recorded.replies.get(place):
            return recorded
        key, backoff, failures = session.key, self._backoff, 0
        draws = uniforms((key.seed, key.step, key.group, key.row, session.turn), backoff.attempts)
        while True:
            found = self._send(session, place, request)
            if isinstance(found, ChatAnswer):
                return found
            if found.context_overflow:  # of this task's first prompt; others may be shorter
                return AgentError(f"agent {self.name}: {found.reason}")
            if found.single_request and self._refusals < _MAX_REFUSALS:
                self._refusals += 1
                return AgentError(f"agent {self.name}: {found.reason}")
            if not found.retryable:
                raise ProviderError(f"agent {self.name}: {found.reason}")
            failures += 1
            if failures >= backoff.attempts:
                return AgentError(f"agent {self.name}: no answer to {failures} requests: {found.reason}")
            delay_s = backoff.delay_s(failures, found.retry_after_s, float(draws[failures]))
            self._report(
                f"request {failures} of at most {backoff.attempts} to {self._card.base_url} failed: "
                f"{found.reason}. The next follows in {delay_s:.0f} s."
            )
            self._closing.wait(delay_s)

    def _report(self, line: str) -> None:
        now = time.monotonic()
        with self._report_lock:
            if now < self._quiet_until:
                return
            self._quiet_until = now + _REPORTS_S
        self._on_retry(f"{self.name}: {line}")

    def _send(
        self, session: _Conversation | _Chats, place: RequestId, request: Mapping[str, Any]
    ) -> ChatAnswer | RequestFailure:
        """Send one request: reserve its cost, journal it, send it, journal the answer, book the cost."""
        most = max_usage(self._card, request)
        with self._budget.hold(self._price.of(most)) as hold:
            if self._closing.is_set():
                hold.usd = 0.0
                return RequestFailure("the agent is closed", retryable=False)
            call = self._calls.asked(place, most)
            found, usage = self._endpoint.ask(request, most)
            hold.usd = self._price.of(usage)
            if isinstance(found, ChatAnswer):
                self._refusals = 0
            elif session.is_to_blame(found):
                if not found.context_overflow:
                    self._report(f"a request of the program gets an empty answer: {found.reason}")
                found = empty_reply(found, usage)
            if isinstance(found, ChatAnswer):
                self._calls.answered(call, found)
            else:
                self._calls.failed(call, found.reason, usage)
            return found


def _to_turn(session: _Conversation | _Chats, found: ChatAnswer | AgentError) -> Turn | AgentError:
    """Append a reply to its conversation and return it as a turn."""
    if isinstance(found, AgentError):
        return found
    return Turn(session.answer(found), usage=found.usage, stop=found.stop)
