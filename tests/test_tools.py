"""Tools: their descriptions, parsing calls from model output, and errors."""

from __future__ import annotations

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
from envkit.errors import MissingExtraError
from envkit.tools import ToolCall, describe_tools, find_tools, format_call, parse_call


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
    call = parse_call(action, TOOLS)
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
    found = parse_call(action, TOOLS)
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
        found = parse_call(action, tools)
        assert isinstance(found, str)
        assert "Input should be a finite number" in found


@given(st.text())
@example("\r\x80")  # Python 3.13's tokenizer raises UnicodeDecodeError
def test_no_text_makes_the_parser_raise(action: str) -> None:
    for each in (action, f"look_up({action}", f"look_up({action})", f"look_up\n```\n{action}\n```"):
        assert isinstance(parse_call(each, TOOLS), ToolCall | str)


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
    for opening in ("look_up(", "look_up('", 'look_up("""', "look_up(["):
        with sparing_old_objects():
            began = time.thread_time()
            parse_call(opening + piece * (16_000 // len(piece)), TOOLS)
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
    call = parse_call(f"look_up({argument}) and more )", TOOLS)
    assert isinstance(call, ToolCall)
    assert call.arguments["word"] == value
