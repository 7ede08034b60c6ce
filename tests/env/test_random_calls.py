"""Random calls: of every tool, with arguments that each tool takes, and the same for the same seed."""

from __future__ import annotations

from typing import Any, Literal

from guess_env import Backend, GuessEnv

from envkit import Env, Task, check, tool
from envkit.env.authored import Baseline
from envkit.env.random_calls import random_calls
from envkit.env.tools import ToolCall, find_tools, parse_calls


class Desk(Env):
    id = "desk"
    max_turns = 4

    def setup(self, task: Task) -> str:
        self.calls = 0
        return self.help

    @tool
    def take(self, numbers: list[int], who: str, share: float, quick: bool) -> str:
        """Take some."""
        return ""

    @tool
    def sort(self, order: Literal["up", "down"], word: str | None = None, rows: int = 3) -> str:
        """Sort some."""
        return ""

    @tool(ends=True)
    def done(self) -> str:
        """End it."""
        return ""

    @check()
    def right(self) -> bool:
        return False


PROMPT = "Give 40 apples to Ada, and 5 to Bob."


def test_every_tool_is_called_with_arguments_that_it_takes() -> None:
    calls = [call for seed in range(50) for call in random_calls(Desk.tools, PROMPT, seed, 4)]
    parsed = [parse_calls(call, Desk.tools) for call in calls]
    made = [call for [call] in parsed if isinstance(call, ToolCall)]
    assert len(made) == len(calls)
    assert {call.tool.name for call in made} == {"take", "sort", "done"}
    used = str(calls)
    assert all(word in used for word in ("Ada", "Bob", "40", "up", "down", "None", "True", "False"))


def test_the_seed_determines_the_calls() -> None:
    first, again, other = (random_calls(Desk.tools, PROMPT, seed, 8) for seed in (1, 1, 2))
    assert first == again != other


def test_a_prompt_without_words_and_a_type_without_simple_values_do() -> None:
    def put(self: Any, name: str, entry: dict[str, int]) -> str:
        return ""

    tools = find_tools(type("Made", (), {"put": tool(put)}))
    assert random_calls(tools, "?", 0, 1) == ["put(name='a', entry=None)"]


def test_an_environment_with_tools_has_it_as_its_baseline_unless_it_names_others() -> None:
    class Own(Desk):
        baselines = (Baseline("mine", "mine", lambda task, seed, backend: ["done()"]),)

    class Child(Own):
        pass

    [chance] = Desk.baselines
    assert (chance.name, chance.is_random) == ("random", True)
    task = Task("a", "train", PROMPT, {})
    assert list(chance.actions(task, 3, Backend())) == random_calls(Desk.tools, PROMPT, 3, Desk.max_turns)
    assert [one.name for one in Child.baselines] == ["mine"]
    assert GuessEnv.baselines == ()


def test_a_subclass_draws_among_its_own_tools() -> None:
    class More(Desk):
        @tool
        def extra(self) -> str:
            """More."""
            return ""

    [chance] = More.baselines
    drawn = [chance.actions(Task("a", "train", "", {}), seed, Backend()) for seed in range(50)]
    assert ["extra()" in calls for calls in drawn].count(True) > 10
