"""MCP servers as applications: their tools are an environment's tools."""

from __future__ import annotations

import functools
import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from types import NoneType
from typing import Any, ClassVar, Literal

from envkit.env import Env
from envkit.env.tools import Tool, describe_tools
from envkit.env.wrappers.mcp.session import MCP_LIMITS, MCP_TIMEOUT_S, McpSession
from envkit.errors import ContractError
from envkit.sandbox import Limits
from envkit.types import Task

__all__ = ["MCP_LIMITS", "McpEnv", "McpSession"]

_TYPES: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
    "null": NoneType,
}


class McpEnv(Env):
    """An environment whose tools are those of an MCP server, which runs in the episode's sandbox.

    A subclass writes `server`, the tasks and the checks. Checks may ask the server through `session`, or read
    the files that it leaves in the workspace. Tools of the class itself, such as one that ends the episode,
    may stand beside the server's.
    """

    #: Names of the server's tools that agents may use; empty for all of them.
    only: ClassVar[Sequence[str]] = ()
    #: Longest wait for an answer of the server, in seconds. A tool that takes longer is cancelled, and the
    #: agent is told.
    timeout_s: ClassVar[float] = MCP_TIMEOUT_S
    #: Limits of the server and its launcher together, for the whole episode.
    limits: ClassVar[Limits] = MCP_LIMITS
    tools_in_setup = True
    session: McpSession
    #: Names of this instance's methods that are the server's tools.
    _served: tuple[str, ...] = ()

    @abstractmethod
    def server(self) -> Sequence[str]:
        """The command that starts the server in the sandbox; see `McpSession`."""

    def setup(self, task: Task) -> str:
        """Start the server; returns the task's prompt and a description of all tools.

        Raises:
            ContractError: the server lacks a tool that `only` names, has no tools, or has one that no agent
                could call.
        """
        for name in self._served:
            delattr(self, name)
        self._served = ()
        self.session = McpSession(self.sandbox, self.server(), timeout_s=self.timeout_s, limits=self.limits)
        offered = {str(found["name"]): found for found in self.session.tools()}
        if missing := [name for name in self.only if name not in offered]:
            names = ", ".join(offered)
            raise ContractError(
                f"{type(self).__name__}.only names {missing[0]!r}; the MCP server has: {names}"
            )
        self.tools = (*(self._tool(offered[name]) for name in offered if not self.only or name in self.only),)
        if not self.tools:
            raise ContractError("the MCP server has no tools")
        self.tools += type(self).tools
        return f"{task.prompt}\n\n{describe_tools(self.tools, self.max_calls)}"

    def _tool(self, found: Mapping[str, Any]) -> Tool:
        """One of the server's tools, as a tool and a method of this instance."""
        name = str(found["name"])
        schema: Mapping[str, Any] = found.get("inputSchema") or {}
        if not name.isidentifier() or iskeyword(name) or name in dir(self):
            raise ContractError(
                f"the MCP server's tool {name!r} cannot be called by that name, because it is no name in "
                f"Python or {type(self).__name__} has another use for it; name the other tools in `only`"
            )
        properties = _properties(schema)
        if odd := [key for key in properties if not key.isidentifier() or iskeyword(key) or key == "self"]:
            raise ContractError(
                f"the MCP server's tool {name!r} has an argument {odd[0]!r}, which a call in Python cannot "
                "name; name the other tools in `only`"
            )

        def call(**arguments: Any) -> str:
            return self.session.call(name, arguments, from_agent=True)

        setattr(self, name, call)
        self._served += (name,)
        method = _method(name, json.dumps(schema))
        parameters = [*inspect.signature(method).parameters.values()][1:]
        texts = {one.name: str(properties[one.name].get("description", "")) for one in parameters}
        description = str(found.get("description") or "").strip()
        signature = str(inspect.Signature(parameters))
        return Tool(name, description, texts, signature, ends=False, timeout_s=None, method=method)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The schema of each argument; an empty one if it may be anything."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return {key: {} if isinstance(part, bool) else part for key, part in properties.items()}


@functools.lru_cache(maxsize=256)  # not one for each episode, because each has an adapter that is kept
def _method(name: str, schema_text: str) -> Any:
    """A function with the signature of a JSON schema, which agents' arguments are checked against."""

    def method(self: Any, **arguments: Any) -> str:
        raise NotImplementedError

    schema: Mapping[str, Any] = json.loads(schema_text)
    required = schema.get("required") or ()
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    hints: dict[str, Any] = {}
    # Needed arguments first, as Python wants them.
    for key, part in sorted(_properties(schema).items(), key=lambda item: item[0] not in required):
        hints[key] = _hint(part)
        default = part.get("default")
        if key in required:
            default = inspect.Parameter.empty
        elif default is None:
            hints[key] = hints[key] | None
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(key, kind, default=default, annotation=hints[key]))
    method.__name__ = name
    method.__annotations__ = hints
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return method


def _hint(schema: Mapping[str, Any]) -> Any:
    """The type of an argument; `Any` if its schema says more than a type, which the server checks."""
    values: Sequence[Any] = schema.get("enum") or ()
    if values and all(value is None or isinstance(value, str | int) for value in values):
        return Literal[tuple(values)]
    names: str | Sequence[str] = schema.get("type") or ""
    kinds = [_TYPES.get(name, Any) for name in ([names] if isinstance(names, str) else names)]
    return functools.reduce(lambda one, other: one | other, kinds)
