"""Web services in a sandbox: readiness, requests, and services that end or never begin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envkit import ContractError, Limits, Sandbox, SandboxError
from envkit.registry import sandbox_backend
from envkit.sandbox import PYTHON_OPTIONS
from envkit.service import Response, Service

#: Echoes method, path, token, content type and body; is ready at the second time of asking; ends on request.
PROGRAM = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

token, asked = sys.stdin.readline().strip(), []

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            print("the end", file=sys.stderr, flush=True)
            os._exit(3)
        asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        kind, given = self.headers.get("Content-Type", ""), self.headers.get("Authorization", "")
        data = json.dumps([self.command, self.path, given == f"Bearer {token}", kind, body]).encode()
        self.send_response(503 if asked == ["/ready"] else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

HTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with sandbox_backend().create() as made:
        yield made


def started(sandbox: Sandbox, program: str = PROGRAM, ready_s: float = 20.0, **options: bool) -> Service:
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", program]
    return Service(sandbox, argv, port=8123, ready_path="/ready", ready_s=ready_s, **options)


def test_requests_carry_token_and_body(sandbox: Sandbox) -> None:
    service = started(sandbox, with_token=True)
    assert service.request("GET", "/a?b=%20c").json() == ["GET", "/a?b=%20c", True, "", ""]
    posted = service.request("POST", "/rows", {"row": ["\N{SNOWMAN}", 1]})
    assert posted.json() == ["POST", "/rows", True, "application/json", '{"row": ["\\u2603", 1]}']
    posted = service.request("POST", "/csv", "a,b\r\n1,\N{SNOWMAN}", {"Content-Type": "text/csv"})
    assert posted.json() == ["POST", "/csv", True, "text/csv", "a,b\r\n1,\N{SNOWMAN}"]


def test_without_a_token_none_is_sent(sandbox: Sandbox) -> None:
    assert started(sandbox).request("GET", "/").json() == ["GET", "/", False, "", ""]


def test_a_body_that_is_no_json_is_text() -> None:
    assert Response(200, "plain").text == "plain"
    with pytest.raises(ValueError, match="Expecting value"):
        Response(200, "plain").json()


@pytest.mark.parametrize("path", ["", "a", "/a b", "/a\r\nX: y", "/\N{SNOWMAN}"])
def test_a_path_must_be_quoted(sandbox: Sandbox, path: str) -> None:
    service = started(sandbox)
    with pytest.raises(ContractError, match="is not quoted"):
        service.request("GET", path)


def test_a_service_that_ends_is_broken_machinery(sandbox: Sandbox) -> None:
    service = started(sandbox)
    with pytest.raises(SandboxError, match=r"the service failed: .*; its last output: .*the end"):
        service.request("GET", "/end")
    with pytest.raises(SandboxError, match="the service failed: it ended, or did not answer"):
        service.request("GET", "/")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit('no database')", "it ended with status 1; its last output: no database"),
        ("import time; time.sleep(60)", r"it was not ready in time: .*[Cc]onnection refused"),
        ("this is no Python", "it ended with status 1; its last output: .*SyntaxError"),
    ],
)
def test_a_service_that_is_not_ready_in_time_says_why(sandbox: Sandbox, program: str, why: str) -> None:
    with pytest.raises(SandboxError, match=why):
        started(sandbox, program, ready_s=2.0)


def test_limits_hold_for_the_service(sandbox: Sandbox) -> None:
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", "x = bytearray(2**30)"]
    with pytest.raises(SandboxError, match="the service failed"):
        Service(sandbox, argv, ready_s=20.0, limits=Limits(memory_bytes=128 * 2**20, wall_s=60.0))
