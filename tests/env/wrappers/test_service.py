"""Web services in a sandbox: readiness, requests, and services that end or never begin."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from envkit import ContractError, Limits, Sandbox, SandboxError
from envkit.env.wrappers.service import Response, Service
from envkit.sandbox import PYTHON_OPTIONS
from envkit.sandbox.choice import sandbox_backend

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


def started(sandbox: Sandbox, program: str = PROGRAM, ready_s: float = 20.0, **options: Any) -> Service:
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", program]
    return Service(sandbox, argv, port=8123, ready_path="/ready", ready_s=ready_s, **options)


def test_requests_carry_token_and_body(sandbox: Sandbox) -> None:
    service = started(sandbox, with_token=True)
    assert service.request("GET", "/a?b=%20c").json() == ["GET", "/a?b=%20c", True, "", ""]
    posted = service.request("POST", "/rows", {"row": ["\N{SNOWMAN}", 1]})
    assert posted.json() == ["POST", "/rows", True, "application/json", '{"row": ["\\u2603", 1]}']
    posted = service.request("POST", "/csv", "a,b\r\n1,\N{SNOWMAN}", {"Content-Type": "text/csv"})
    assert posted.json() == ["POST", "/csv", True, "text/csv", "a,b\r\n1,\N{SNOWMAN}"]


def test_a_large_answer_arrives_whole(sandbox: Sandbox) -> None:
    text = "\N{SNOWMAN}" * 300_000
    assert started(sandbox).request("POST", "/", text).json()[-1] == text


def test_an_answer_that_is_too_large_is_refused_with_its_size(sandbox: Sandbox) -> None:
    service = started(sandbox, limits=Limits(output_bytes=20_000, wall_s=60.0))
    assert service.request("POST", "/", "a" * 19_000).status == 200
    with pytest.raises(
        SandboxError, match=r"an answer takes 20,\d{3} bytes as JSON; expected fewer than 20,000: send less"
    ):
        service.request("POST", "/", "a" * 20_000)


#: Tells what a program finds around itself.
FINDS = """
import dataclasses, json, os, sys
sys.path.insert(0, "")
import colours
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import get_type_hints

@dataclasses.dataclass
class Row:
    other: "Row | None" = None

told = sys.stdin.read()
print("this goes nowhere")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        found = [
            __name__, sys.argv, len(told), get_type_hints(Row)["other"].__args__[0] is Row, colours.NAME,
            sorted(number for number in descriptors if number < 3), len(descriptors) < 8,
        ]
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

HTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""


@pytest.mark.parametrize("shadowed", [False, True])
def test_a_python_service_finds_what_a_new_interpreter_would(sandbox: Sandbox, shadowed: bool) -> None:
    sandbox.write("colours.py", b"NAME = 'red'")
    if shadowed:  # such a name may not be imported from the process that the service is forked from
        sandbox.write("http/__init__.py", b"")
        sandbox.write("http/server.py", b"raise SystemExit('the workspace has its own')")
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", FINDS, "one", "-c"]
    if shadowed:
        with pytest.raises(SandboxError, match="the workspace has its own"):
            Service(sandbox, argv, port=8123)
        return
    service = Service(sandbox, argv, port=8123, with_token=True)
    expected = ["__main__", ["-c", "one", "-c"], 33, True, "red", [0, 1, 2], True]
    assert service.request("GET", "/").json() == expected


#: Starts a program, as a service does that runs an agent's code, and says what it could open.
OPENS = """
import os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

OPEN = '''
import sys
for name, mode in (("fd/1", "wb"), ("mem", "r+b")):
    try: print(open(f"/proc/{sys.argv[1]}/{name}", mode, 0))
    except OSError as error: print(type(error).__name__)
'''

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        ran = [sys.executable, "-c", OPEN, str(os.getppid())]
        data = subprocess.run(ran, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

HTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""


@pytest.mark.parametrize("name", ["zygote", "bubblewrap"])
def test_code_that_a_service_runs_cannot_answer_in_its_place(name: str) -> None:
    with sandbox_backend(name).create() as sandbox:
        service = Service(sandbox, [sandbox.python, *PYTHON_OPTIONS, "-c", OPENS], port=8123)
        assert service.request("GET", "/").text.split() == ["PermissionError"] * 2


#: Answers with its own name; on request, another process ends it, takes its port, and answers.
TAKEN = """
import os, signal, socket, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

def serve(name):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/take" and not os.fork():
                os.closerange(3, 4096)  # with the listening socket
                os.kill(os.getppid(), signal.SIGKILL)
                serve("another")
            data = name.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    while True:
        try: server = HTTPServer(("127.0.0.1", 8123), Handler)
        except OSError: time.sleep(0.01)
        else: server.serve_forever()

serve("itself")
"""


@pytest.mark.parametrize("name", ["zygote", "bubblewrap"])
def test_a_process_that_takes_a_services_port_is_not_believed(name: str) -> None:
    with sandbox_backend(name).create() as sandbox:
        service = Service(sandbox, [sandbox.python, *PYTHON_OPTIONS, "-c", TAKEN], port=8123)
        assert service.request("GET", "/").text == "itself"
        with contextlib.suppress(SandboxError):
            service.request("GET", "/take")
        time.sleep(0.5)
        with pytest.raises(SandboxError, match="the service failed"):
            service.request("GET", "/")


def test_a_service_that_is_started_by_its_file_works_as_well(sandbox: Sandbox) -> None:
    sandbox.write("service.py", PROGRAM.encode())
    service = Service(
        sandbox, [sandbox.python, "service.py"], port=8123, ready_path="/ready", with_token=True
    )
    assert service.request("GET", "/").json() == ["GET", "/", True, "", ""]


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
    with pytest.raises(SandboxError, match=r"the service failed: (it ended with status|a limit ended it)"):
        Service(sandbox, argv, ready_s=20.0, limits=Limits(memory_bytes=128 * 2**20, wall_s=60.0))


def test_a_service_that_a_limit_ended_says_which(sandbox: Sandbox) -> None:
    argv = [sandbox.python, *PYTHON_OPTIONS, "-c", "while True: pass"]
    with pytest.raises(SandboxError, match="the service failed: a limit ended it: cpu limit"):
        Service(sandbox, argv, ready_s=30.0, limits=Limits(cpu_s=0.5, wall_s=60.0))
