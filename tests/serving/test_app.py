"""The application in this process, where a test can hold its threads at a chosen point."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from app_server import asking, make
from safetensors.torch import load_file, save_file

from envkit.errors import ModelError, StoreError, UsageError
from envkit.models.adapter_folder import BASE
from envkit.runs.serving import ServeConfig, _dtype, serve
from envkit.runtime.display import Silent
from envkit.serving.answer_stream import AnswerStream
from envkit.serving.app import make_app
from envkit.serving.guards.access import Access, Client, digest, read_access
from envkit.serving.ledger import Ledger
from envkit.serving.models import ModelEntry
from envkit.serving.server import Server

#: PEFT uses what transformers warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{bad json", "the body is no JSON: Expecting property name"),
        (b"[1]", "expected a JSON object as the body"),
        (b"", "expected a JSON object as the body, with the header Content-Type: application/json"),
    ],
)
def test_a_body_that_is_none_is_told_plainly(model: Path, content: bytes, words: str) -> None:
    async def run() -> Any:
        async with asking(make(model)) as client:
            headers = {"Content-Type": "application/json"}
            return await client.post("/v1/completions", content=content, headers=headers)

    reply = asyncio.run(run())
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["message"].startswith(words)
    assert error["param"] is None


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        (
            "chat/completions",
            {"stream_options": {"include_usage": True}},
            "stream_options",
            "only with stream",
        ),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs", "only with logprobs"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
            "Input should be 'text'",
        ),
        ("chat/completions", {"stop": ["x"] * 17}, "stop", "List should have at most 16 items"),
        ("completions", {"prompt": []}, "prompt", "List should have at least 1 item"),
    ],
)
def test_an_error_names_the_field_and_its_fault(
    model: Path, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
    [reply] = asyncio.run(post(make(model), f"/v1/{path}", {"model": "tiny", **body, **fields}))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: {words}")


async def post(server: Server, path: str, *bodies: dict[str, Any], key: str = "key") -> list[httpx2.Response]:
    """Start the server and send requests, one after another."""
    async with asking(server) as client:
        headers = {"Authorization": f"Bearer {key}"}
        return [await client.post(path, json=body, headers=headers) for body in bodies]


def test_other_requests_are_answered_while_a_prompt_is_encoded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model, max_waiting=16)  # what one request may ask for
    began, go_on, plain = threading.Event(), threading.Event(), server.renderer.plain
    held: list[bool] = []

    def slow(text: str) -> tuple[int, ...]:
        began.set()
        held.append(go_on.wait(10))
        return plain(text)

    monkeypatch.setattr(server.renderer, "plain", slow)

    async def run() -> int:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": "Once", "max_tokens": 2}
            long = asyncio.create_task(client.post("/v1/completions", json=body))
            await asyncio.to_thread(began.wait, 10)
            assert (await client.get("/health")).status_code == 200
            # What is encoded is open, and takes a place among what waits.
            assert server.open_rows.total() == server.read_rows == 1
            assert (await client.post("/v1/completions", json=body | {"n": 16})).status_code == 503
            go_on.set()
            return (await long).status_code

    assert asyncio.run(run()) == 200
    assert held == [True]
    assert server.open_rows.total() == server.read_rows == 0


def test_what_a_client_that_left_has_encoded_stays_counted_until_it_is_done(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model)
    began, go_on = threading.Event(), threading.Event()

    def slow(text: str) -> tuple[int, ...]:
        began.set()
        go_on.wait(10)
        return ()

    monkeypatch.setattr(server.renderer, "plain", slow)

    async def run() -> list[int]:
        counts: list[int] = []
        async with asking(server) as client:
            # The first is encoded, and the second waits for it.
            tasks = [
                asyncio.create_task(client.post("/v1/completions", json={"model": "tiny", "prompt": "Once"}))
                for _ in range(2)
            ]
            await asyncio.to_thread(began.wait, 10)
            await until(lambda: server.read_rows == 2)
            for task in tasks:
                task.cancel()
            await until(lambda: server.read_rows == 1)
            await asyncio.sleep(0.2)
            counts += [server.read_rows, server.open_rows.total()]
            go_on.set()
            await until(lambda: server.read_rows == server.open_rows.total() == 0)
            await asyncio.wait(tasks)
        return counts

    assert asyncio.run(run()) == [1, 1]


def test_more_prompts_than_a_key_allows_are_refused_before_one_is_encoded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model)
    encoded: list[str] = []
    monkeypatch.setattr(server.renderer, "plain", encoded.append)

    async def run() -> httpx2.Response:
        async with asking(server) as client:
            return await client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 17})

    reply = asyncio.run(run())
    assert reply.status_code == 400
    assert "17 prompts" in reply.text
    assert not encoded


@pytest.mark.parametrize("name", ["unknown", "blue"])
def test_a_model_that_a_key_may_not_use_is_refused_before_a_prompt_is_encoded(
    model: Path, adapters: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access([Client("ann", digest(b"key"), frozenset({"red", "unknown"}))])
    server = make(model, adapters, access=access)
    encoded: list[str] = []
    monkeypatch.setattr(server.renderer, "plain", encoded.append)
    monkeypatch.setattr(server.renderer, "messages", encoded.append)

    async def run() -> list[httpx2.Response]:
        async with asking(server) as client:
            headers = {"Authorization": "Bearer key"}
            text, chat = {"prompt": "Once"}, {"messages": [{"role": "user", "content": "Once"}]}
            return [
                await client.post(path, json={"model": name, **body}, headers=headers)
                for path, body in (("/v1/completions", text), ("/v1/chat/completions", chat))
            ]

    for reply in asyncio.run(run()):
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert not encoded


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("leaves", ["encoding", "decoding"])
def test_a_request_whose_client_has_left_ends_with_status_499(
    model: Path, path: str, stream: bool, leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, left, sent = make(model), asyncio.Event(), list[Any]()
    go_on, began = threading.Event(), threading.Event()
    if leaves == "encoding":

        def slow(*_: object) -> tuple[int, ...]:
            began.set()
            go_on.wait(10)
            return (5,)

        monkeypatch.setattr(server.renderer, "plain", slow)
        monkeypatch.setattr(server.renderer, "messages", slow)
    given = (
        {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    )
    body = json.dumps({"model": "tiny", "max_tokens": 400, "stream": stream, **given}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        if (message := next(messages, None)) is not None:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"server")],
    }

    async def run() -> None:
        app = make_app(server)
        async with app.router.lifespan_context(app):
            with resting(server) if leaves == "decoding" else contextlib.nullcontext():
                asked = asyncio.create_task(app(scope, receive, send))
                if leaves == "decoding":
                    await until(lambda: server.decoder.waiting == 1)
                else:
                    await asyncio.to_thread(began.wait, 10)
                left.set()
                go_on.set()
                await asked

    asyncio.run(run())
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [499]
    assert value(server.metrics.render().decode(), 'envkit_errors_total{status="499"}') == 1


def value(text: str, name: str) -> float:
    """A value in Prometheus's text; 0 if it is not there."""
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name + " ")]
    return float(found[0]) if found else 0.0


