"""The application: notes in a file, behind an MCP server (standard input and output). It knows no envkit."""

import json
import sys
from pathlib import Path

STORE = Path("notes.json")
TOOLS = [
    ("find_notes", "List the notes that hold a word or a name.", {"word": "string"}),
    ("add_note", "Add a note; returns its number.", {"text": "string"}),
    ("delete_note", "Delete a note.", {"number": "integer"}),
]


class Refused(Exception):
    """A call that cannot be carried out; nothing was changed."""


def read() -> dict[int, str]:
    return {int(number): text for number, text in json.loads(STORE.read_text()).items()}


def write(notes: dict[int, str]) -> None:
    STORE.write_text(json.dumps(notes))


def find_notes(word: str) -> str:
    found = [f"{number}: {text}" for number, text in read().items() if word.casefold() in text.casefold()]
    return "\n".join(found) or "There are none."


def add_note(text: str) -> str:
    notes = read()
    number = max(notes, default=0) + 1
    write({**notes, number: text})
    return f"It is note {number}."


def delete_note(number: int) -> str:
    notes = read()
    if number not in notes:
        raise Refused(f"there is no note {number}")
    write({other: text for other, text in notes.items() if other != number})
    return "It is deleted."


def answer(method: str, params: dict) -> dict:
    match method:
        case "initialize":
            server = {"name": "notes", "version": "1"}
            return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
        case "tools/list":
            return {"tools": [described(*tool) for tool in TOOLS]}
        case "tools/call":
            try:
                text, is_error = globals()[params["name"]](**params["arguments"]), False
            except Refused as refused:
                text, is_error = str(refused), True
            return {"content": [{"type": "text", "text": text}], "isError": is_error}
    raise Refused(f"there is no method {method}")


def described(name: str, description: str, arguments: dict[str, str]) -> dict:
    properties = {argument: {"type": kind} for argument, kind in arguments.items()}
    schema = {"type": "object", "properties": properties, "required": [*arguments]}
    return {"name": name, "description": description, "inputSchema": schema}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:  # a notification
            continue
        try:
            outcome = {"result": answer(request["method"], request.get("params", {}))}
        except Refused as refused:
            outcome = {"error": {"code": -32601, "message": str(refused)}}
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **outcome}), flush=True)
