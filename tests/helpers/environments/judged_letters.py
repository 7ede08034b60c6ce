"""An environment with a judged check and a simulated user, and cards of models on a test server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from api_server import Body, completion
from starlette.responses import Response

from envkit import Env, Grade, LabelledText, Rubric, Task, check, tool
from envkit.agents import asking
from envkit.agents.endpoint import Backoff
from envkit.env.tools import format_call

KEY = "sk-test-0123456789/judge"
POLITE, RUDE = "Please wait, Ms Gray.", "Wait, Gray!"
TASKS = tuple(
    Task(f"letter-{n}", "train", "Write.", {}, hidden={"customer": f"Gray-{n}-customer"}) for n in (0, 1)
)
RUBRIC = Rubric(
    "Is the letter polite?",
    tuple(
        LabelledText(f"{text} ({number})", answer)
        for number in range(10)
        for text, answer in ((POLITE, "yes"), (RUDE, "no"))
    ),
)


class LetterDesk(Env):
    """Write a letter. `judges` and `simulator` are set by `desk`."""

    id: ClassVar[str] = "letter-desk"
    noop_action = "send()"

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        return TASKS

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [format_call("write", {"text": f"{POLITE} {task.hidden['customer']}"}), "send()"]

    def setup(self, task: Task) -> str:
        self.letter = ""
        return f"{task.prompt}\n{self.help}"

    @tool
    def write(self, text: str) -> str:
        """Write the letter."""
        self.letter = text
        return "Written."

    @tool
    def ask_customer(self, text: str) -> str:
        """Ask the customer."""
        return self.ask("You are a customer, and your dog is ill.", text)

    @tool(ends=True)
    def send(self) -> str:
        """Send it."""
        return "Sent."

    @check(weight=3)
    def is_addressed(self) -> bool:
        return str(self.task.hidden["customer"]) in self.letter

    @check(weight=1, judged=RUBRIC)
    def is_polite(self) -> Grade | float:
        return self.judge(self.letter) if self.letter else 0.0


def prompt(body: Body) -> str:
    """The prompt of a request."""
    return body["messages"][-1]["content"]


def judged_text(body: Body) -> str:
    """The fenced text of a request."""
    found = re.search(r"two lines (\w{32}) .*?\n\1\n(.*)\n\1(?:\n|$)", prompt(body), re.DOTALL)
    assert found, prompt(body)
    return found[2]


def honest(body: Body, number: int) -> Response:
    """Judge by a word of the text, whatever else it says."""
    return completion("Let me see.\n**Yes**" if "Please" in judged_text(body) else "no.")


def write_card(folder: Path, name: str, url: str, **fields: Any) -> Path:
    """Write a card; without a price it is of a local server."""
    paid = {} if "price" in fields else {"machine": "cpu-2-cores"}
    values = {"model": name, "base_url": url, "key_env": "TEST_API_KEY", "timeout_s": 20.0, **paid, **fields}
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in values.items()
    ]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines))
    return path


def desk(folder: Path, url: str, base: type[LetterDesk] = LetterDesk, **fields: Any) -> type[LetterDesk]:
    """`LetterDesk` with cards of two judges and of a simulator on a server."""
    one, two, user = (write_card(folder, name, url, **fields) for name in ("judge-4.1", "second", "user"))
    return type("Desk", (base,), {"judges": (one, two), "simulator": user, "__module__": __name__})


@contextmanager
def fresh_models(folder: Path, attempts: int = 2) -> Iterator[None]:
    """Nothing is open or asked yet: an empty cache, a full budget, and short waits between attempts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_API_KEY", KEY)
        patch.setenv("ENVKIT_CACHE", str(folder))
        patch.setattr(asking, "_BACKOFF", Backoff(attempts, 0.001, 0.01))
        forget()
        try:
            yield
        finally:
            forget()


def forget() -> None:
    """Forget open models and what they have cost, as the end of a process does."""
    asking.open_model.cache_clear()
    asking._budget.cache_clear()
