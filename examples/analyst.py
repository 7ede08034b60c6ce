"""The smallest environment: answer a question about a table by running Python on it."""

from envkit import Env, Task, check, tool


class Analyst(Env):
    id = "analyst"

    @classmethod
    def make_task(cls, split, number, draw):
        rows = [(draw.choice("ABC"), draw.randrange(100)) for _ in range(20)]
        table = "item,price\n" + "".join(f"{item},{price}\n" for item, price in rows)
        total = sum(price for item, price in rows if item == "A")
        prompt = "What do the prices of item A in table.csv add up to?"
        hidden = {"total": total}  # never enters a sandbox
        return Task(f"{split}-{number}", split, prompt, {"table.csv": table}, hidden=hidden)

    @classmethod
    def oracle(cls, task):
        return [f"answer({task.hidden['total']})"]

    def setup(self, task):
        self.answered = None
        return f"{task.prompt}\n{self.help}"

    @tool
    def run(self, code: str) -> str:
        """Run a Python program beside the table and return what it prints."""
        result = self.sandbox.run([self.sandbox.python, "-c", code])
        return (result.stdout + result.stderr).decode(errors="replace")

    @tool(ends=True)
    def answer(self, total: int) -> str:
        """Give the answer and end the episode."""
        self.answered = total
        return "Noted."

    @check()
    def is_right(self) -> bool:
        return self.answered == self.task.hidden["total"]
