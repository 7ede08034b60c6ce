"""A session with an MCP server that runs in a sandbox: its tools, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any, Final, final

from envkit.errors import SandboxError, UsageError
from envkit.sandbox import PYTHON_OPTIONS, Limits, PeerGone, Sandbox

#: Version of the protocol (https://modelcontextprotocol.io). A server may answer with an older one.
_PROTOCOL: Final = "2025-06-18"
#: Limits of a server and its launcher together, per episode. Wall time runs while the agent thinks.
MCP_LIMITS: Final = Limits(cpu_s=30.0, wall_s=3600.0, memory_bytes=512 * 2**20, output_bytes=16 * 2**20)
#: Characters of the server's last output in an error.
_SHOWN: Final = 500


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
        self, sandbox: Sandbox, argv: Sequence[str], *, timeout_s: float = 20.0, limits: Limits = MCP_LIMITS
    ) -> None:
        self._timeout_s, self._number = timeout_s, 0
        launcher = (resources.files("envkit.mcp") / "guest_launcher.py").read_text()
        self._peer = sandbox.open([sandbox.python, *PYTHON_OPTIONS, "-c", launcher], limits=limits)
        self._send({"argv": [*argv]})
        client = {"name": "envkit", "version": version("envkit-rl")}
        self._request("initialize", {"protocolVersion": _PROTOCOL, "capabilities": {}, "clientInfo": client})
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def tools(self) -> Iterator[Mapping[str, Any]]:
        """Yield the server's tools: ``name``, ``description`` and ``inputSchema``, a JSON schema."""
        page: dict[str, Any] = {}
        while True:
            found = self._request("tools/list", page)
            yield from found["tools"]
            if not (cursor := found.get("nextCursor")):
                return
            page = {"cursor": cursor}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool; returns the text of its result.

        Raises:
            UsageError: the tool reports an error, which is the agent's mistake; the message is its text.
        """
        result = self._request("tools/call", {"name": name, "arguments": dict(arguments)})
        text = "\n".join(
            part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in result["content"]
        )
        if result.get("isError"):
            raise UsageError(text or f"{name} failed")
        return text

    def _request(self, method: str, params: Mapping[str, Any]) -> Any:
        self._number += 1
        answer = self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        if (error := answer.get("error")) is not None:
            if method == "tools/call":
                raise UsageError(str(error.get("message", error)))
            raise SandboxError(f"the MCP server refuses {method}: {error}")
        return answer["result"]

    def _send(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: dict[str, Any] = {}
        try:
            answer = json.loads(self._peer.ask(json.dumps(message).encode(), self._timeout_s))
            failure = answer.get("failure")
        except PeerGone as gone:
            failure = gone.reason
        if failure is not None:
            last = self._peer.close().stderr.decode(errors="replace")[-_SHOWN:]
            raise SandboxError(
                " ".join(f"the MCP server failed: {failure}; its last output: {last or '-'}".split())
            )
        return answer
