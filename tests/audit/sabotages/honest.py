"""Honest environments with needs that an audit might take for holes."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from quiz import Quiz

from envkit import ActionResult, Env, Exploit, Limits, Task, UsageError, check, tool
from envkit.env.tools import format_call
from envkit.sandbox import PYTHON_OPTIONS


class Errands(Env):
    """Ten turns, partial credit in each of them, in any order; files that must go, and others that must stay.

    **Reward**: half for the files that are deleted, paid as they go; half for a right list. A wrong deletion
    ends all credit.
    """

    id: ClassVar[str] = "errands"
    max_turns = 10

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        tasks: list[Task] = []
        for number in range(9):
            draw = random.Random(f"{split} {number}")
            names = [f"{draw.choice(('cat', 'dog', 'fox'))}-{index}.{split}" for index in range(8)]
            old = sorted(draw.sample(names, 4))
            files = {name: "old" if name in old else "new" for name in names}
            prompt = "Delete the files that say old. Then list the others, in any order."
            metadata = {"level": number % 3, "source": f"{split} {number}"}
            tasks.append(Task(f"{split}/{number}", split, prompt, files, metadata, {"old": old}))
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        old: Any = task.hidden["old"]
        others = [name for name in task.files if name not in old]
        return [
            *(format_call("delete", {"path": path}) for path in old),
            format_call("report", {"paths": others}),
            "done()",
        ]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        old: Any = task.hidden["old"]
        right = cls.oracle(task)
        everything = [format_call("delete", {"path": path}) for path in task.files]
        return [
            Exploit("deletes everything", (*everything, "done()")),
            Exploit("does all but the list", (*right[: len(old)], "done()")),
        ]

    def setup(self, task: Task) -> str:
        self.reported: list[str] = []
        self.deleted: list[str] = []
        names = ", ".join(task.files)
        return f"{task.prompt}\nThere are: {names}. You have {self.max_turns} turns.\n{self.help}"

    @tool
    def show(self, path: str) -> str:
        """Show a file."""
        try:
            return self.sandbox.read(path, 100).decode()
        except FileNotFoundError:
            raise UsageError(f"there is no {path!r:.50}") from None

    @tool
    def delete(self, path: str) -> str:
        """Delete a file."""
        self.show(path)
        self.deleted.append(path)
        self.sandbox.run(
            [self.sandbox.python, *PYTHON_OPTIONS, "-c", "import os, sys; os.remove(sys.argv[1])", path]
        )
        return f"Gone, with {self.turns_left} turns left."

    @tool
    def report(self, paths: list[str]) -> str:
        """List the files that are left."""
        self.reported = paths
        return "Noted."

    @tool(ends=True)
    def done(self) -> str:
        """End."""
        return "Graded."

    @check(each_turn=True)
    def deletions(self) -> float:
        left, old = {*self.sandbox.export(["**"], 10_000)}, {*self._old}
        kept = {*self.task.files} - old
        return len(old - left) / len(old) if kept <= left else 0.0

    @check()
    def listing(self) -> bool:
        return Counter(self.reported) == Counter(name for name in self.task.files if name not in self._old)

    @property
    def _old(self) -> Sequence[str]:
        old: Any = self.task.hidden["old"]
        return old


class Riddle(Env):
    """A guessing game with feedback on the hidden word, an application on the host, and a very long text."""

    id: ClassVar[str] = "riddle"
    isolation: ClassVar[str] = "external"
    max_turns = 6
    noop_action = "I think."

    WORDS: ClassVar[dict[str, Sequence[str]]] = {
        "train": ("crane", "slate", "pound", "mirth", "blaze", "vodka", "jumpy", "frock"),
        "heldout": ("quilt", "nymph", "waltz", "brick"),
    }
    #: Shared by all instances, and only saves time.
    _marks: ClassVar[dict[tuple[str, str], str]] = {}

    @classmethod
    def clear_caches(cls) -> None:
        cls._marks.clear()

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split not in ("starter", *cls.WORDS):
            return super().make_tasks(split, **options)
        words = cls.WORDS["train" if split == "starter" else split]
        rules = "+ is a letter in its place, ? is one in another place, - is none. " * 100
        return [
            Task(
                f"{split}-{number}",
                split,
                f"Guess a word of five letters.\n{rules}",
                {},
                hidden={"word": word},
            )
            for number, word in enumerate(words)
        ]

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return ["I think.", str(task.hidden["word"])]

    def setup(self, task: Task) -> str:
        self.guesses: list[str] = []
        return task.prompt

    def apply(self, action: str) -> ActionResult:
        guess, word = action.strip().lower(), str(self.task.hidden["word"])
        if len(guess) != 5 or not guess.isalpha():
            return ActionResult("Say five letters." + " You said: " + action[:5000])
        self.guesses.append(guess)
        key = guess, word
        if key not in self._marks:
            self._marks[key] = "".join(
                "+" if letter == word[place] else "?" if letter in word else "-"
                for place, letter in enumerate(guess)
            )
        return ActionResult(self._marks[key], done=guess == word)

    @check()
    def guessed(self) -> bool:
        return str(self.task.hidden["word"]) in self.guesses


class Choice(Env):
    """Labels in the source, several right answers, programs under a time limit, and tolerant grading."""

    id: ClassVar[str] = "choice"

    LIMITS = Limits(cpu_s=1.0, wall_s=5.0)
    #: Kind of question -> the test of an answer.
    KINDS: ClassVar[Sequence[str]] = ("spam", "ham", "unsure")

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        tasks: list[Task] = []
        for number in range(12):
            draw = random.Random(f"{split} {number}")
            label, low = cls.KINDS[number % 3], draw.randrange(1_000, 9_000)
            text = {"spam": "Buy now!", "ham": "See you at ten.", "unsure": "Hello."}[label]
            prompt = f"Is this spam, ham or unsure? Also name a multiple of 7 from {low} to {low + 50}."
            files = {"mail.txt": f"{text} ({draw.random():.3f})", "low.json": json.dumps(low)}
            metadata = {"level": label, "source": f"{split} {number}"}
            tasks.append(
                Task(f"{split}-{number}", split, prompt, files, metadata, {"label": label, "low": low})
            )
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        low: Any = task.hidden["low"]
        call = {"label": task.hidden["label"], "multiple": low + -low % 7, "why": "It looks like it."}
        return ["run(code='print(1)')", format_call("answer", call)]

    def setup(self, task: Task) -> str:
        self.said: tuple[str, int] | None = None
        mail = self.sandbox.read("mail.txt", 1000).decode()
        return f"{task.prompt}\n> {mail}\n{self.help}"

    @tool
    def run(self, code: str) -> str:
        """Run a Python program for a second."""
        found = self.sandbox.run(
            [self.sandbox.python, *PYTHON_OPTIONS, "-c", code.replace("\0", "")], limits=self.LIMITS
        )
        return f"{found.stop}: {(found.stdout + found.stderr).decode(errors='replace')}"

    @tool(ends=True)
    def answer(self, label: Literal["spam", "ham", "unsure"], multiple: int, why: str = "") -> str:
        """Answer."""
        self.said = label, multiple
        return "Thank you."

    @check()
    def right(self) -> bool:
        if self.said is None:
            return False
        label, multiple = self.said
        low: Any = self.task.hidden["low"]
        try:
            return label == self.task.hidden["label"] and multiple % 7 == 0 and low <= multiple <= low + 50
        except OverflowError:
            return False


class Diary(Quiz):
    """A tool that takes a time, and tells it as Python would."""

    id: ClassVar[str] = "diary"

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return ["note(when='2020-01-02T03:04:05')", *super().oracle(task)]

    @tool
    def note(self, when: datetime.datetime) -> str:
        """Note a time."""
        assert isinstance(when, datetime.datetime)
        return f"{when!r}, {datetime.datetime(2021, 1, 1)!r}, {datetime.datetime.strptime('7', '%H')!r}"


class YesNo(Env):
    """The smallest arguments of its only tool are the answer to half of the tasks."""

    id: ClassVar[str] = "yes-no"

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        tasks: list[Task] = []
        for number in range(20):
            draw = random.Random(f"{split} {number}")
            one, two = draw.randrange(99), draw.randrange(99)
            prompt, hidden = f"Is {one} larger than {two}?", {"larger": one > two}
            tasks.append(Task(f"{split}-{number}", split, prompt, {}, {"level": number % 2}, hidden))
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [f"answer({task.hidden['larger']})"]

    def setup(self, task: Task) -> str:
        self.said: bool | None = None
        return f"{task.prompt}\n{self.help}"

    @tool(ends=True)
    def answer(self, larger: bool) -> str:
        """Answer."""
        self.said = larger
        return "Thank you."

    @check()
    def right(self) -> bool:
        return self.said is self.task.hidden["larger"]


class Shopping(Env):
    """An application on the host, partial credit of two kinds, and actions that a task does not need."""

    id: ClassVar[str] = "shopping"
    isolation: ClassVar[str] = "external"
    max_turns = 8

    @classmethod
    def make_tasks(cls, split: str, **_: Any) -> Sequence[Task]:
        tasks: list[Task] = []
        for number in range(10):
            draw = random.Random(f"{split} {number}")
            prices = {ware: draw.randrange(1, 50) for ware in ("tea", "salt", "ash", "rice", "oil")}
            wanted = sorted(draw.sample(sorted(prices), 2))
            prompt = f"Buy {' and '.join(wanted)} and say what it costs."
            hidden = {"wanted": wanted, "total": sum(prices[ware] for ware in wanted)}
            files, metadata = {"prices.json": json.dumps(prices)}, {"level": number % 3}
            tasks.append(Task(f"{split}/{number}", split, prompt, files, metadata, hidden))
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        wanted: Any = task.hidden["wanted"]
        asked = [f"price({ware!r})" for ware in wanted]
        return [*asked, *(f"buy({ware!r})" for ware in wanted), f"total({task.hidden['total']})", "leave()"]

    def setup(self, task: Task) -> str:
        self.cart: list[str] = []
        self.said: float | None = None
        self.prices: dict[str, int] = json.loads(task.files["prices.json"])
        return f"{task.prompt}\nThere is {', '.join(self.prices)}.\n{self.help}"

    @tool
    def price(self, ware: str) -> str:
        """Ask for a price."""
        if ware not in self.prices:
            raise UsageError(f"there is no {ware!r:.60}")
        return str(self.prices[ware])

    @tool
    def buy(self, ware: str) -> str:
        """Put something into the cart."""
        self.price(ware)
        self.cart.append(ware)
        return f"In your cart: {', '.join(self.cart)}."

    @tool
    def total(self, amount: float) -> str:
        """Say what it costs."""
        self.said = amount
        return "Noted."

    @tool(ends=True)
    def leave(self) -> str:
        """Leave the shop."""
        return "Goodbye."

    @check(each_turn=True)
    def bought(self) -> float:
        wanted: Any = self.task.hidden["wanted"]
        right, wrong = {*self.cart} & {*wanted}, {*self.cart} - {*wanted}
        return max(0.0, (len(right) - len(wrong)) / 2)

    @check()
    def said_total(self) -> float:
        off = abs((self.said or 0) - int(str(self.task.hidden["total"])))
        return 1.0 if off < 0.5 else 0.5 if off < 2 else 0.0


class Prices(Env):
    """The answers are numbers and names of a table that agents read with programs."""

    id: ClassVar[str] = "prices"
    data = ("honest_data/prices.csv",)

    PATH: ClassVar[Path] = Path(__file__).with_name("honest_data") / "prices.csv"

    @classmethod
    def make_tasks(cls, split: str, **options: Any) -> Sequence[Task]:
        if split not in ("train", "heldout", "starter"):
            return super().make_tasks(split, **options)
        rows = [line.split(",")[:2] for line in cls.PATH.read_text().splitlines()[1:]]
        tasks: list[Task] = []
        for number in range(8):
            draw = random.Random(f"{split} {number}")
            (ware, price), (other, dear) = draw.sample(rows, 2)
            dearer = ware if int(price) > int(dear) else other
            asked = {
                "price": (f"What does {ware} cost, in cents?", int(price)),
                "sum": (f"What do {ware} and {other} cost together, in cents?", int(price) + int(dear)),
                "name": (f"Which one costs {max(int(price), int(dear))} cents?", dearer),
            }
            level = ("price", "sum", "name")[number % 3]
            prompt, answer = asked[level]
            tasks.append(
                Task(
                    f"{split}/{number}",
                    split,
                    f"{prompt} See /data/prices.csv.",
                    {},
                    {"level": level},
                    {"answer": answer},
                )
            )
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        program = "print(open('/data/prices.csv').read())"
        return [
            format_call("run", {"code": program}),
            format_call("answer", {"text": str(task.hidden["answer"])}),
        ]

    def setup(self, task: Task) -> str:
        self.said = ""
        return f"{task.prompt}\n{self.help}"

    @tool
    def run(self, code: str) -> str:
        """Run a Python program."""
        found = self.sandbox.run([self.sandbox.python, *PYTHON_OPTIONS, "-c", code.replace("\0", "")])
        return (found.stdout + found.stderr).decode(errors="replace")

    @tool(ends=True)
    def answer(self, text: str) -> str:
        """Answer."""
        self.said = text.strip()
        return "Thank you."

    @check()
    def right(self) -> bool:
        return self.said == str(self.task.hidden["answer"])