def test_metrics_count_errors_by_status_waits_and_adapters(model: Path, adapters: Path) -> None:
    access = Access([Client("ann", digest(b"key"), requests_per_minute=5, admin=True)])
    server = make(model, adapters, access=access, max_rows=1)

    async def run() -> str:
        async with asking(server) as client:
            headers = {"Authorization": "Bearer key"}

            async def ask(**changes: Any) -> int:
                body = {"model": "red", "prompt": "Once", "max_tokens": 2, **changes}
                return (await client.post("/v1/completions", json=body, headers=headers)).status_code

            found = [await ask(), *await asyncio.gather(ask(max_tokens=90), ask(model="blue"))]
            assert [*found, await ask(model="x"), await ask(prompt="y" * 2**21)] == [200, 200, 200, 404, 413]
            assert [await ask(top_p=9), await ask()] == [400, 429]
            assert (await client.post("/v1/completions", json={})).status_code == 401
            assert (await client.get("/a/path/that/a/client/made")).status_code == 404
            return (await client.get("/metrics", headers=headers)).text

    text = asyncio.run(run())
    for status, count in ((400, 1), (401, 1), (404, 2), (413, 1), (429, 1), (503, 0)):
        assert value(text, f'envkit_errors_total{{status="{status}"}}') == count
    assert value(text, 'envkit_first_token_seconds_count{model="red"}') == 2
    assert value(text, 'envkit_first_token_seconds_count{model="blue"}') == 1
    assert value(text, "envkit_queue_seconds_count") == 3
    assert value(text, "envkit_queue_seconds_sum") > 0
    assert value(text, "envkit_adapter_loads_total") == 2
    assert value(text, "envkit_adapter_evictions_total") == 0
    assert "# TYPE envkit_adapter_loads_total counter" in text
    assert "made" not in text
    assert '"x"' not in text


