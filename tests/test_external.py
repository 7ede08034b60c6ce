"""Applications outside the sandbox: which hosts each phase of an episode may ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from envkit import ContractError, Env, SandboxError, Task, check, tool
from envkit.external import open_http
from envkit.sandboxes.process import ProcessBackend

TASKS = [Task("a", "train", "", {})]


class Answers(BaseHTTPRequestHandler):
    """Answers ``/`` with its port, and redirects every other path to the address that the path names."""

    def do_GET(self) -> None:
        target = self.path[1:]
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        body = str(self.server.server_address[1]).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[], str]]:
    """Start a server; returns its host and port."""
    servers: list[HTTPServer] = []

    def start() -> str:
        servers.append(HTTPServer(("127.0.0.1", 0), Answers))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_address[1]}"

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
        return self.http.get(f"http://{self.in_setup}/").text

    def teardown(self) -> None:
        self.http.close()

    @tool
    def fetch(self, url: str) -> str:
        """Read a page, and follow it where it leads."""
        return self.http.get(url, follow_redirects=True).text

    @check()
    def asked(self) -> bool:
        return self.http.get(f"http://{self.in_check}/").status_code == 200


def begun(in_setup: str, in_check: str = "", **hosts: Sequence[str]) -> Shop:
    """An episode of a shop that allows hosts by phase, and asks these two."""
    shop = type("Made", (Shop,), {"hosts": hosts, "in_setup": in_setup, "in_check": in_check})
    env = shop(tasks=TASKS, sandbox=ProcessBackend(), max_turns=2)
    env.reset(seed=0)
    return env


def calling(url: str) -> str:
    return f"fetch(url={url!r})"


def test_each_phase_asks_its_own_hosts_and_no_others(serve: Callable[[], str]) -> None:
    admin, store, audits = serve(), serve(), serve()

    env = begun(admin, audits, setup=[admin], turn=[store], check=[audits])
    assert env.step(calling(f"http://{store}/"))[0] == store.partition(":")[2]
    seen, reward, *_ = env.step(calling(f"http://{admin}/"))
    assert (seen, reward) == (f"{admin} may not be asked in phase turn; expected {store}", 1.0)
    env.in_setup, env.in_check = store, admin
    with pytest.raises(ContractError, match=f"{store} may not be asked in phase setup; expected {admin}"):
        env.reset(seed=0)
    env.in_setup = admin
    env.reset(seed=0)
    env.step(calling(f"http://{store}/"))
    with pytest.raises(ContractError, match=f"{admin} may not be asked in phase check"):
        env.step(calling(f"http://{store}/"))
    env.close()


@pytest.mark.parametrize("proxied", [False, True])
def test_a_redirect_reaches_no_other_host(
    serve: Callable[[], str], proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = serve(), serve()
    if proxied:  # whatever address is asked, this server answers
        monkeypatch.setenv("http_proxy", f"http://{store}")
        monkeypatch.setenv("no_proxy", store)

    env = begun(store, store, setup=[store], turn=[store], check=[store])
    assert "may not be asked in phase turn" in env.step(calling(f"http://{store}/http://{other}/"))[0]
    assert env.step(calling(f"http://{store}/http://{store}/"))[0] == store.partition(":")[2]
    env.close()


def test_a_host_is_meant_with_its_scheme_s_own_port_only(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["127.0.0.1"])
    assert "may not be asked" in env.step(calling(f"http://{store}/"))[0]
    env.close()


def test_without_hosts_nothing_is_asked(serve: Callable[[], str]) -> None:
    with pytest.raises(ContractError, match="may not be asked in phase setup; no host is"):
        begun(serve())


def test_an_application_that_does_not_answer_voids_the_episode(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["127.0.0.1:1"])
    with pytest.raises(SandboxError, match=r"http://127\.0\.0\.1:1/ does not answer: "):
        env.step(calling("http://127.0.0.1:1/"))
    env.close()


def test_an_address_of_version_6_is_written_as_in_a_url(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["[::1]:1"])
    with pytest.raises(SandboxError, match=r"http://\[::1\]:1/ does not answer: "):
        env.step(calling("http://[::1]:1/"))
    env.close()


def test_another_scheme_than_http_is_the_agents_mistake(serve: Callable[[], str]) -> None:
    store = serve()
    env = begun(store, setup=[store], turn=["127.0.0.1:1"])
    assert "may not be asked; expected http or https" in env.step(calling("ftp://127.0.0.1:1/x"))[0]
    env.close()


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ContractError, match=r"Made\.hosts has phase 'turns'; expected setup, turn or check"):
        begun("", turns=["shop.example"])
