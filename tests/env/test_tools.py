"""Tools: their descriptions, parsing calls from model output, and errors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pytest
from guess_env import TASKS, Backend, GuessEnv
from hypothesis import example, given
from hypothesis import strategies as st

from envkit import ActionResult, ContractError, Env, Task, UsageError, check, tool
from envkit.audit.fuzz import sparing_old_objects
from envkit.env.tools import ToolCall, describe_tools, fenced_blocks, find_tools, format_call, parse_calls
from envkit.errors import MissingExtraError


class Desk(Env):
    id = "desk"

    def setup(self, task: Task) -> str:
        self.seen: list[Any] = []
        return self.help

    @tool
    def look_up(self, word: str, limit: int = 3, order: Literal["asc", "desc"] = "asc") -> str:
        """Look a word up.

        Args:
            word: what to look for.
            limit (int): how many lines.
        """
        self.seen.append((word, limit, order))
        return f"{word} x {limit}"

    @tool(ends=True)
    def give_up(self) -> ActionResult:
        """End it."""
        return ActionResult("Bye.")

    @tool
    def scold(self, words: list[str] | None = None) -> str:
        raise UsageError(f"no such words: {words}")

    @check()
    def right(self) -> bool:
        return bool(self.seen)


TOOLS = find_tools(Desk)


@pytest.fixture
def desk() -> Iterator[Desk]:
    env = Desk(tasks=TASKS, sandbox=Backend(), max_turns=9)
    env.reset(seed=0)
    yield env
    env.close()


def arguments(action: str) -> dict[str, Any]:
    call, *_ = parse_calls(action, TOOLS)
    assert isinstance(call, ToolCall), call
    return dict(call.arguments)


# Descriptions for the agent.


def test_a_schema_has_the_format_of_chat_apis() -> None:
    look_up, give_up, *_ = TOOLS
    assert look_up.schema() == {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a word up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string", "description": "what to look for."},
                    "limit": {"type": "integer", "description": "how many lines.", "default": 3},
                    "order": {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
                },
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    }
    assert give_up.schema()["function"]["parameters"]["properties"] == {}


def test_a_prompt_describes_each_tool_in_one_line() -> None:
    assert describe_tools(TOOLS).split("\n") == [
        "Say one call per turn, such as look_up(word=..., limit=..., order=...):",
        "look_up(word: str, limit: int = 3, order: Literal['asc', 'desc'] = 'asc')  Look a word up.",
        "give_up()  End it.",
        "scold(words: list[str] | None = None)",
    ]


def test_a_description_can_span_several_lines() -> None:
    def fetch(self: Any, word: str, limit: int, page: int) -> str:
        """Fetch lines.

        Args:
            word: what to look for,
                limit: no more than one line of it.
            limit (int):
                how many lines,

                at most.
            page: which.

        Returns:
            page: the lines.
        """
        return ""

    [found] = find_tools(type("Made", (), {"fetch": tool(fetch)}))
    assert found.arguments == {
        "word": "what to look for, limit: no more than one line of it.",
        "limit": "how many lines, at most.",
        "page": "which.",
    }


# Parsing what an agent writes.


@pytest.mark.parametrize(
    ("action", "found"),
    [
        ("look_up('tea')", {"word": "tea"}),
        ('look_up("tea", 5, order="desc")', {"word": "tea", "limit": 5, "order": "desc"}),
        ("look_up(word='a)b', limit='7')", {"word": "a)b", "limit": 7}),
        ("I will look.\n\n  look_up('tea')\nThen I answer.", {"word": "tea"}),
        ("> look_up('tea')", {"word": "tea"}),
        ("`look_up('tea')`", {"word": "tea"}),
        ("```python\nlook_up(\n    'tea',\n    limit=2,\n)\n```", {"word": "tea", "limit": 2}),
        ("look_up('''two\nlines''')", {"word": "two\nlines"}),
        ("look_up\n```\ntwo\nlines\n```", {"word": "two\nlines"}),
        ("look_up(limit=1)\n```text\nsome 'text'\n```\nDone.", {"word": "some 'text'", "limit": 1}),
        ("look_up(12)", {"word": "12"}),
        ("look_up('one')\nlook_up('two')", {"word": "one"}),
        ("give_up", {}),
        ("give_up()", {}),
        ("scold(['a', 'b'])", {"words": ["a", "b"]}),
        ("scold(None)", {"words": None}),
    ],
)
def test_common_forms_of_calls_are_parsed(action: str, found: dict[str, Any]) -> None:
    assert arguments(action) == found


def test_only_newlines_separate_lines() -> None:
    word = "a\u2028b\x85c\x0bd\x0ce"
    assert arguments(f"look_up(\n  word='{word}',\n)")["word"] == word


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("", "No call of a tool in that. Say one call per turn"),
        ("I would look up tea.", "No call of a tool"),
        ("look_up_all('tea')", "No call of a tool"),
        ("look_up('tea'", "look_up: that is not a call"),
        ("look_up('tea)", "look_up: that is not a call"),
        ("look_up(word=)", "look_up: that is not a call"),
        ("look_up(tea)", "look_up: word is not a literal, such as 'text', 3 or"),
        ("look_up('a' * 10**9)", "look_up: word is not a literal"),
        ("look_up('a\\ud800')", "look_up: word holds half a surrogate pair"),
        ("scold(words=['a', '\\udc80'])", "scold: words holds half a surrogate pair"),
        (f"look_up(0x{'f' * 4000})", "look_up: word holds a whole number of 16000 bits; expected at most"),
        (f"scold(words=['a', -0x{'f' * 4000}])", "scold: words holds a whole number of 16000 bits"),
        ("look_up('a', 1, 'asc', 4)", "look_up: 4 arguments, and it takes 3"),
        ("look_up('a', word='b')", "look_up: each argument is to be given once"),
        ("look_up(**{'word': 'a'})", "look_up: each argument is to be given once"),
        ("look_up()", "look_up: word: Field required. It is look_up(word: str"),
        ("look_up", "look_up: word: Field required"),
        ("look_up('a', limit='many')", "look_up: limit: Input should be a valid integer"),
        ("look_up('a', order='up')", "look_up: order: Input should be 'asc' or 'desc'"),
        ("look_up('a', size=3)", "look_up: size: Extra inputs are not permitted"),
        ("look_up(" + "(" * 5000, "look_up: that is not a call"),
        ("look_up(" + "-" * 5000 + "1)", "look_up: "),
    ],
)
def test_an_invalid_call_is_explained_with_the_remedy(action: str, message: str) -> None:
    [found] = parse_calls(action, TOOLS)
    assert isinstance(found, str)
    assert found.startswith(message)


VALUES = st.none() | st.lists(st.text())


@given(st.text(), st.integers(), VALUES)
def test_a_formatted_call_is_parsed_unchanged(word: str, limit: int, words: list[str] | None) -> None:
    values = {"word": word, "limit": limit}
    assert arguments(format_call("look_up", values)) == values
    assert arguments(format_call("scold", {"words": words})) == {"words": words}


@pytest.mark.parametrize("value", ["'nan'", "'-inf'", "1e999", "-1e999", "'Infinity'"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    def pour(self: Any, litres: float, more: list[float] | None = None) -> str:
        return ""

    tools = find_tools(type("Made", (), {"pour": tool(pour)}))
    for action in (f"pour({value})", f"pour(1, more=[{value}])"):
        [found] = parse_calls(action, tools)
        assert isinstance(found, str)
        assert "Input should be a finite number" in found


@given(st.text())
@example("\r\x80")  # Python 3.13's tokenizer raises UnicodeDecodeError
def test_no_text_makes_the_parser_raise(action: str) -> None:
    forms = (action, f"look_up({action}", f"look_up({action})", f"look_up\n```\n{action}\n```")
    for each in (*forms, f"<tool_call>{action}", json.dumps(action)):
        assert parse_calls(each, TOOLS, 5)


# Calls in JSON, as many chat models write them.


def in_json(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@given(st.text(), st.integers(), VALUES)
def test_a_call_in_json_is_the_same_call(word: str, limit: int, words: list[str] | None) -> None:
    values = {"word": word, "limit": limit}
    for given_as in (values, json.dumps(values)):
        assert arguments(in_json("look_up", given_as)) == values
    assert arguments(f"I look it up. {in_json('scold', {'words': words})} Done.") == {"words": words}


def test_a_closing_tag_and_arguments_may_be_missing() -> None:
    assert arguments('<tool_call>{"name": "give_up"}') == {}


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("give_up()", "That is no call between <tool_call> tags. Write JSON: {"),
        ('{"name": "give_up"', "That is no call between <tool_call> tags"),
        ('{"name": "fly", "arguments": {}}', "That is no call between <tool_call> tags"),
        ('{"name": ["give_up"]}', "That is no call between <tool_call> tags"),
        ('{"name": "give_up", "arguments": [1]}', "give_up: arguments holds no object. It is give_up()"),
        ('{"name": "look_up", "arguments": "{"}', "That is no call between <tool_call> tags"),
        ("[" * 100_000, "That is no call between <tool_call> tags"),
        ('{"name": "look_up", "arguments": {"limit": 2}}', "look_up: word: Field required. It is look_up("),
        (
            '{"name": "look_up", "arguments": {"word": "\\ud800"}}',
            "look_up: arguments holds half a surrogate",
        ),
        ('{"name": "scold", "arguments": {"words": ["\\ud800"]}}', "scold: arguments holds half a surrogate"),
        (
            f'{{"name": "look_up", "arguments": {{"word": {"9" * 4000}}}}}',
            "look_up: arguments holds a whole number",
        ),
        (f'{{"name": "look_up", "arguments": {{"word": {"9" * 5000}}}}}', "That is no call between"),
    ],
)
def test_a_malformed_call_in_json_is_explained(inside: str, message: str) -> None:
    [found] = parse_calls(f"<tool_call>\n{inside}\n</tool_call>", TOOLS)
    assert isinstance(found, str)
    assert found.startswith(message)


# Several calls.


def parsed(action: str, max_calls: int = 9) -> list[str]:
    """The names of the calls; a message as it is."""
    found = parse_calls(action, TOOLS, max_calls)
    return [call if isinstance(call, str) else call.tool.name for call in found]


def test_calls_are_found_in_order_up_to_one_more_than_asked_for() -> None:
    action = f"look_up('a')\nThen:\n```\nscold(None)\n```\n{in_json('look_up', {'word': 'b'})}\ngive_up"
    names = ["look_up", "scold", "look_up", "give_up"]
    assert parsed(action) == names
    assert [parsed(action, most) for most in (1, 2)] == [names[:2], names[:3]]


def test_a_block_belongs_to_the_call_before_it_alone() -> None:
    first, second = parse_calls("look_up\n```\ngive_up()\n```\nlook_up\n```\ntea\n```", TOOLS)
    assert isinstance(first, ToolCall)
    assert isinstance(second, ToolCall)
    assert (first.arguments, second.arguments) == ({"word": "give_up()"}, {"word": "tea"})
    [message] = parse_calls("look_up\ngive_up\n```\ntea\n```", TOOLS)
    assert str(message).startswith("look_up: word: Field required")


def test_the_end_of_a_block_around_a_call_begins_no_other() -> None:
    [call] = parse_calls("```python\nlook_up\n```\nIt prints\n```\nok\n```", TOOLS)
    assert isinstance(call, ToolCall)
    assert call.arguments == {"word": "ok"}
    [message] = parse_calls("```\nlook_up\n```\nIt prints what it finds.", TOOLS)
    assert str(message).startswith("look_up: word: Field required")
    [call] = parse_calls("So:\n```\nIt is\n```\nlook_up\n```\ntea\n```", TOOLS)
    assert isinstance(call, ToolCall)
    assert call.arguments == {"word": "tea"}
    [call] = parse_calls("```\nlook_up\n```text\ntea\n```", TOOLS)
    assert isinstance(call, ToolCall)
    assert call.arguments == {"word": "tea"}


def test_fenced_blocks() -> None:
    assert [*fenced_blocks("a ``` b\n ```Sql\nx\n\ny\n```  \n```\nz```w\n```py\nend")] == [
        ("sql", "x\n\ny"),
        ("", "z"),
        ("py", "end"),
    ]
    assert [*fenced_blocks("```json\n1\n```sql\n2\n```")] == [("json", "1"), ("sql", "2")]
    assert [*fenced_blocks("nothing")] == []


def test_a_malformed_call_is_the_last() -> None:
    found = parsed("scold\nlook_up(\ngive_up")
    assert found[0] == "scold"
    assert found[1].startswith("look_up: that is not a call")
    assert len(found) == 2


class Hasty(Desk):
    max_calls = 3

    @tool
    def pay(self, amount: float) -> ActionResult:
        return ActionResult(f"{amount} paid.", reward=amount)


def hasty() -> Hasty:
    env = Hasty(tasks=TASKS, sandbox=Backend(), max_turns=9)
    seen, _ = env.reset(seed=0)
    assert seen.startswith("Say up to 3 calls, each on a line of its own, per turn, such as look_up(")
    return env


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("look_up('a')", "a x 3"),
        ("look_up('a')\nlook_up('b')", "look_up:\na x 3\n\nlook_up:\nb x 3"),
        (
            "look_up('a')\nscold\ngive_up",
            "look_up:\na x 3\n\nscold:\nno such words: None\n\n(Later calls were not made.)",
        ),
        ("scold\nlook_up('a')", "no such words: None\n\n(Later calls were not made.)"),
        ("look_up('a')\n" * 4, "look_up:\na x 3\n\n" * 3 + "(Later calls were not made: 3 calls per turn.)"),
        ("look_up('a')\ngive_up\nlook_up('b')", "look_up:\na x 3\n\ngive_up:\nBye."),
    ],
)
def test_calls_are_made_in_order_until_one_fails_or_ends_the_episode(action: str, seen: str) -> None:
    env = hasty()
    observation, _, terminated, _, _ = env.step(action)
    assert (observation, terminated) == (seen, "give_up:" in seen)
    env.close()


def test_calls_of_one_turn_earn_together() -> None:
    env = hasty()
    assert env.step("pay(0.25)\npay(0.5)")[1] == 0.75
    env.close()


def test_a_second_call_is_not_dropped_without_a_word(desk: Desk) -> None:
    observation, *_ = desk.step("look_up('a')\nlook_up('b')")
    assert observation == "a x 3\n\n(Later calls were not made: one call per turn.)"
    assert len(desk.seen) == 1


# Coroutines and time limits.


class Slow(Desk):
    """Tools that wait as long as they are told."""

    def setup(self, task: Task) -> str:
        self.woken = threading.Event()
        return super().setup(task)

    @tool
    async def sleep(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "Slept."

    @tool(timeout_s=0.05)
    async def nap(self, seconds: float) -> str:
        try:
            return await self.sleep(seconds)
        except asyncio.CancelledError:
            self.woken.set()
            raise

    @tool(timeout_s=0.05)
    async def impatient(self) -> str:
        raise TimeoutError("its own")


@pytest.fixture
def slow() -> Iterator[Slow]:
    env = Slow(tasks=TASKS, sandbox=Backend(), max_turns=9)
    env.reset(seed=0)
    yield env
    env.close()


def test_a_tool_may_be_a_coroutine(slow: Slow) -> None:
    assert slow.step("sleep(0.001)")[0] == "Slept."

    async def stepping() -> str:
        return slow.step("sleep(0.001)")[0]

    assert asyncio.run(stepping()) == "Slept.", "an environment must work in a notebook, too"


def test_a_coroutine_that_takes_too_long_is_cancelled_and_the_agent_goes_on(slow: Slow) -> None:
    assert slow.step("nap(30)")[0] == "nap took longer than 0.05 s and was stopped."
    assert slow.woken.wait(10)
    assert slow.step("nap(0.001)")[0] == "Slept."
    with pytest.raises(TimeoutError, match="its own"):
        slow.step("impatient()")


def test_coroutines_also_run_in_a_forked_process(slow: Slow) -> None:
    assert slow.step("sleep(0.001)")[0] == "Slept."
    if not (child := os.fork()):
        signal.alarm(10)
        os._exit(slow.apply("nap(0.001)").observation != "Slept.")
    assert os.waitpid(child, 0)[1] == 0


def test_a_plain_method_has_no_time_limit_because_nothing_can_stop_it() -> None:
    with pytest.raises(ContractError, match=r"tool block has timeout_s and is a plain method.*async def"):

        @tool(timeout_s=1)
        def block(self: Any) -> str:
            return "Blocked."


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_time_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(ContractError, match="timeout_s of a tool is"):
        tool(timeout_s=limit)


# In an environment.


def test_an_environment_runs_calls(desk: Desk) -> None:
    seen, *_ = desk.step("look_up('tea')")
    assert (seen, desk.seen) == ("tea x 3", [("tea", 3, "asc")])
    assert desk.step("scold")[0] == "no such words: None"
    assert desk.step("tea, please")[0].startswith("No call of a tool in that.")
    seen, reward, terminated, truncated, _ = desk.step("give_up")
    assert (seen, reward, terminated, truncated) == ("Bye.", 1.0, True, False)


def test_a_bug_in_a_tool_is_raised(desk: Desk) -> None:
    desk.seen = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        desk.step("look_up('tea')")


def test_an_environment_without_actions_is_refused() -> None:
    class NoActions(Env):
        id = "still"

        def setup(self, task: Task) -> str:
            return ""

        @check()
        def right(self) -> bool:
            return True

    with pytest.raises(
        ContractError, match=r"NoActions has no actions; mark methods with @tool, or write apply\(\)"
    ):
        NoActions(tasks=TASKS, sandbox=Backend())


class MissingReturn(Desk):
    id = "forgetful"
    forgets: str

    def setup(self, task: Task) -> str:
        return super().setup(task) if self.forgets != "setup" else None  # type: ignore[return-value]  # pyright: ignore

    def apply(self, action: str) -> ActionResult:
        return super().apply(action) if self.forgets != "apply" else None  # type: ignore[return-value]  # pyright: ignore

    @tool
    def look_up(self, word: str) -> str:  # type: ignore[override]  # pyright: ignore
        return None  # type: ignore[return-value]  # pyright: ignore


@pytest.mark.parametrize(
    ("forgets", "message"),
    [
        ("setup", "setup returned None; expected a str, the first observation"),
        ("apply", "apply returned None; expected an ActionResult"),
        ("tool", "tool look_up returned None; expected a str or an ActionResult"),
    ],
)
def test_a_missing_return_is_named(forgets: str, message: str) -> None:
    env = MissingReturn(tasks=TASKS, sandbox=Backend())
    env.forgets = forgets
    call: Any = env.reset
    if forgets != "setup":
        env.reset(seed=0)
        call = partial(env.step, "look_up('tea')")
    with pytest.raises(ContractError, match=message):
        call()
    env.close()


class Mistaken(Desk):
    """Its tools return results of wrong types."""

    max_calls = 2

    @tool
    def unpaid(self) -> ActionResult:
        return ActionResult("", reward=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @tool
    def unread(self) -> ActionResult:
        return ActionResult(b"text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("unpaid()", "tool unpaid returned an ActionResult with reward None; expected a finite number"),
        ("unread()", "tool unread returned an ActionResult with observation b'text'; expected a str"),
    ],
)
def test_a_tool_whose_result_has_a_wrong_type_is_named(call: str, said: str) -> None:
    env = Mistaken(tasks=TASKS, sandbox=Backend())
    for action in (call, f"look_up('tea')\n{call}"):
        env.reset(seed=0)
        with pytest.raises(ContractError, match=said):
            env.step(action)
    env.close()


def test_help_is_empty_without_tools() -> None:
    assert GuessEnv().help == ""


def test_an_argument_without_a_type_or_a_name_is_refused() -> None:
    def untyped(self: Any, word) -> str:  # type: ignore[no-untyped-def]  # pyright: ignore
        return ""

    def several(self: Any, *words: str) -> str:
        return ""

    for method, message in (
        (untyped, "argument word has no type hint"),
        (several, "cannot be given by name"),
    ):
        with pytest.raises(ContractError, match=message):
            find_tools(type("Made", (), {"t": tool(method)}))


def test_an_override_without_the_decorator_is_refused() -> None:
    with pytest.raises(ContractError, match="look_up replaces a tool and is not marked with @tool"):

        class Deaf(Desk):
            def look_up(self, word: str) -> str:  # type: ignore[override]  # pyright: ignore
                return ""


def test_none_drops_a_tool() -> None:
    class Mute(Desk):
        scold = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    assert [each.name for each in Mute.tools] == ["look_up", "give_up"]
    env = Mute(tasks=TASKS, sandbox=Backend())
    env.reset(seed=0)
    assert env.step("scold()")[0].startswith("No call of a tool in that.")
    env.close()


def test_text_behind_a_complete_call_is_ignored() -> None:
    assert arguments("look_up(word='tea')\nExpected:\n```\ntea: a drink\n```") == {"word": "tea"}
    assert arguments("look_up(limit=2)\n```\ntea\n```") == {"word": "tea", "limit": 2}


class Telephone(Desk):
    """A desk whose tool needs a package that is not installed."""

    @tool
    def phone(self) -> str:
        raise MissingExtraError("phonelib", "phone")


def test_an_error_of_the_setup_is_no_mistake_of_the_agent() -> None:
    env = Telephone(tasks=TASKS, sandbox=Backend(), max_turns=9)
    env.reset(seed=0)
    with pytest.raises(MissingExtraError, match="phonelib"):
        env.step("phone()")
    env.close()


@pytest.mark.parametrize(
    "piece", [" ", "\t", "(", '"""', '\\"""', "'", '"', "''", "#", "\\", "\n", "1", "f'{"]
)
def test_no_call_takes_long_to_read(piece: str) -> None:
    """Python's own tokenizer takes 20 s for a bracket and 9,000 blanks."""
    for opening in ("look_up(", "look_up('", 'look_up("""', "look_up([", "look_up", "look_up('a')\nlook_up"):
        with sparing_old_objects():
            began = time.thread_time()
            parse_calls(f"{opening}{piece * (16_000 // len(piece))}x", TOOLS, 2)
            assert time.thread_time() - began < 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        (r"'a)b'", "a)b"),
        (r'"a\")b"', 'a")b'),
        (r"r'\)'", r"\)"),
        ('"""a)"b"""', 'a)"b'),
        ("'''a\n)'''", "a\n)"),
        ("'' ')'", ")"),
        ("# )\n'a'", "a"),
        ("'a' # ')\n", "a"),
        ("'a' \\\n ')'", "a)"),
        ("'a\\\n)'", "a)"),
    ],
)
def test_brackets_in_strings_and_comments_do_not_end_a_call(argument: str, value: str) -> None:
    [call] = parse_calls(f"look_up({argument}) and more )", TOOLS)
    assert isinstance(call, ToolCall)
    assert call.arguments["word"] == value


def test_tools_that_setup_adds_are_declared() -> None:
    class Late(Desk):
        def setup(self, task: Task) -> str:
            self.tools = self.tools[:1]
            return super().setup(task)

    class Declared(Late):
        tools_in_setup = True

    assert Desk.tools_of(TASKS[0], Backend()) is Desk.tools
    assert Declared.tools_of(TASKS[0], Backend()) == Desk.tools[:1]
    with pytest.raises(ContractError, match=r"Late\.setup sets tools; set tools_in_setup = True"):
        Late(tasks=TASKS, sandbox=Backend()).reset()
