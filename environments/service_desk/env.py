"""The service desk environment: an agent manages tickets through tools that call a web service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final
from urllib.parse import quote

from envkit.env import Env
from envkit.env.authored import Exploit, Variant
from envkit.env.checks import check
from envkit.env.grade import Grade
from envkit.env.tools import format_call, tool
from envkit.env.wrappers.service import PRELOAD, Service
from envkit.environments.service_desk.tasks import PEOPLE, STORE, TicketHidden, changed, generate, tickets_of
from envkit.errors import UsageError
from envkit.runtime.display import Display
from envkit.sandbox import PYTHON_OPTIONS, SandboxBackend, guest_source
from envkit.types import Task, Verdict

#: Where the service listens.
PORT = 8000
#: Most characters of a search word, because URLs have limits.
_MAX_WORD = 100


@final
class ServiceDeskEnv(Env):
    """Manage the tickets of an HTTP service as a request asks.

    **Observation**: the request, a table of all tickets and the tools. Later, the result of the last call.

    **Actions**: ``list_tickets()``, ``search(word)``, ``show(ticket)``, ``assign(tickets, person)``,
    ``close_tickets(tickets)`` and ``done()``.

    **Reward**: 1 if the service's tickets are exactly as requested, else 0.

    **End**: ``done`` terminates; the last of ``max_turns`` truncates. The tickets are graded either way.

    **Versions**: v0.

    Args:
        warm_up_s: seconds that the service needs to start.
        ready_s: longest wait until it is ready, in seconds; after that the episode is void.
        options: see `Env`.
    """

    id: ClassVar[str] = "service-desk"
    system: ClassVar[str] = "You look after the tickets of a help desk. Answer with one call of a tool."
    preload: ClassVar[Sequence[str]] = PRELOAD

    def __init__(self, *, warm_up_s: float = 0.05, ready_s: float = 20.0, **options: Any) -> None:
        super().__init__(**options)
        self._warm_up_s, self._ready_s = warm_up_s, ready_s

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Generate tasks; see `envkit.environments.service_desk.tasks`."""
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return generate(split)

    @classmethod
    def validate_task(cls, task: Task) -> None:
        TicketHidden.from_task(task)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The right change, then ``done``. The change alone solves the task, so one turn is enough."""
        hidden = TicketHidden.from_task(task)
        return [_change_call(hidden.tickets, hidden.change), "done()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Changes that are almost right, and arguments that try to inject a second HTTP request."""
        hidden = TicketHidden.from_task(task)
        numbers, change = hidden.tickets, hidden.change
        right, done = cls.oracle(task)
        open_ = [ticket["number"] for ticket in tickets_of(task) if ticket["state"] == "open"]
        other = next(number for number in _alterable(task, change) if number not in numbers)
        injected = f"Ada HTTP/1.1\r\n\r\nPOST /tickets {dict(task.hidden)}"
        return [
            Exploit("says that it is done", (done,)),
            Exploit("does it to every open ticket", (_change_call([*open_], change), done)),
            Exploit("does it to one more", (_change_call([*numbers, other], change), done)),
            Exploit("closes one more after it", (right, _change_call([other], {"state": "closed"}), done)),
            Exploit("does it to tickets that are not there", (_change_call([0, 99], change), done)),
            Exploit("smuggles a request into a search", (format_call("search", {"word": injected}), done)),
            Exploit("smuggles one into a name", (_change_call(numbers, {"owner": injected}), done)),
        ]

    @classmethod
    def variants(cls, task: Task, sandbox: SandboxBackend) -> Sequence[Variant]:
        """Changes of a ticket too few or too many, or of another kind; the right change in another form."""
        hidden = TicketHidden.from_task(task)
        numbers, change = [*hidden.tickets], hidden.change
        alterable = _alterable(task, change)
        left_out = next(number for number in alterable if number in numbers)
        too_much = next(number for number in alterable if number not in numbers)
        other = {"owner": next(name for name in PEOPLE if name != change.get("owner"))}
        wrong = {
            "a ticket less": ([number for number in numbers if number != left_out], change),
            "a ticket more": ([*numbers, too_much], change),
            "another ticket": ([too_much, *(number for number in numbers if number != left_out)], change),
            "another change": (numbers, other),
        }
        right = {"a ticket twice": [*numbers, numbers[0]]}
        if len(numbers) > 1:
            right["another order"] = numbers[::-1]
        return [
            *(Variant(kind, (_change_call(*made), "done()"), False) for kind, made in wrong.items()),
            *(Variant(kind, (_change_call(made, change), "done()"), True) for kind, made in right.items()),
        ]

    def setup(self, task: Task) -> str:
        program = guest_source("envkit.environments.service_desk", "service.py")
        argv = [self.sandbox.python, *PYTHON_OPTIONS, "-c", program, STORE, str(PORT), str(self._warm_up_s)]
        self._service = Service(
            self.sandbox, argv, port=PORT, ready_path="/health", ready_s=self._ready_s, with_token=True
        )
        return f"{task.prompt}\n\n{self.list_tickets()}\n\n{self.help}"

    # The agent never talks to the service directly: each tool sends one request of a fixed shape.

    @tool
    def list_tickets(self) -> str:
        """List all tickets."""
        return self._request("GET", "/tickets")

    @tool
    def search(self, word: str) -> str:
        """List the tickets that have this word in their title or text."""
        if len(word) > _MAX_WORD:
            raise UsageError(f"a word of {len(word)} characters; expected at most {_MAX_WORD}")
        return self._request("GET", f"/tickets?word={quote(word, safe='')}")

    @tool
    def show(self, ticket: int) -> str:
        """Show one ticket with its text."""
        return self._request("GET", f"/tickets/{ticket}")

    @tool
    def assign(self, tickets: list[int], person: str) -> str:
        """Give open tickets to a person."""
        return self._request("POST", "/tickets", {"numbers": tickets, "change": {"owner": person}})

    @tool
    def close_tickets(self, tickets: list[int]) -> str:
        """Close open tickets."""
        return self._request("POST", "/tickets", {"numbers": tickets, "change": {"state": "closed"}})

    @tool(ends=True)
    def done(self) -> str:
        """Say that the tickets are as they should be, which ends the episode."""
        return "The tickets are looked at."

    @check()
    def left_as_asked(self) -> Grade:
        """Compare the service's tickets with the expected ones, which never enter the sandbox."""
        hidden = TicketHidden.from_task(self.task)
        expected = changed(tickets_of(self.task), hidden.tickets, hidden.change)
        left = self._service.request("GET", "/tickets").json()
        pairs = zip(left["tickets"], expected, strict=True)
        if wrong := [
            f"found {_line(left)}, expected {_line(right)}" for left, right in pairs if left != right
        ]:
            return Grade(Verdict.FAIL, f"{len(wrong)} tickets are wrong; first: {wrong[0]}")
        return Grade(Verdict.PASS, f"all {len(expected)} tickets are as asked")

    def _request(self, method: str, path: str, body: Any = None) -> str:
        """Send a request, and return the answer as text for the agent."""
        response = self._service.request(method, path, body)
        answer = response.json()
        if response.status != 200:
            return f"Not done: {answer['error']}"
        if "tickets" not in answer:
            return f"{_line(answer)}\n{answer['text']}"
        lines = [_line(ticket) for ticket in answer["tickets"]]
        return "\n".join(["no | state | priority | owner | title", *lines, f"({len(lines)} tickets)"])


def _alterable(task: Task, change: Mapping[str, str]) -> list[int]:
    """The open tickets that a change would alter."""
    return [
        ticket["number"]
        for ticket in tickets_of(task)
        if ticket["state"] == "open" and not change.items() <= ticket.items()
    ]


def _line(ticket: Mapping[str, Any]) -> str:
    parts = (ticket["number"], ticket["state"], ticket["priority"], ticket["owner"] or "-", ticket["title"])
    return " | ".join(map(str, parts))


def _change_call(tickets: Sequence[int], change: Mapping[str, str]) -> str:
    """The action that changes tickets."""
    if "owner" in change:
        return format_call("assign", {"tickets": [*tickets], "person": change["owner"]})
    return format_call("close_tickets", {"tickets": [*tickets]})
