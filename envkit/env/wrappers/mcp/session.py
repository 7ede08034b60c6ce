"""A session with an MCP server that runs in a sandbox: its tools, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any, Final, cast, final

from envkit.env.wrappers.service.launcher import Launcher
from envkit.errors import SandboxError, UsageError
from envkit.sandbox import Limits, Sandbox

#: Version of the protocol (https://modelcontextprotocol.io). A server may answer with an older one.
_PROTOCOL: Final = "2025-06-18"
#: Limits of a server and its launcher together, per episode. Wall time runs while the agent thinks.
MCP_LIMITS: Final = Limits(cpu_s=30.0, wall_s=3600.0, memory_bytes=512 * 2**20, output_bytes=16 * 2**20)
#: Longest wait for an answer, in seconds.
MCP_TIMEOUT_S: Final = 20.0


@final
class McpSession:
    """A running MCP server in a sandbox. It ends with the sandbox.

    Args:
        sandbox: belongs to the caller.
        argv: the command that starts the server, as seen from inside the sandbox. It speaks MCP over standard
            input and output.
        timeout_s: longest wait for an answer, in seconds.
        limits: of the server and its launcher together, for the whole episode.

    Raises:
        SandboxError: the server does not answer, or not in MCP.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        argv: Sequence[str],
        *,
        timeout_s: float = MCP_TIMEOUT_S,
        limits: Limits = MCP_LIMITS,
    ) -> None:
        self._timeout_s, self._number = timeout_s, 0
        program = (resources.files("envkit.env.wrappers.mcp") / "guest_launcher.py").read_text()
        self._launcher = Launcher(sandbox, program, "MCP server", limits)
        self._launcher.ask({"argv": [*argv]}, timeout_s)
        client = {"name": "envkit", "version": version("envkit-rl")}
        self._request("initialize", {"protocolVersion": _PROTOCOL, "capabilities": {}, "clientInfo": client})
        self._send({"method": "notifications/initialized"})

    def tools(self) -> Iterator[Mapping[str, Any]]:
        """Yield the server's tools: ``name``, ``description`` and ``inputSchema``, a JSON schema.

        Raises:
            SandboxError: the server does not answer, or not in MCP.
        """
        page: dict[str, Any] = {}
        while True:
            result = self._request("tools/list", page)
            for found in _field("a result of tools/list", result, "tools", list):
                _field("a tool", found, "name", str)
                if found.get("inputSchema"):
                    _field("a tool", found, "inputSchema", dict)
                yield found
            if not (cursor := result.get("nextCursor")):
                return
            page = {"cursor": cursor}

    def call(self, name: str, arguments: Mapping[str, Any], *, from_agent: bool = False) -> str:
        """Call a tool; returns the text of its result.

        Args:
            name: of the tool.
            arguments: what JSON can hold.
            from_agent: the agent makes this call, and is told if it takes too long.

        Raises:
            UsageError: JSON cannot hold an argument, or the tool reports an error; with ``from_agent``, also
                if it takes too long. The message is for the agent.
            SandboxError: the server does not answer, or not in MCP.
        """
        try:
            json.dumps(dict(arguments), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{name} takes arguments that JSON can hold, such as texts, numbers, lists, and dicts with "
                f"texts as keys: {error}."
            ) from None
        params = {"name": name, "arguments": dict(arguments)}
        result = self._request("tools/call", params, from_agent=from_agent)
        text = "\n".join(map(_text, _field("a result of tools/call", result, "content", list)))
        if result.get("isError"):
            raise UsageError(text or f"{name} failed")
        return text

    def _request(self, method: str, params: Mapping[str, Any], *, from_agent: bool = False) -> dict[str, Any]:
        """Send a request and return the result."""
        self._number += 1
        answer = self._send({"id": self._number, "method": method, "params": params})
        if (response := answer.get("response")) is None:
            if not from_agent:
                raise self._launcher.failed(f"no answer to {method} within {self._timeout_s:g} s")
            self._send({"method": "notifications/cancelled", "params": {"requestId": self._number}})
            raise UsageError(f"{params['name']} took longer than {self._timeout_s:g} s and was cancelled.")
        if response.get("error") is not None:
            error = _field(f"an answer to {method}", response, "error", dict)
            if method == "tools/call":
                raise UsageError(str(error.get("message", error)))
            raise SandboxError(f"the MCP server refuses {method}: {error}")
        return _field(f"an answer to {method}", response, "result", dict)

    def _send(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a message; returns the launcher's answer."""
        text = {"message": {"jsonrpc": "2.0", **message}, "timeout_s": self._timeout_s}
        return self._launcher.ask(text, self._timeout_s)


def _text(part: object) -> str:
    """The text of a part of a tool's result; its type in brackets if it is no text."""
    kind: str = _field("a part of a result", part, "type", str)
    return _field("a part of a result", part, "text", str) if kind == "text" else f"[{kind}]"


def _field(what: str, found: object, key: str, kind: type) -> Any:
    """Return a field of what the server sent.

    Raises:
        SandboxError: there is none, or one of another type.
    """
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if not isinstance(fields.get(key), kind):
        raise SandboxError(
            f"the MCP server sent {what} that is {found!r:.200}; expected an object with {key!r}, a "
            f"{kind.__name__}"
        )
    return fields[key]
