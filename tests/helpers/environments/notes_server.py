"""An MCP server for notes, with the standard library only. It logs, and lists its tools by pages."""

import json
import sys

NOTES: list[str] = []
ADD = {
    "name": "add",
    "description": "Add a note.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "urgent": {"type": "boolean"},
            "text": {"type": "string", "description": "what to note"},
            "kind": {"enum": ["plain", "list"], "default": "plain"},
        },
        "required": ["text"],
    },
}
SHOW = {
    "name": "show",
    "description": "Show a note.",
    "inputSchema": {"properties": {"number": {"type": "integer"}}, "required": ["number"]},
}
STOP = {"name": "stop_server"}


def say(**message: object) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def text(words: str, *, is_error: bool = False) -> dict:
    return {
        "content": [{"type": "text", "text": words}, {"type": "image"}][: 1 if is_error else 2],
        "isError": is_error,
    }


for line in sys.stdin:
    request = json.loads(line)
    params = request.get("params", {})
    match request["method"]:
        case "initialize":
            say(method="notifications/message", params={"level": "info", "data": "hello"})
            say(id=request["id"], result={"protocolVersion": "2025-03-26", "capabilities": {}})
        case "tools/list" if "cursor" in params:
            say(id=request["id"], result={"tools": [SHOW, STOP]})
        case "tools/list":
            say(id=request["id"], result={"tools": [ADD], "nextCursor": "2"})
        case "tools/call" if params["name"] == "stop_server":
            sys.exit("stopped")
        case "tools/call" if params["name"] == "add":
            NOTES.append(params["arguments"]["text"])
            say(id="another", method="ping")
            say(id=request["id"], result=text(f"{json.dumps(params['arguments'])} is note {len(NOTES)}"))
        case "tools/call" if 0 < params["arguments"]["number"] <= len(NOTES):
            say(id=request["id"], result=text(NOTES[params["arguments"]["number"] - 1]))
        case "tools/call" if params["arguments"]["number"] == 0:
            say(id=request["id"], error={"code": -32602, "message": "numbers begin at 1"})
        case "tools/call":
            say(id=request["id"], result=text("there is no such note", is_error=True))
