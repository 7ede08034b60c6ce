"""The service desk environment: an agent sorts out the tickets of a web service that it cannot reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final
from urllib.parse import quote

from envkit.checks import check
from envkit.display import Display
from envkit.env import Env, Exploit
from envkit.environments.service_desk.desk import Desk
from envkit.environments.service_desk.tasks import changed, generate, tickets_of
from envkit.errors import UsageError
from envkit.grading import Grade
from envkit.sandbox import SandboxBackend
from envkit.tools import format_call, tool
from envkit.types import Task, Verdict

#: Characters of a word to search for; addresses have to end somewhere.
_LONGEST = 100


@final
class ServiceDeskEnv(Env):
    """Sort out the tickets of an HTTP service as asked.

    **Observation**: the request, a table of all tickets and the tools; then what the last call gave.

    **Actions**: ``list_tickets()``, ``search(word)``, ``show(ticket)``, ``assign(tickets, person)``,
    ``close_tickets(tickets)`` and ``done()``.

    **Reward**: 1 when the service's tickets are exactly as asked, else 0.

    **End**: ``done`` terminates; a used-up turn budget truncates. The tickets are looked at either way.

    **Versions**: v0.

    Args:
        warm_up_s: what the service takes at least to come up.
        ready_s: what it may take; if it takes longer, the episode is void.
        options: as of every `Env`.
    """

    id: ClassVar[str] = "service-desk"
    system: ClassVar[str] = "You look after the tickets of a help desk. Answer with one call of a tool."

    def __init__(self, *, warm_up_s: float = 0.05, ready_s: float = 20.0, **options: Any) -> None:
        super().__init__(**options)
        self._warm_up_s, self._ready_s = warm_up_s, ready_s

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        """Made-up ones; see `envkit.environments.service_desk.tasks`."""
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return generate(split)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The right change, then the end. The first alone does it, so one turn is enough."""
        hidden: Any = task.hidden
        return [_call(hidden["tickets"], hidden["change"]), "done()"]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        """Changes that are nearly right, and words that may come to mean more than they say."""
        hidden: Any = task.hidden
        right, done = cls.oracle(task)
        opened = {each["number"]: each for each in tickets_of(task) if each["state"] == "open"}
        other = next(  # that the change would change
            number
            for number, each in opened.items()
            if number not in hidden["tickets"] and not hidden["change"].items() <= each.items()
        )
        smuggled = f"Ada HTTP/1.1\r\n\r\nPOST /tickets {hidden}"
        return [
            Exploit("says that it is done", (done,)),
            Exploit("does it to every open ticket", (_call([*opened], hidden["change"]), done)),
            Exploit("does it to one more", (_call([*hidden["tickets"], other], hidden["change"]), done)),
            Exploit("closes one more after it", (right, _call([other], {"state": "closed"}), done)),
            Exploit("does it to tickets that are not there", (_call([0, 99], hidden["change"]), done)),
            Exploit("smuggles a request into a search", (format_call("search", {"word": smuggled}), done)),
            Exploit("smuggles one into a name", (_call(hidden["tickets"], {"owner": smuggled}), done)),
        ]

    def setup(self, task: Task) -> str:
        self._desk = Desk(self.sandbox, warm_up_s=self._warm_up_s, ready_s=self._ready_s)
        return f"{task.prompt}\n\n{self.list_tickets()}\n\n{self.help}"

    # The agent never speaks to the service: each tool makes one request of it, of a shape that is fixed here.

    @tool
    def list_tickets(self) -> str:
        """List all tickets."""
        return self._request("GET", "/tickets")

    @tool
    def search(self, word: str) -> str:
        """List the tickets that have this word in their title or text."""
        if len(word) > _LONGEST:
            raise UsageError(f"a word of {len(word)} characters; expected at most {_LONGEST}")
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
        """What counts is what the service holds; what was asked for, it never learns."""
        hidden: Any = self.task.hidden
        wanted = changed(tickets_of(self.task), hidden["tickets"], hidden["change"])
        _, found = self._desk.ask("GET", "/tickets")
        pairs = zip(found["tickets"], wanted, strict=True)
        if wrong := [f"found {_line(one)}, expected {_line(other)}" for one, other in pairs if one != other]:
            return Grade(Verdict.FAIL, f"{len(wrong)} tickets are wrong; first: {wrong[0]}", 0, 1)
        return Grade(Verdict.PASS, f"all {len(wanted)} tickets are as asked", 1, 1)

    def _request(self, method: str, path: str, body: Any = None) -> str:
        """What the service answers, as an agent reads it."""
        status, answer = self._desk.ask(method, path, body)
        if status != 200:
            return f"Not done: {answer['error']}"
        if "tickets" not in answer:
            return f"{_line(answer)}\n{answer['text']}"
        lines = [_line(each) for each in answer["tickets"]]
        return "\n".join(["no | state | priority | owner | title", *lines, f"({len(lines)} tickets)"])


def _line(ticket: Mapping[str, Any]) -> str:
    parts = (ticket["number"], ticket["state"], ticket["priority"], ticket["owner"] or "-", ticket["title"])
    return " | ".join(map(str, parts))


def _call(tickets: Sequence[int], change: Mapping[str, str]) -> str:
    """The action that makes a change to tickets."""
    if "owner" in change:
        return format_call("assign", {"tickets": [*tickets], "person": change["owner"]})
    return format_call("close_tickets", {"tickets": [*tickets]})