def test_a_fault_of_the_server_is_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(model)

    def broken() -> list[str]:
        raise ValueError("an unknown fault")

    monkeypatch.setattr(server.models, "ids", broken)

    async def run() -> tuple[int, str]:
        async with asking(server) as client:
            status = (await client.get("/v1/models")).status_code
            return status, (await client.get("/metrics")).text

    status, text = asyncio.run(run())
    assert status == 500
    assert value(text, 'envkit_errors_total{status="500"}') == 1


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_rows_that_wait_are_answered_while_their_adapter_changes(
    model: Path, adapters: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "red", tmp_path / "red")
    server = make(model, tmp_path, max_rows=1)
    weights, config = (tmp_path / "red" / f"adapter_{name}" for name in ("model.safetensors", "config.json"))

    async def run() -> list[int]:
        async with asking(server) as client:

            def ask(name: str, tokens: int) -> asyncio.Task[httpx2.Response]:
                body = {"model": name, "prompt": "Once", "max_tokens": tokens}
                return asyncio.create_task(client.post("/v1/completions", json=body))

            replies = [ask("red", 400)]
            await until(lambda: server.decoder.running == 1)
            for waiting, (file, time_s) in enumerate(((weights, 1), (weights, 2), (weights, 1), (config, 1))):
                os.utime(file, (time_s, time_s))
                replies.append(ask("red", 2))
                await until(lambda count=waiting + 1: server.decoder.waiting == count)
            return [reply.status_code for reply in await asyncio.gather(*replies)]

    assert asyncio.run(run()) == [200] * 5
    assert server.adapters.loads == 5


def test_an_adapter_that_has_left_the_folder_leaves_the_pool(
    model: Path, adapters: Path, tmp_path: Path
) -> None:
    for name in ("red", "blue"):
        shutil.copytree(adapters / name, tmp_path / name)
    server = make(model, tmp_path)

    async def run() -> list[list[str]]:
        found: list[list[str]] = []
        async with asking(server) as client:
            for name in ("red", "blue"):
                body = {"model": name, "prompt": "Once", "max_tokens": 2}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
                found.append([version.partition("@")[0] for version in server.adapters.loaded])
                shutil.rmtree(tmp_path / name)
        return found

    assert asyncio.run(run()) == [["red"], ["blue"]]


def test_an_adapter_that_lacks_a_layer_is_refused(model: Path, adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / "red", tmp_path / "red")
    file = tmp_path / "red" / "adapter_model.safetensors"
    save_file({name: part for name, part in load_file(file).items() if "layers.1." not in name}, file)
    server = make(model, tmp_path)

    async def run() -> int:
        async with asking(server) as client:
            body = {"model": "red", "prompt": "Once", "max_tokens": 2}
            return (await client.post("/v1/completions", json=body)).status_code

    assert asyncio.run(run()) == 400


@contextlib.contextmanager
def resting(server: Server) -> Generator[None]:
    """Let the decoding thread rest between two ticks."""
    began, go_on = threading.Event(), threading.Event()

    def rest() -> None:
        began.set()
        go_on.wait(60)

    server.decoder.do(rest)
    began.wait(60)
    try:
        yield
    finally:
        go_on.set()


