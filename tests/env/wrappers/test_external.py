"""Applications outside the sandbox: which hosts each phase of an episode may ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from envkit import ContractError, Env, SandboxError, Task, check, tool
from envkit.env.wrappers.external import open_http
from envkit.sandboxes.process import ProcessBackend

TASKS = [Task("a", "train", "", {})]


class Answers(BaseHTTPRequestHandler):
    """Answers ``/`` with its port and the keys it was sent; other paths are addresses to go to."""

    def do_GET(self) -> None:
        target = self.path[1:]
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        keys = [self.headers[name] for name in ("Authorization", "X-Key") if name in self.headers]
        body = " ".join([str(self.server.server_address[1]), *keys]).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[], str]]:
    """Start a server; returns its address."""
    servers: list[HTTPServer] = []

    def start() -> str:
        servers.append(HTTPServer(("127.0.0.1", 0), Answers))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Shop(Env):
    """Asks whatever it is told to."""

    id = "shop"
    isolation = "external"
    in_setup = in_check = ""

    def setup(self, task: Task) -> str:
        self.http = open_http(self)
        return self.http.get(f"{self.in_setup}/").text

    def teardown(self) -> None:
        self.http.close()

    @tool
    def fetch(self, url: str) -> str:
        """Read a page, and follow it where it leads."""
        return self.http.get(url, follow_redirects=True).text

    @check()
    def asked(self) -> bool:
        return self.http.get(f"{self.in_check}/").status_code == 200


def begun(in_setup: str, in_check: str = "", **hosts: Sequence[str]) -> Shop:
    """An episode of a shop that allows hosts by phase, and asks these two."""
    shop = type("Made", (Shop,), {"hosts": hosts, "in_setup": in_setup, "in_check": in_check})
    env = shop(tasks=TASKS, sandbox=ProcessBackend(), max_turns=2)
    env.reset(seed=0)
    return env


def calling(url: str) -> str:
    return f"fetch(url={url!r})"


def port(server: str) -> str:
    return server.rpartition(":")[2]


def test_each_phase_asks_its_own_hosts_and_no_others(serve: Callable[[], str]) -> None:
    admin, store, audits = serve(), serve(), serve()

    env = begun(admin, audits, setup=[admin], turn=[store], check=[audits])
    assert env.step(calling(f"{store}/"))[0] == port(store)
    seen, reward, *_ = env.step(calling(f"{admin}/"))
    assert (seen, reward) == (f"{admin} may not be asked in phase turn; expected {store}", 1.0)
    env.in_setup, env.in_check = store, admin
    with pytest.raises(ContractError, match=f"{store} may not be asked in phase setup; expected {admin}"):
        env.reset(seed=0)
    env.in_setup = admin
    env.reset(seed=0)
    env.step(calling(f"{store}/"))
    with pytest.raises(ContractError, match=f"{admin} may not be asked in phase check"):
        env.step(calling(f"{store}/"))
    env.close()


@pytest.mark.parametrize("proxied", [False, True])
def test_a_redirect_reaches_no_other_host(
    serve: Callable[[], str], proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = serve(), serve()
    if proxied:  # whatever address is asked, this server answers
        monkeypatch.setenv("http_proxy", store)
        monkeypatch.setenv("no_proxy", store.removeprefix("http://"))

    env = begun(store, store, setup=[store], turn=[store], check=[store])
    assert "may not be asked in phase turn" in env.step(calling(f"{store}/{other}/"))[0]
    assert env.step(calling(f"{store}/{store}/"))[0] == port(store)
    env.close()


def test_a_host_is_meant_with_its_scheme_s_own_port_only(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["http://127.0.0.1"])
    assert "may not be asked" in env.step(calling(f"{store}/"))[0]
    env.close()


def test_without_hosts_nothing_is_asked(serve: Callable[[], str]) -> None:
    with pytest.raises(ContractError, match="may not be asked in phase setup; no host is"):
        begun(serve())


def test_an_application_that_does_not_answer_voids_the_episode(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["http://127.0.0.1:1"])
    with pytest.raises(SandboxError, match=r"http://127\.0\.0\.1:1/ does not answer: "):
        env.step(calling("http://127.0.0.1:1/"))
    env.close()


def test_an_address_of_version_6_is_written_as_in_a_url(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["http://[::1]:1"])
    with pytest.raises(SandboxError, match=r"http://\[::1\]:1/ does not answer: "):
        env.step(calling("http://[::1]:1/"))
    env.close()


def test_another_scheme_than_http_is_the_agents_mistake(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["http://127.0.0.1:1"])
    seen = "ftp://127.0.0.1:1 may not be asked in phase turn; expected http://127.0.0.1:1"
    assert env.step(calling("ftp://127.0.0.1:1/x"))[0] == seen
    env.close()


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ContractError, match=r"Made\.hosts has phase 'turns'; expected setup, turn or check"):
        begun("", turns=["shop.example"])


def test_a_host_is_meant_with_https_unless_it_says_http(serve: Callable[[], str]) -> None:
    store = serve()
    named = store.removeprefix("http://")
    env = begun(store, setup=[store], turn=[named], check=[store])
    seen = f"http://{named} may not be asked in phase turn; expected https://{named}"
    assert env.step(calling(f"{store}/"))[0] == seen
    env.close()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("LOCALHOST:1", "https://localhost:1/"),
        ("localhost:1", "https://LOCALHOST:1/"),
        ("https://localhost:1/", "https://localhost:1/a"),
        ("HTTP://localhost:1", "http://localhost:1/"),
        ("http://127.0.0.1:80", "http://127.0.0.1/"),
    ],
)
def test_a_host_may_be_written_in_other_ways(serve: Callable[[], str], host: str, url: str) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=[host])
    with pytest.raises(SandboxError, match="does not answer: "):
        env.step(calling(url))
    env.close()


@pytest.mark.parametrize(
    "host", ["", "shop.example/api", "ftp://shop.example", "ada:x@shop.example", "shop:x"]
)
def test_what_is_no_host_is_refused(serve: Callable[[], str], host: str) -> None:
    with pytest.raises(
        ContractError, match=r"Made\.hosts has .*; expected a host such as 'shop\.example', or"
    ):
        begun(serve(), setup=[host])


def test_a_url_that_cannot_be_read_is_the_agents_mistake(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, store, setup=[store], turn=[store], check=[store])
    assert env.step(calling("http://shop:x"))[0] == "That is no URL: Invalid port: 'x'."
    assert env.step(calling("shop"))[0] == f"/shop may not be asked in phase turn; expected {store}"
    env.close()


class Keyed(Shop):
    """Has a key for one host."""

    def setup(self, task: Task) -> str:
        keys = {"Authorization": "Bearer key", "X-Key": "key"}
        self.http = open_http(self, base_url=self.in_setup, headers=keys)
        return self.http.get("/").text


def test_headers_are_sent_to_the_host_of_the_base_url_and_to_no_other(serve: Callable[[], str]) -> None:
    store, other = serve(), serve()
    hosts = {phase: [store, other] for phase in ("setup", "turn", "check")}
    kind = type("Made", (Keyed,), {"hosts": hosts, "in_setup": store, "in_check": store})
    env = kind(tasks=TASKS, sandbox=ProcessBackend(), max_turns=9)
    assert env.reset(seed=0)[0] == f"{port(store)} Bearer key key"
    assert env.step(calling(f"{store}/{store}/"))[0] == f"{port(store)} Bearer key key"
    assert env.step(calling(f"{other}/"))[0] == port(other)
    assert env.step(calling(f"{store}/{other}/"))[0] == port(other)
    assert env.step(calling(f"{other}/{store}/"))[0] == port(store)
    env.close()


def test_headers_without_a_base_url_are_refused() -> None:
    kind = type("Made", (Keyed,), {})
    with pytest.raises(ContractError, match="open_http has headers and no base_url"):
        kind(tasks=TASKS, sandbox=ProcessBackend()).reset(seed=0)
