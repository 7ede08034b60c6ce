"""The service: tickets over HTTP, on the loopback device, for whoever knows its token; standard library only.

It stands for an application of yours and knows nothing of envkit. Its token comes on standard input, for what
stands on a command line or in the environment can be read by every program beside it.

    GET  /health             204, once it is ready; all else answers with JSON
    GET  /tickets[?word=W]   people and tickets, or those tickets that have the word in title or text
    GET  /tickets/N          one ticket with its text
    POST /tickets            {"numbers": [N, ...], "change": {"owner": NAME} or {"state": "closed"}}: changes
                             all of these, which have to be open, or none
"""

from __future__ import annotations

import hmac
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Refused(Exception):
    """What is wrong with a request, and the status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tickets:
    """All tickets, in memory, and in what words each can be found."""

    def __init__(self, path: Path, warm_up_s: float) -> None:
        found: dict[str, Any] = json.loads(path.read_text())
        self.people: list[str] = found["people"]
        self.by_number: dict[int, dict[str, Any]] = {each["number"]: each for each in found["tickets"]}
        self.words = {n: f"{each['title']} {each['text']}".lower() for n, each in self.by_number.items()}
        time.sleep(warm_up_s)  # as long as it takes yours to load models, fill caches and migrate tables

    def find(self, word: str) -> dict[str, Any]:
        found = [self.by_number[number] for number, text in self.words.items() if word.lower() in text]
        return {"people": self.people, "tickets": found}

    def get(self, number: int) -> dict[str, Any]:
        if number not in self.by_number:
            raise Refused(404, f"there is no ticket {number}")
        return self.by_number[number]

    def change(self, numbers: list[int], change: dict[str, str]) -> dict[str, Any]:
        if change not in ({"state": "closed"}, *({"owner": name} for name in self.people)):
            raise Refused(422, f"{change} cannot be; people are {', '.join(self.people)}")
        chosen = [self.get(number) for number in dict.fromkeys(numbers)]
        if shut := [each["number"] for each in chosen if each["state"] != "open"]:
            raise Refused(409, f"ticket {shut[0]} is closed; nothing was changed")
        for each in chosen:
            each.update(change)
        return {"tickets": chosen}


def serve(tickets: Tickets, port: int, token: str) -> None:
    """Answer one request after the other, until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: Any, status: int = 200) -> None:
            data = b"" if status == 204 else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_request(self) -> None:
            try:
                given = self.headers.get("Authorization", "")
                if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                    raise Refused(401, "the token is missing or wrong")
                url = urlsplit(self.path)
                match self.command, re.findall(r"[^/]+", url.path):
                    case "GET", ["health"]:
                        self.answer(None, 204)
                    case "GET", ["tickets"]:
                        self.answer(tickets.find(parse_qs(url.query).get("word", [""])[0]))
                    case "GET", ["tickets", number] if re.fullmatch("[0-9]{1,9}", number):
                        self.answer(tickets.get(int(number)))
                    case "POST", ["tickets"]:
                        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                        self.answer(tickets.change(asked["numbers"], asked["change"]))
                    case _:
                        raise Refused(404, "there is nothing at this address")
            except Refused as refused:
                self.answer({"error": str(refused)}, refused.status)

        do_GET = do_POST = handle_request

        def log_message(self, format: str, *args: Any) -> None:
            """A log is a place to leak into; this service keeps none."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    file, port, warm_up_s = sys.argv[1:]
    serve(Tickets(Path(file), float(warm_up_s)), int(port), sys.stdin.readline().strip())
