"""The application: invoices, bank payments and reminders over HTTP, kept in SQLite. It knows no envkit.

    GET  /health               answers once it is ready
    GET  /invoices?state=S     invoices, all of them or those that are open, paid or reminded
    GET  /payments             payments that belong to no invoice yet
    GET  /books                everything
    POST /import               {"file": NAME}: read a bank statement, a CSV file of the working directory
    POST /match                {"payment": N, "invoice": N}: the payment pays the invoice
    POST /remind               {"invoice": N}: send a reminder for an invoice that is overdue

Only requests with its token are answered. The token is the first line of standard input.
"""

import csv
import hmac
import json
import re
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TABLES = """
CREATE TABLE invoice (number INTEGER PRIMARY KEY, customer TEXT, amount INTEGER, due TEXT, state TEXT);
CREATE TABLE payment (number INTEGER PRIMARY KEY, day TEXT, payer TEXT, amount INTEGER, text TEXT,
                      invoice INTEGER);
CREATE TABLE statement (file TEXT PRIMARY KEY);
"""


class RefusedError(Exception):
    """A request that cannot be carried out; nothing was changed."""


class Office:
    def __init__(self, start: dict) -> None:
        self.today = start["today"]
        self.data = sqlite3.connect(":memory:")
        self.data.row_factory = sqlite3.Row
        self.data.executescript(TABLES)
        for row in start["invoices"]:
            self.data.execute("INSERT INTO invoice VALUES (:number, :customer, :amount, :due, :state)", row)
        for row in start["payments"]:
            self.add(row)

    def add(self, row: dict) -> None:
        self.data.execute(
            "INSERT INTO payment (day, payer, amount, text) VALUES (:day, :payer, :amount, :text)", row
        )

    def rows(self, sql: str, *values: object) -> list[dict]:
        return [dict(row) for row in self.data.execute(sql, values)]

    def one(self, table: str, number: int) -> dict:
        if abs(number) >= 2**63:  # more than SQLite can hold
            raise RefusedError(f"there is no {table} of that number")
        found = self.rows(f"SELECT * FROM {table} WHERE number = ?", number)
        if not found:
            raise RefusedError(f"there is no {table} {number}")
        return found[0]

    def invoices(self, state: str) -> list[dict]:
        if state:
            return self.rows("SELECT * FROM invoice WHERE state = ? ORDER BY number", state)
        return self.rows("SELECT * FROM invoice ORDER BY number")

    def payments(self) -> list[dict]:
        return self.rows("SELECT * FROM payment WHERE invoice IS NULL ORDER BY number")

    def books(self) -> dict:
        return {
            "invoices": self.invoices(""),
            "payments": self.rows("SELECT * FROM payment ORDER BY number"),
            "statements": self.rows("SELECT * FROM statement"),
        }

    def import_statement(self, file: str) -> list[dict]:
        if not re.fullmatch(r"\w+\.csv", file) or not Path(file).is_file():
            raise RefusedError(f"there is no bank statement {file}")
        if self.rows("SELECT * FROM statement WHERE file = ?", file):
            raise RefusedError(f"{file} was imported before")
        with open(file, newline="") as lines:
            for row in csv.DictReader(lines):
                self.add({**row, "amount": int(row["amount"])})
        self.data.execute("INSERT INTO statement VALUES (?)", (file,))
        return self.payments()

    def match(self, payment: int, invoice: int) -> dict:
        paying, paid = self.one("payment", payment), self.one("invoice", invoice)
        if paying["invoice"] is not None or paid["state"] == "paid":
            raise RefusedError(f"payment {payment} or invoice {invoice} is settled")
        if paying["amount"] != paid["amount"]:
            raise RefusedError(
                f"payment {payment} is {paying['amount']}, invoice {invoice} is {paid['amount']}"
            )
        self.data.execute("UPDATE payment SET invoice = ? WHERE number = ?", (invoice, payment))
        self.data.execute("UPDATE invoice SET state = 'paid' WHERE number = ?", (invoice,))
        return self.one("invoice", invoice)

    def remind(self, invoice: int) -> dict:
        found = self.one("invoice", invoice)
        if found["state"] != "open" or found["due"] >= self.today:
            raise RefusedError(f"invoice {invoice} is {found['state']} and due on {found['due']}")
        self.data.execute("UPDATE invoice SET state = 'reminded' WHERE number = ?", (invoice,))
        return self.one("invoice", invoice)


def serve(office: Office, port: int, token: str) -> None:
    """Answer one request at a time, until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            status, answer = 200, None
            given = self.headers.get("Authorization", "")
            try:
                if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                    raise RefusedError("the token is wrong")
                url = urlsplit(self.path)
                sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                match self.command, url.path:
                    case "GET", "/health":
                        answer = {"today": office.today}
                    case "GET", "/invoices":
                        answer = office.invoices(parse_qs(url.query).get("state", [""])[0])
                    case "GET", "/payments":
                        answer = office.payments()
                    case "GET", "/books":
                        answer = office.books()
                    case "POST", "/import":
                        answer = office.import_statement(sent["file"])
                    case "POST", "/match":
                        answer = office.match(sent["payment"], sent["invoice"])
                    case "POST", "/remind":
                        answer = office.remind(sent["invoice"])
                    case _:
                        raise RefusedError("there is nothing at this address")
            except RefusedError as refused:
                status, answer = 409, {"error": str(refused)}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_request

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(Office(json.loads(Path(sys.argv[1]).read_text())), int(sys.argv[2]), sys.stdin.readline().strip())
