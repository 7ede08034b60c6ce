"""Tools: methods of an environment that an agent calls by name, in text or by a provider's tool calls.

A call is written as in Python, ``look_up(word='tea', limit=3)``, or as the name alone. A fenced block after
it is the value of the first argument that the call leaves out. JSON between ``<tool_call>`` tags is a call
too, because many chat models write that. `format_call` writes a provider's native tool call as text. So small
models, large models, scripts and people all send an environment the same actions.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypeVar, cast, final, get_type_hints, overload

from envkit.env.checks import find_marked
from envkit.errors import ContractError
from envkit.runtime.syntax import parse_expression

_MARK = "__envkit_tool__"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Largest size of an integer argument. Python cannot format integers of more than 4,300 digits.
_MAX_BITS = 10_000
#: Most faults of a call's arguments that are told.
_MAX_FAULTS = 20
#: A line that opens or closes a block. If it names a language, it opens one.
_FENCE_LINE = re.compile(r"^[ \t]*+```[ \t]*+([^\s`]*+)[ \t\r]*+$", re.MULTILINE)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
# What matters to find the end of a call: comments, strings and brackets. `tokenize` would take quadratic time
# for a line of blanks.
_PIECE = re.compile(
    r"""\#[^\n]* | (?P<quotes>\"{3}|'{3})(?:[^\\]|\\.)*?(?P=quotes)
    | "(?!"")(?:[^"\\\n]|\\.)*+" | '(?!'')(?:[^'\\\n]|\\.)*+'
    | (?P<unclosed>["']) | (?P<open>[(\[{]) | (?P<close>[)\]}])""",
    re.DOTALL | re.VERBOSE,
)
#: What stands before a call in JSON.
_JSON_CALL = r"<tool_call>\s*"
_ARGUMENT = re.compile(r"(\w+)(?: \([^)]*\))?:(?: (.*))?")

Method = TypeVar("Method", bound=Callable[..., Any])


@final
@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, as agents see it.

    Args:
        name: name of the method.
        description: the method's docstring up to ``Args:``.
        arguments: argument -> its description in the docstring's ``Args:``, or an empty text.
        signature: Python signature without ``self``.
        ends: True if a call ends the episode.
        timeout_s: longest time that a call may take, if there is a limit.
        method: the function.
    """

    name: str
    description: str
    arguments: Mapping[str, str]
    signature: str
    ends: bool
    timeout_s: float | None
    method: Callable[..., Any] = field(repr=False)

    def schema(self) -> dict[str, Any]:
        """The tool in the format of chat APIs, with a JSON schema of its arguments."""
        parameters = _untitled(_adapter(self.method).json_schema())
        for name, described in parameters["properties"].items():
            if text := self.arguments[name]:
                described["description"] = text
            if (
                default := inspect.signature(self.method).parameters[name].default
            ) is not inspect.Parameter.empty:
                described["default"] = default
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def usage(self) -> str:
        """One line for a prompt."""
        return f"{self.name}{self.signature}  {' '.join(self.description.split())}".rstrip()


@final
@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, with arguments converted to the tool's types."""

    tool: Tool
    arguments: Mapping[str, Any]


@overload
def tool(method: Method) -> Method: ...
@overload
def tool(*, ends: bool = False, timeout_s: float | None = None) -> Callable[[Method], Method]: ...
def tool(method: Any = None, *, ends: bool = False, timeout_s: float | None = None) -> Any:
    """Mark a method of an environment as a tool; it may be an ``async def``.

    Its arguments need type hints. They make the tool's JSON schema, and an agent's arguments are converted to
    them. Agents read its docstring. It returns an observation, as a ``str`` or an
    `envkit.ActionResult`. If it raises `envkit.UsageError`, the agent made a mistake, and the message is the
    observation.

    A subclass replaces a tool with a method that is marked again, and drops it with ``name = None``.

    Args:
        method: the method, when used without parentheses.
        ends: a call ends the episode.
        timeout_s: longest time that a call may take, > 0; only for an ``async def``. One that takes longer is
            cancelled, and the agent is told. What a tool runs in the sandbox has limits too, see
            `envkit.sandbox.Limits`.

    Raises:
        ContractError: ``timeout_s`` is not positive, or the method cannot be cancelled.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise ContractError(f"timeout_s of a tool is {timeout_s}; expected a positive number of seconds")

    def mark(marked: Any) -> Any:
        if timeout_s is not None and not inspect.iscoroutinefunction(marked):
            # It would go on in a thread, and act in the next episode.
            raise ContractError(
                f"tool {marked.__name__} has timeout_s and is a plain method, which cannot be stopped; make "
                "it an async def"
            )
        setattr(marked, _MARK, (ends, timeout_s))
        return marked

    return mark if method is None else mark(method)


def find_tools(cls: type) -> tuple[Tool, ...]:
    """The tools of a class, base classes first, in order of definition.

    Raises:
        ContractError: an argument has no type hint, or cannot be given by name; or see `find_marked`.
    """
    marked = find_marked(cls, _MARK, "tool")
    return tuple(_described(name, method, *getattr(method, _MARK)) for name, method in marked.items())


def describe_tools(tools: Sequence[Tool], max_calls: int = 1) -> str:
    """Describe tools for a prompt: an example call, and one line per tool. Empty if there are no tools."""
    if not tools:
        return ""
    lines = "\n".join(tool.usage() for tool in tools)
    number = "one call" if max_calls == 1 else f"up to {max_calls} calls, each on a line of its own,"
    return f"Say {number} per turn, such as {tools[0].name}{_example(tools[0])}:\n{lines}"


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Write a call as an action.

    >>> format_call("look_up", {"word": "tea", "limit": 3})
    "look_up(word='tea', limit=3)"
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def parse_calls(action: str, tools: Sequence[Tool], max_calls: int = 1) -> list[ToolCall | str]:
    """Parse the calls in an action, in order, up to one more than ``max_calls``.

    Text around a call is ignored, because models like to explain themselves. A malformed call gives a
    message, the fault and the correct form, and so does an action without a call. A message is the last item.
    """
    if calls := list(itertools.islice(_calls(action, tools), max_calls + 1)):
        return calls
    return [f"No call of a tool in that. {describe_tools(tools, max_calls)}"]


def has_call(action: str, tools: Sequence[Tool]) -> bool:
    """True if an action calls a tool, well formed or not."""
    return next(_calls(action, tools), None) is not None


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    r"""Yield the language, in lower case, and the text of each fenced block. The last one may be unclosed.

    >>> [*fenced_blocks("So:\n```SQL\nSELECT 1\n```\nIt is\n```\n1```")]
    [('sql', 'SELECT 1'), ('', '1')]
    """
    language: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        fence = _FENCE_LINE.match(line)
        if language is None:
            language = None if fence is None else fence[1].lower()
        elif fence is None and "```" not in line:
            lines.append(line)
        else:
            if fence is None:
                lines.append(line.partition("```")[0])
            yield language, "\n".join(lines)
            language = fence[1].lower() if fence is not None and fence[1] else None
            lines = []
    if language is not None:
        yield language, "\n".join(lines)


def _calls(action: str, tools: Sequence[Tool]) -> Iterator[ToolCall | str]:
    by_name = {tool.name: tool for tool in tools}
    names = "|".join(map(re.escape, by_name))
    start = re.compile(rf"(?m)^[ \t>`$]*({names})(?=[ \t]*+(?:\(|`*+[ \t]*+$))|{_JSON_CALL}")
    found = start.search(action)
    while found is not None:
        following = action[found.end() :]
        if found[1] is None:
            call, length = _json_call(following, by_name)
        else:
            is_in_block = _ends_in_block(action[: found.start()])
            call, length = _written_call(by_name[found[1]], following, start, is_in_block)
        yield call
        if isinstance(call, str):
            return
        found = start.search(action, found.end() + length)


def _ends_in_block(text: str) -> bool:
    """True if a text ends within a fenced block."""
    is_open = False
    for fence in _FENCE_LINE.finditer(text):
        is_open = bool(fence[1]) or not is_open
    return is_open


def _written_call(
    tool: Tool, following: str, start: re.Pattern[str], is_in_block: bool
) -> tuple[ToolCall | str, int]:
    """Parse a call in Python's syntax.

    Args:
        tool: it was named.
        following: the text behind the name.
        start: finds the start of the next call.
        is_in_block: the name stands in a fenced block, so that the next fence may close that one.

    Returns:
        The call, or a message; and how many characters of the text belong to it.
    """
    given: dict[str, Any] = {}
    length = 0
    if following.lstrip(" \t").startswith("("):
        length = _bracketed(following)
        call = _parsed(tool.name + following[:length].strip()) if length else None
        if call is None:
            advice = "that is not a call; put long text in a ``` block behind it"
            return f"{tool.name}: {advice}. It is {tool.usage()}", length
        try:
            given = _given(call, tool)
        except ValueError as error:
            return f"{tool.name}: {error}. It is {tool.usage()}", length
    closing = _FENCE_LINE.search(following, length) if is_in_block else None
    behind = closing.end() if closing and not closing[1] else length
    block, following_call = _FENCE.search(following, behind), start.search(following, length)
    is_its_own = block is not None and (following_call is None or block.start() < following_call.start())
    if block is not None and is_its_own and (name := _argument_for_text(tool, given)) is not None:
        given[name], length = block[1], block.end()
    return _checked(tool, given), length


def _json_call(following: str, by_name: Mapping[str, Tool]) -> tuple[ToolCall | str, int]:
    """Parse a call in JSON, ``{"name": ..., "arguments": {...}}``; returns as `_written_call` does."""
    known = ", ".join(by_name)
    form = f'{{"name": ..., "arguments": {{...}}}}, with one of these names: {known}'
    try:
        value, length = json.JSONDecoder().raw_decode(following)
        name, given = value["name"], value.get("arguments", {})
        given = json.loads(given) if isinstance(given, str) else given
        tool = by_name[name]
        fault = _fault_in(given)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"That is no call between <tool_call> tags. Write JSON: {form}", 0
    if fault or not isinstance(given, dict):
        return f"{name}: arguments holds {fault or 'no object'}. It is {tool.usage()}", length
    return _checked(tool, cast("dict[str, Any]", given)), length


def _fault_in(value: object) -> str:
    """The reason why no tool can use a JSON value; empty if tools can."""
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        parts: Iterable[object] = (*entries, *entries.values())
    elif isinstance(value, list):
        parts = cast("list[object]", value)
    else:
        return _fault_of(value)
    return next((fault for part in parts if (fault := _fault_in(part))), "")


def _argument_for_text(found: Tool, given: Container[str]) -> str | None:
    """The argument that a block of text behind a call fills: the first one that the call needs.

    If it needs none, the block may be a text argument that has a default; else it is no part of the call.
    """
    parameters = inspect.signature(found.method).parameters
    missing = [parameters[name] for name in found.arguments if name not in given]
    needed = [parameter for parameter in missing if parameter.default is parameter.empty]
    texts = [parameter for parameter in missing if parameter.annotation in (str, "str")]
    return next((parameter.name for parameter in (*needed, *texts)), None)


def _described(name: str, method: Any, ends: bool, timeout_s: float | None) -> Tool:
    arguments = [*inspect.signature(method).parameters.values()][1:]
    for argument in arguments:
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise ContractError(f"tool {name}: argument {argument} cannot be given by name")
        if argument.annotation is argument.empty:
            raise ContractError(
                f"tool {name}: argument {argument.name} has no type hint, such as {argument.name}: str"
            )
    head, _, tail = (inspect.getdoc(method) or "").partition("\nArgs:\n")
    texts = _texts(tail)
    described = {argument.name: texts.get(argument.name, "") for argument in arguments}
    signature = f"({', '.join(map(_shown, arguments))})"
    return Tool(name, head.strip(), described, signature, ends, timeout_s, method)


def _texts(section: str) -> dict[str, str]:
    r"""Parse the ``Args:`` section to descriptions by argument. Deeper indented lines continue one.

    >>> _texts("    word: what to look for,\n        limit: of one line.\nReturns:\n    lines: found.")
    {'word': 'what to look for, limit: of one line.'}
    """
    found: dict[str, list[str]] = {}
    depth, name = 0, ""
    for line in filter(str.strip, section.split("\n")):
        text = line.strip()
        indent = line.index(text)
        if indent == 0:
            break  # another section
        depth = depth or indent
        if indent <= depth and (argument := _ARGUMENT.fullmatch(text)):
            name, text = argument[1], argument[2] or ""
        found.setdefault(name, []).append(text)
    return {name: " ".join(lines).strip() for name, lines in found.items()}


def _shown(argument: inspect.Parameter) -> str:
    hint: Any = argument.annotation  # a str under `from __future__ import annotations`
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return f"{argument.name}: {text}" + (
        "" if argument.default is argument.empty else f" = {argument.default!r}"
    )


@functools.cache
def _adapter(method: Callable[..., Any]) -> Any:
    """Pydantic's adapter that checks and converts a method's arguments."""
    from pydantic import ConfigDict, TypeAdapter  # imported on use because it is slow
    from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

    hints = get_type_hints(method, include_extras=True)
    fields = {
        name: hints[name] if argument.default is argument.empty else NotRequired[hints[name]]
        for name, argument in [*inspect.signature(method).parameters.items()][1:]
    }
    # Not a pydantic model: arguments could have the names of its attributes.
    arguments: Any = TypedDict(method.__name__, fields)  # pyright: ignore[reportArgumentType]
    # No NaN: it would pass range checks in tools, because every comparison with it is False.
    arguments.__pydantic_config__ = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )
    return TypeAdapter(arguments)


def _untitled(schema: Any) -> Any:
    """Remove the titles that pydantic adds to a JSON schema, because they only cost tokens."""
    if isinstance(schema, list):
        return [_untitled(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    entries = cast("dict[str, Any]", schema).items()
    return {key: _untitled(value) for key, value in entries if key != "title" or not isinstance(value, str)}


def _bracketed(text: str) -> int:
    """Length of the bracketed expression at the start of a text; 0 if it is not closed. Takes linear time."""
    depth = 0
    for piece in _PIECE.finditer(text):
        if piece["open"]:
            depth += 1
        elif piece["close"]:
            depth -= 1
            if depth == 0:
                return piece.end()
        elif piece["unclosed"]:
            return 0
    return 0


def _parsed(source: str) -> ast.Call | None:
    try:
        parsed = parse_expression(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return parsed if isinstance(parsed, ast.Call) else None


def _given(call: ast.Call, tool: Tool) -> dict[str, Any]:
    """Evaluate the literal arguments of a call, by name.

    Raises:
        ValueError: an argument is not a literal or is given twice, or there are too many.
    """
    names = [*tool.arguments]
    if len(call.args) > len(names):
        raise ValueError(f"{len(call.args)} arguments, and it takes {len(names)}")
    pairs = [
        *zip(names, call.args, strict=False),
        *((keyword.arg, keyword.value) for keyword in call.keywords),
    ]
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name is None or name in given:
            raise ValueError("each argument is to be given once, by its name or in order")
        constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
        if fault := next((found for constant in constants if (found := _fault_of(constant))), ""):
            raise ValueError(f"{name} holds {fault}")
        try:
            given[name] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(f"{name} is not a literal, such as 'text', 3 or [1, 2]") from None
    return given


def _fault_of(value: object) -> str:
    """The reason why no tool can use a literal; empty if tools can."""
    if isinstance(value, str) and _LONE_SURROGATE.search(value):
        return "half a surrogate pair, which is no text"  # and cannot be encoded
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"a whole number of {value.bit_length()} bits; expected at most {_MAX_BITS}"
    return ""


def _checked(tool: Tool, given: Mapping[str, Any]) -> ToolCall | str:
    """The call with converted arguments, or the message for the agent if they have wrong types."""
    from pydantic import ValidationError

    try:
        return ToolCall(tool, _adapter(tool.method).validate_python(given))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in details[:_MAX_FAULTS]]
        return f"{tool.name}: {'; '.join(faults)}. It is {tool.usage()}"


def _example(tool: Tool) -> str:
    return f"({', '.join(f'{name}=...' for name in tool.arguments)})"
