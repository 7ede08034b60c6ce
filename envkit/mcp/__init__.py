"""MCP servers as applications: their tools are an environment's tools."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from envkit.env import Env
from envkit.errors import ContractError
from envkit.mcp.session import MCP_LIMITS, McpSession
from envkit.tools import Tool, describe_tools
from envkit.types import Task

__all__ = ["MCP_LIMITS", "McpEnv", "McpSession"]

_TYPES: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
}


class McpEnv(Env):
    """An environment whose tools are those of an MCP server, which runs in the episode's sandbox.

    A subclass writes `server`, the tasks and the checks. Checks may ask the server through `session`, or read
    the files that it leaves in the workspace. Tools of the class itself, such as one that ends the episode,
    stand beside the server's.
    """

    #: Names of the server's tools that agents may use; empty for all of them.
    only: ClassVar[Sequence[str]] = ()
    tools_in_setup = True
    session: McpSession

    @abstractmethod
    def server(self) -> Sequence[str]:
        """The command that starts the server in the sandbox; see `McpSession`."""

    def setup(self, task: Task) -> str:
        """Start the server; returns the task's prompt and a description of all tools."""
        self.session = McpSession(self.sandbox, self.server())
        theirs = [
            self._tool(found) for found in self.session.tools() if not self.only or found["name"] in self.only
        ]
        self.tools = (*theirs, *type(self).tools)
        return f"{task.prompt}\n\n{describe_tools(self.tools, self.max_calls)}"

    def _tool(self, found: Mapping[str, Any]) -> Tool:
        """One of the server's tools, as a tool of this instance."""
        name = str(found["name"])
        if not name.isidentifier() or hasattr(Env, name):
            raise ContractError(
                f"the MCP server's tool {name!r} cannot be called by that name; leave it out of `only`"
            )
        method = _method(name, found.get("inputSchema", {}))

        def call(**arguments: Any) -> str:
            return self.session.call(name, arguments)

        setattr(self, name, call)
        properties: Mapping[str, Any] = found.get("inputSchema", {}).get("properties", {})
        parameters = [*inspect.signature(method).parameters.values()][1:]
        texts = {one.name: str(properties[one.name].get("description", "")) for one in parameters}
        description, signature = str(found.get("description", "")).strip(), str(inspect.Signature(parameters))
        return Tool(name, description, texts, signature, ends=False, timeout_s=None, method=method)


def _method(name: str, schema: Mapping[str, Any]) -> Any:
    """A function with the signature of a JSON schema, which agents' arguments are checked against."""

    def method(self: Any, **arguments: Any) -> str:
        raise NotImplementedError

    required = schema.get("required", ())
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    hints: dict[str, Any] = {}
    # Needed arguments first, as Python wants them.
    for key, part in sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required):
        hints[key] = Literal[tuple(part["enum"])] if "enum" in part else _TYPES.get(part.get("type", ""), Any)
        default = inspect.Parameter.empty if key in required else part.get("default")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if default is None:
            hints[key] = hints[key] | None
        parameters.append(inspect.Parameter(key, kind, default=default, annotation=hints[key]))
    method.__name__ = name
    method.__annotations__ = hints
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return method
