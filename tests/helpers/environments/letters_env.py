"""A small environment that declares packages and data, in a module because other processes must import it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from envkit import Env, Exploit, Sandbox, SandboxBackend, Task, check, tool
from envkit.env.tools import format_call

#: Fills the template in the data. Needs a package with compiled code, and finds it without any option.
FILL = """
import json, sys
import jinja2, markupsafe._speedups
with open("/data/letter.txt") as file:
    template = jinja2.Template(file.read(), keep_trailing_newline=True)
print(json.dumps(template.render(**json.load(sys.stdin))))
"""


def filled(sandbox: Sandbox, words: dict[str, Any]) -> str:
    """Return the letter with these words."""
    done = sandbox.run([sandbox.python, "-c", FILL], stdin=json.dumps(words).encode())
    if not done.ok:
        raise RuntimeError(done.stderr.decode())
    return json.loads(done.stdout)


class Letters(Env):
    """Fill in a letter."""

    id: ClassVar[str] = "letters"
    packages = ("jinja2==3.1.6",)
    data = ("letters_data/letter.txt", "letters_data/stamp.bin")

    @classmethod
    def make_tasks(cls, split: str, *, sandbox: SandboxBackend, **_: Any) -> Sequence[Task]:
        tasks: list[Task] = []
        with sandbox.create() as made:  # has the packages too
            for name in ("Ann", "Bob", "Cid"):
                words = {"name": f"{name} of {split}", "thing": "tea"}
                hidden = {"words": words, "letter": filled(made, words)}
                files = {"photo.bin": bytes(range(256)), "note.txt": "Be kind."}
                tasks.append(
                    Task(words["name"], split, f"Write to {words['name']}: tea.", files, hidden=hidden)
                )
        return tasks

    @classmethod
    def oracle(cls, task: Task) -> Sequence[str]:
        return [format_call("write", task.hidden["words"]), "send()"]  # type: ignore[arg-type]

    @classmethod
    def exploits(cls, task: Task) -> Sequence[Exploit]:
        return [Exploit("sends nothing", ("send()",))]

    def setup(self, task: Task) -> str:
        self.letter = ""
        if self.sandbox.read("photo.bin", 1000) != task.files["photo.bin"]:
            raise AssertionError("a binary file has changed on its way")
        return task.prompt

    @tool
    def write(self, name: str, thing: str) -> str:
        """Write the letter."""
        words = {
            "name": name.encode(errors="replace").decode(),
            "thing": thing.encode(errors="replace").decode(),
        }
        self.letter = filled(self.sandbox, words)
        return "Written."

    @tool(ends=True)
    def send(self) -> str:
        """Send the letter."""
        return "Sent."

    @check()
    def is_right(self) -> bool:
        return self.letter == self.task.hidden["letter"]