def statuses(server: Server, count: int, refused: int, **changes: Any) -> list[int]:
    """Status codes of requests that come together; the decoder rests until some were refused."""
    headers = {"Authorization": "Bearer key"}

    async def run() -> list[int]:
        async with asking(server) as client:
            with resting(server):
                body = {"model": "tiny", "prompt": "Once", "max_tokens": 2, **changes}
                posts = [client.post("/v1/completions", json=body, headers=headers) for _ in range(count)]
                tasks = [asyncio.create_task(post) for post in posts]
                await until(lambda: sum(task.done() for task in tasks) == refused)
            return sorted(reply.status_code for reply in await asyncio.gather(*tasks))

    return asyncio.run(run())


def test_requests_that_come_together_do_not_exceed_what_may_wait(model: Path) -> None:
    assert statuses(make(model, max_waiting=4), 10, 8, n=2) == [200] * 2 + [503] * 8


def test_the_open_answers_of_a_key_are_limited(model: Path) -> None:
    access = Access([Client("ann", digest(b"key"), max_open_rows=4)])
    server = make(model, access=access)
    assert statuses(server, 5, 3, n=2) == [200] * 2 + [429] * 3
    assert server.open_rows == {"ann": 0}


@pytest.mark.parametrize("limits", [{"max_open_rows": 8}, {"max_rows": 8}, {}])
def test_more_answers_than_there_is_ever_room_for_are_refused_for_good(
    model: Path, limits: dict[str, int]
) -> None:
    access = Access([Client("ann", digest(b"key"), **limits)])
    server = make(model, access=access, max_waiting=64 if limits else 8)
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 1}
    refused, answered = asyncio.run(post(server, "/v1/completions", body | {"n": 9}, body | {"n": 8}))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], "retry-after" in refused.headers) == (400, "n", False)
    assert "a request may have 8 answers" in error["message"]
    assert answered.status_code == 200


def keys_file(path: Path, **keys: str) -> None:
    path.write_text(
        "".join(f'[keys.{name}]\nsha256 = "{digest(key.encode())}"\n' for name, key in keys.items())
    )


