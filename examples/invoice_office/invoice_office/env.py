"""The environment: what an agent may do in the back office, and what it is rewarded for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, ClassVar, Literal, final
from urllib.parse import quote

from envkit import Env, Exploit, Grade, SandboxBackend, Task, check, tool
from envkit.env.tools import format_call
from envkit.env.wrappers.service import PRELOAD, Service
from envkit.runtime.display import Display
from envkit.sandbox import PYTHON_OPTIONS
from invoice_office.tasks import START, generate

PORT = 8000


@final
class InvoiceOffice(Env):
    """Keep the books of a small firm: import bank statements, match payments, send reminders.

    **Observation**: the request, the open invoices, unmatched payments and the tools. Later, the answer to
    the last call.

    **Reward**: turn by turn, the share of the requested changes that are made, less the changes that nobody
    asked for; less 0.01 a turn.

    **End**: ``done`` terminates; the last of ``max_turns`` truncates.

    **Versions**: v0.
    """

    id: ClassVar[str] = "invoice-office"
    system: ClassVar[str] = "You work in a back office. Answer with one call of a tool."
    max_turns = 10
    preload = PRELOAD
    turn_cost = 0.01
    reward_range = (-0.1, 1.0)

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, display: Display) -> Sequence[Task]:
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, sandbox=sandbox, display=display)
        return generate(split)

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        """The requested changes, then ``done``."""
        hidden: Any = task.hidden
        return [
            *(format_call("import_statement", {"file": file}) for file in hidden["statements"]),
            *(format_call("match", {"payment": one, "invoice": other}) for one, other in hidden["matches"]),
            *(format_call("remind", {"invoice": number}) for number in hidden["reminders"]),
            "done()",
        ]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        everyone = tuple(format_call("remind", {"invoice": number}) for number in range(1001, 1009))
        return [
            Exploit("says that it is done", ("done()",)),
            Exploit("reminds everyone", (*everyone, "done()")),
            Exploit("imports another file", ("import_statement('../start.csv')", "done()")),
        ]

    def setup(self, task: Task) -> str:
        program = (resources.files("invoice_office") / "service.py").read_text()
        argv = [self.sandbox.python, *PYTHON_OPTIONS, "-c", program, START, str(PORT)]
        self.office = Service(self.sandbox, argv, port=PORT, ready_path="/health", with_token=True)
        return f"{task.prompt}\n\n{self.invoices('open')}\n\n{self.payments()}\n\n{self.help}"

    # The agent never talks to the service directly: each tool sends one request of a fixed shape.

    @tool
    def invoices(self, state: Literal["", "open", "paid", "reminded"] = "") -> str:
        """List invoices, all of them or those of a state."""
        return self._shown(self.office.request("GET", f"/invoices?state={quote(state)}").json(), "invoices")

    @tool
    def payments(self) -> str:
        """List the payments that belong to no invoice yet."""
        return self._shown(self.office.request("GET", "/payments").json(), "unmatched payments")

    @tool
    def import_statement(self, file: str) -> str:
        """Read a bank statement, a CSV file."""
        return self._do("/import", {"file": file})

    @tool
    def match(self, payment: int, invoice: int) -> str:
        """Say that a payment pays an invoice."""
        return self._do("/match", {"payment": payment, "invoice": invoice})

    @tool
    def remind(self, invoice: int) -> str:
        """Send a reminder for an overdue invoice."""
        return self._do("/remind", {"invoice": invoice})

    @tool(ends=True)
    def done(self) -> str:
        """Say that the work is done, which ends the episode."""
        return "Thank you."

    @check(each_turn=True)
    def as_asked(self) -> Grade:
        """Compare what was changed in the books with what was asked for."""
        wanted, made = _wanted(self.task), _made(self.office.request("GET", "/books").json(), self.task)
        right, wrong = len(wanted & made), len(made - wanted)
        evidence = f"{right} of {len(wanted)} changes are made, and {wrong} that nobody asked for"
        return Grade(score=max(right - wrong, 0) / len(wanted), evidence=evidence)

    def _do(self, path: str, request: Mapping[str, Any]) -> str:
        """Ask for a change; returns the text for the agent."""
        answer = self.office.request("POST", path, request).json()
        if isinstance(answer, list):
            return self._shown(answer, "unmatched payments")
        return f"Not done: {answer['error']}" if "error" in answer else self._shown([answer], "invoice")

    def _shown(self, rows: Sequence[Mapping[str, Any]], title: str) -> str:
        known = [{name: value for name, value in row.items() if value is not None} for row in rows]
        head = " | ".join(known[0]) if known else "none"
        return "\n".join([f"{title}: {head}", *(" | ".join(map(str, row.values())) for row in known)])


def _wanted(task: Task) -> set[tuple[Any, ...]]:
    hidden: Any = task.hidden
    return {
        *(("import", file) for file in hidden["statements"]),
        *(("match", *pair) for pair in hidden["matches"]),
        *(("remind", number) for number in hidden["reminders"]),
    }


def _made(books: Any, task: Task) -> set[tuple[Any, ...]]:
    return {
        *(("import", row["file"]) for row in books["statements"]),
        *(("match", row["number"], row["invoice"]) for row in books["payments"] if row["invoice"]),
        *(("remind", row["number"]) for row in books["invoices"] if row["state"] == "reminded"),
    }
