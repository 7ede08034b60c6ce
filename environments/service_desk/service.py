"""The ticket service: HTTP on the loopback device, for requests with its token. Standard library only.

It stands for your application and does not depend on envkit. The token comes on standard input, because other
programs can read a command line and an environment.

    GET  /health             204 once it is ready; everything else answers JSON
    GET  /tickets[?word=W]   people and tickets; with a word, the tickets that have it in title or text
    GET  /tickets/N          one ticket with its text
    POST /tickets            {"numbers": [N, ...], "change": {"owner": NAME} or {"state": "closed"}}: changes
                             these open tickets, all or none
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


class RequestRefused(Exception):
    """A request that the service refuses, with the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tickets:
    """The tickets, in memory, with the text that `find` searches."""

    def __init__(self, path: Path, warm_up_s: float) -> None:
        stored: dict[str, Any] = json.loads(path.read_text())
        self.people: list[str] = stored["people"]
        self.by_number: dict[int, dict[str, Any]] = {ticket["number"]: ticket for ticket in stored["tickets"]}
        self.words = {n: f"{found['title']} {found['text']}".lower() for n, found in self.by_number.items()}
        time.sleep(warm_up_s)  # stands for loading models, filling caches, migrating tables

    def find(self, word: str) -> dict[str, Any]:
        found = [self.by_number[number] for number, text in self.words.items() if word.lower() in text]
        return {"people": self.people, "tickets": found}

    def get(self, number: int) -> dict[str, Any]:
        if number not in self.by_number:
            raise RequestRefused(404, f"there is no ticket {number}")
        return self.by_number[number]

    def change(self, numbers: list[int], change: dict[str, str]) -> dict[str, Any]:
        if change not in ({"state": "closed"}, *({"owner": name} for name in self.people)):
            raise RequestRefused(422, f"{change} cannot be; people are {', '.join(self.people)}")
        chosen = [self.get(number) for number in dict.fromkeys(numbers)]
        if closed := [ticket["number"] for ticket in chosen if ticket["state"] != "open"]:
            raise RequestRefused(409, f"ticket {closed[0]} is closed; nothing was changed")
        for ticket in chosen:
            ticket.update(change)
        return {"tickets": chosen}


def serve(tickets: Tickets, port: int, token: str) -> None:
    """Answer one request at a time, until the process ends."""

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
                    raise RequestRefused(401, "the token is missing or wrong")
                url = urlsplit(self.path)
                match self.command, re.findall(r"[^/]+", url.path):
                    case "GET", ["health"]:
                        self.answer(None, 204)
                    case "GET", ["tickets"]:
                        self.answer(tickets.find(parse_qs(url.query).get("word", [""])[0]))
                    case "GET", ["tickets", number] if re.fullmatch("[0-9]{1,9}", number):
                        self.answer(tickets.get(int(number)))
                    case "POST", ["tickets"]:
                        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                        self.answer(tickets.change(request["numbers"], request["change"]))
                    case _:
                        raise RequestRefused(404, "there is nothing at this address")
            except RequestRefused as refused:
                self.answer({"error": str(refused)}, refused.status)

        do_GET = do_POST = handle_request

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing, because a log could leak the token."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    file, port, warm_up_s = sys.argv[1:]
    serve(Tickets(Path(file), float(warm_up_s)), int(port), sys.stdin.readline().strip())