def test_a_session_is_gone_with_its_key(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.toml"
    keys_file(keys, ann="one", bob="two")
    server = make(model, access=read_access(keys))
    owners, stream = list[str](), server.decoder.stream

    def noting(requests: Any, prepare: Any) -> Any:
        owners.extend(request.owner for request in requests)
        return stream(requests, prepare)

    monkeypatch.setattr(server.decoder, "stream", noting)

    async def run() -> None:
        async with asking(server) as client:

            async def ask(key: str) -> int:
                headers = {"Authorization": f"Bearer {key}"}
                body = {"model": "tiny", "prompt": "Once", "max_tokens": 2}
                assert (await client.post("/s/talk/v1/completions", json=body, headers=headers)).is_success
                return len((await client.get("/s/talk", headers=headers)).json()["turns"])

            assert [await ask("two"), await ask("two")] == [1, 2]
            keys_file(keys, ann="one", bob="three")  # another person of the same name
            headers = {"Authorization": "Bearer three"}
            assert (await client.get("/s/talk", headers=headers)).status_code == 404
            assert await ask("three") == 1
            keys_file(keys, ann="one", bob="two")
            assert await ask("two") == 1

    asyncio.run(run())
    assert owners[0] == owners[1] == owners[3] != owners[2], "KV state is not shared with the other person"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_its_client_cuts_off_is_in_the_session(
    model: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, push, taken = make(model), AnswerStream.push, list[AnswerStream]()

    def noting(answer: AnswerStream, drawn: Any) -> Any:
        taken.append(answer)
        return push(answer, drawn)

    monkeypatch.setattr(AnswerStream, "push", noting)

    async def run() -> list[dict[str, Any]]:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": "Once", "max_tokens": 900, "n": 2, "seed": 1, "stream": stream}
            asked = asyncio.create_task(client.post("/s/talk/v1/completions", json=body))
            await until(lambda: len({*map(id, taken)}) == 2)
            asked.cancel()
            await asyncio.wait({asked})
            await until(lambda: not server.open_rows.total())
            return (await client.get("/s/talk")).json()["turns"]

    turns = asyncio.run(run())
    assert [turn["finish_reason"] for turn in turns] == [None, None]
    for turn in turns:
        assert 0 < len(turn["token_ids"]) == len(turn["logprobs"]) < 900


def test_a_session_has_the_models_of_the_server(model: Path) -> None:
    async def run() -> list[httpx2.Response]:
        async with asking(make(model)) as client:
            return [await client.get(f"/s/{name}/v1/models/tiny") for name in ("talk", "a b")]

    found, odd = asyncio.run(run())
    assert found.json()["id"] == "tiny"
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "session")


def test_a_session_is_read_as_often_as_the_key_may_ask(model: Path) -> None:
    access = Access([Client("ann", digest(b"key"), requests_per_minute=3)])
    server = make(model, access=access)
    headers = {"Authorization": "Bearer key"}

    async def run() -> list[httpx2.Response]:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": "Once", "max_tokens": 2}
            for _ in range(2):
                await client.post("/s/talk/v1/completions", json=body, headers=headers)
            return [await client.get("/s/talk", headers=headers) for _ in range(2)]

    read, refused = asyncio.run(run())
    turns = read.json()["turns"]
    assert (len(turns), turns[0]["token_ids"] != []) == (2, True)
    assert refused.status_code == 429


def test_requests_that_come_together_do_not_exceed_a_rate_of_tokens(model: Path) -> None:
    access = Access([Client("ann", digest(b"key"), tokens_per_minute=300)])
    server = make(model, access=access)
    assert statuses(server, 5, 3, max_tokens=200) == [200] * 2 + [429] * 3


def test_the_prompt_of_a_client_that_leaves_before_the_first_token_counts_for_its_rate(model: Path) -> None:
    ann = Client("ann", digest(b"key"), tokens_per_minute=100)
    server = make(model, access=Access([ann]))

    async def run() -> int:
        async with asking(server) as client:
            headers = {"Authorization": "Bearer key"}
            body = {"model": "tiny", "prompt": "word " * 300, "max_tokens": 2}
            with resting(server):
                asked = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
                await until(lambda: server.decoder.waiting == 1)
                asked.cancel()
                await asyncio.wait({asked})
            reply = await client.post("/v1/completions", json=body | {"prompt": "Once"}, headers=headers)
            return int(reply.status_code)

    assert asyncio.run(run()) == 429


def test_an_answer_is_sent_and_logged_although_the_ledger_cannot_be_written(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(model, ledger=Ledger(tmp_path / "ledger.db"))

    async def run() -> httpx2.Response:
        async with asking(server) as client:
            with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
                other.execute("DROP TABLE requests")
            return await client.post(
                "/v1/completions", json={"model": "tiny", "prompt": "Once", "stream": True}
            )

    with caplog.at_level(logging.INFO, "envkit.serving"):
        reply = asyncio.run(run())
    assert reply.text.endswith("data: [DONE]\n\n")
    assert "no such table" in caplog.text
    assert "anyone asked tiny" in caplog.text


def test_a_fault_with_one_request_leaves_the_decoder_alive(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(model)
    versions = iter(["no name of a version"] * 2)  # a request asks for it before and after it is encoded

    def find(name: str) -> ModelEntry:
        return ModelEntry(next(versions, None), 0)

    def broken(*parts: object) -> None:
        raise ValueError("an unknown fault")

    monkeypatch.setattr(server.models, "find", find)
    monkeypatch.setattr(server.models, "register", broken)

    async def run() -> list[int]:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": "Once"}
            return [(await client.post("/v1/completions", json=body)).status_code for _ in range(2)]

    assert asyncio.run(run()) == [503, 200]
    assert "an unknown fault" in caplog.text


def test_the_base_is_by_default_that_of_the_adapters(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(model: str, display: object) -> None:
        raise UsageError(f"asked for {model}")

    monkeypatch.setattr("envkit.models.resolve", asked)
    shutil.copytree(adapters / "red", tmp_path / "red")
    (tmp_path / "red" / BASE).write_text(json.dumps({"model": "smollm2-135m-q4", "digest": "0" * 64}))
    for model, expected in (("", "smollm2-135m-q4"), ("another", "another")):
        with pytest.raises(UsageError, match=f"asked for {expected}"):
            serve(ServeConfig(model, adapters={"red": tmp_path / "red"}, port=0), Silent())
    with pytest.raises(UsageError, match=r"asked for qwen2\.5-coder-0\.5b-q4"):
        serve(ServeConfig(port=0), Silent())


def test_an_adapter_of_a_run_is_always_its_newest_checkpoint(
    model: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Callable[[], Path]] = {}

    def models(base: str, base_folder: Path, named: dict[str, Callable[[], Path]], *others: object) -> None:
        given.update(named)
        raise UsageError("enough")

    monkeypatch.setattr("envkit.serving.models.Models", models)
    old, new = (tmp_path / "checkpoints" / f"step-{step:06d}" for step in (10, 20))
    shutil.copytree(adapters / "red", old)
    with pytest.raises(UsageError, match="enough"):
        serve(ServeConfig(str(model), adapters={"sql": tmp_path}, port=0), Silent())
    assert given["sql"]() == old
    shutil.copytree(adapters / "blue", new)
    shutil.rmtree(old)  # as training does that goes on
    assert given["sql"]() == new


def test_what_cannot_be_served_is_told_before_the_model_is_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.db").write_text("no ledger")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="finds no NVIDIA GPU"):
        serve(ServeConfig("mistyped", port=0, device="cuda"), Silent())
    with pytest.raises(StoreError, match="cannot be used as a ledger"):
        serve(ServeConfig("mistyped", port=0, ledger=tmp_path / "notes.db"), Silent())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(ServeConfig("mistyped", port=port), Silent())
    with pytest.raises(ModelError, match="model 'mistyped': found nothing"):
        serve(ServeConfig("mistyped", port=0), Silent())


def test_vllm_gets_the_dtype_of_the_device_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envkit.runs.folder.machine.cpu_dtype", lambda say: "float32")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    for has_gpu, vllm in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert _dtype(ServeConfig(engine="vllm")) == vllm
        assert _dtype(ServeConfig()) == "float32"


def entries(path: Path) -> list[tuple[str, int, int]]:
    """Outcome, prompt tokens and completion tokens of each request in a ledger."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        return ledger.execute("SELECT outcome, prompt_tokens, completion_tokens FROM requests").fetchall()


def test_a_client_that_leaves_pays_for_the_prompts_that_were_read(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    server = make(model, ledger=Ledger(path), max_rows=1)
    prompts = [[number + 3] * 50 for number in range(4)]

    async def run() -> None:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": prompts, "max_tokens": 400, "temperature": 1, "stream": True}
            asked = asyncio.create_task(client.post("/v1/completions", json=body))
            await until(lambda: server.decoder.running == 1)
            await asyncio.sleep(0.2)  # for its first tokens
            asked.cancel()
            await asyncio.wait({asked})
            await until(lambda: len(entries(path)) == 1)

    asyncio.run(run())
    [(outcome, read, _)] = entries(path)
    assert (outcome, read) == ("cancelled", 50)


def test_nobody_is_billed_for_a_fault_of_the_server(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    server = make(model, ledger=Ledger(path))

    def broken(answer: AnswerStream, drawn: object) -> None:
        raise ValueError("an unknown fault")

    monkeypatch.setattr(AnswerStream, "push", broken)

    async def run() -> int:
        async with asking(server) as client:
            body = {"model": "tiny", "prompt": "Once"}
            return int((await client.post("/v1/completions", json=body)).status_code)

    assert asyncio.run(run()) == 500
    assert [outcome for outcome, *_ in entries(path)] == ["failed"]
