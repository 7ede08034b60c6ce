"""The model id `auto`: a router sends each request to a specialist or to the base."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tiny
from app_server import asking, make

from envkit.engine.chat import ChatRenderer
from envkit.engine.early import EarlyLayers
from envkit.engine.running import RunningBatch
from envkit.models import ModelRef
from envkit.runs.adapter import adapter_folder
from envkit.runtime.prices import load_prices
from envkit.serving.decoding.router import AUTO, Router, fit
from envkit.serving.guards.access import Access, Client, digest
from envkit.serving.ledger import Ledger
from envkit.serving.models import Models
from envkit.serving.server import Server

#: PEFT uses what transformers warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

#: What the specialists' tasks look like, and what resembles neither.
TASKS = {"red": "Count the {} apples.", "blue": "def f(x): return x + {}  # fix it"}
OTHER = "Zebras!? (((( 000 )))) \n\n\n {}"


def ids(text: str) -> tuple[int, ...]:
    return ChatRenderer(tiny.tokenizer()).messages([{"role": "user", "content": text}])


@pytest.fixture(scope="module")
def router(model: Path) -> Router:
    early = EarlyLayers(tiny.engine(ModelRef("tiny", model, "")), 2)

    def features(numbers: range) -> dict[str, np.ndarray[Any, Any]]:
        return {name: early.means([ids(text.format(n)) for n in numbers]) for name, text in TASKS.items()}

    return fit(features(range(40)), features(range(100, 200)), layers=2, tokens=64, base_digest="")


def ask(server: Server, *bodies: Mapping[str, Any], key: str = "") -> list[httpx2.Response]:
    """Send chats one after another, or texts where there is a prompt."""

    async def run() -> list[httpx2.Response]:
        async with asking(server) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return [
                await client.post(
                    "/v1/completions" if "prompt" in body else "/v1/chat/completions",
                    json={"model": AUTO, "max_tokens": 2, **body},
                    headers=headers,
                )
                for body in bodies
            ]

    return asyncio.run(run())


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]}


def test_each_request_is_answered_by_the_specialist_of_its_task(
    model: Path, adapters: Path, router: Router, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.db"
    server = make(model, adapters, router=router, ledger=Ledger(ledger))
    replies = ask(
        server,
        *(chat(TASKS[name].format(7)) for name in ("red", "blue", "red")),
        chat(OTHER.format(7)),
        {"prompt": [*ids(TASKS["blue"].format(8))]},
    )
    assert [reply.json()["model"] for reply in replies] == ["red", "blue", "red", "tiny", "blue"]
    book = Ledger(ledger)
    assert {line.model: line.requests for line in book.bill(load_prices())} == {
        "red": 2,
        "blue": 2,
        "tiny": 1,
    }
    book.close()
    text = server.metrics.render().decode()
    assert 'envkit_routed_total{model="red"} 2.0' in text
    assert "envkit_routing_seconds_count 5.0" in text


def test_the_answer_is_the_one_of_the_chosen_model(model: Path, adapters: Path, router: Router) -> None:
    question = {**chat(TASKS["red"].format(9)), "seed": 1, "max_tokens": 8}
    routed, named, base = ask(
        make(model, adapters, router=router),
        question,
        {**question, "model": "red"},
        {**question, "model": "tiny"},
    )
    assert routed.json()["choices"] == named.json()["choices"] != base.json()["choices"]


def test_a_conversation_keeps_its_specialist_whatever_follows(
    model: Path, adapters: Path, router: Router
) -> None:
    talk = chat(TASKS["red"].format(3), "Six.", TASKS["blue"].format(3), "x", TASKS["blue"].format(4))
    [reply] = ask(make(model, adapters, router=router), talk)
    assert reply.json()["model"] == "red"


def test_a_conversation_that_a_system_message_begins_is_routed_as_a_whole(
    model: Path, adapters: Path, router: Router
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": TASKS["red"].format(3)},
    ]
    [reply] = ask(make(model, adapters, router=router), {"messages": messages})
    assert reply.status_code == 200


def test_requests_are_read_one_between_two_tokens_of_the_others(
    model: Path, adapters: Path, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model, adapters, router=router)
    order: list[str] = []
    means, tick = EarlyLayers.means, RunningBatch.tick

    def note_read(self: EarlyLayers, prompts: Any) -> Any:
        order.append("read")
        return means(self, prompts)

    def note_tick(self: RunningBatch) -> Any:
        order.append("tick")
        return tick(self)

    monkeypatch.setattr(EarlyLayers, "means", note_read)
    monkeypatch.setattr(RunningBatch, "tick", note_tick)

    async def run() -> None:
        async with asking(server) as client:
            body = {"model": AUTO, "max_tokens": 4, **chat(TASKS["red"].format(1))}
            found = [client.post("/v1/chat/completions", json=body) for _ in range(6)]
            assert {reply.json()["model"] for reply in await asyncio.gather(*found)} == {"red"}

    asyncio.run(run())
    assert order.count("read") == 6
    assert "read read" not in " ".join(order)


def test_a_request_that_is_routed_takes_one_place_among_what_waits(
    model: Path, adapters: Path, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model, adapters, router=router, max_waiting=2)
    means, go_on = EarlyLayers.means, threading.Event()

    def slow(self: EarlyLayers, prompts: Any) -> Any:
        go_on.wait(10)
        return means(self, prompts)

    monkeypatch.setattr(EarlyLayers, "means", slow)

    async def run() -> list[int]:
        async with asking(server) as client:
            body = {"model": AUTO, "max_tokens": 2, **chat(TASKS["red"].format(1))}
            first = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            while not server.read_rows:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            while server.read_rows < 2 and not second.done():
                await asyncio.sleep(0.01)
            go_on.set()
            return [reply.status_code for reply in await asyncio.gather(first, second)]

    assert asyncio.run(run()) == [200, 200]


def test_a_stream_is_routed_too(model: Path, adapters: Path, router: Router) -> None:
    [reply] = ask(make(model, adapters, router=router), {**chat(TASKS["blue"].format(5)), "stream": True})
    assert '"model": "blue"' in reply.text


def test_auto_is_a_model_where_there_is_a_router(model: Path, adapters: Path, router: Router) -> None:
    async def listed(server: Server) -> tuple[list[str], httpx2.Response]:
        async with asking(server) as client:
            found = (await client.get("/v1/models")).json()["data"]
            return [one["id"] for one in found], await client.get(f"/v1/models/{AUTO}")

    names, shown = asyncio.run(listed(make(model, adapters, router=router)))
    assert names == ["tiny", "blue", "red", AUTO]
    assert (shown.json()["created"], shown.json()["parent"]) == (7, "tiny")
    access = Access([Client("ann", digest(b"key"), frozenset({AUTO}))])

    async def seen() -> list[str]:
        async with asking(make(model, adapters, router=router, access=access)) as client:
            found = await client.get("/v1/models", headers={"Authorization": "Bearer key"})
            return [one["id"] for one in found.json()["data"]]

    assert asyncio.run(seen()) == []
    names, shown = asyncio.run(listed(make(model, adapters)))
    assert names == ["tiny", "blue", "red"]
    assert shown.status_code == 404
    assert ask(make(model, adapters), chat("Hello"))[0].status_code == 404


@pytest.mark.parametrize(
    ("models", "task", "expected"),
    [
        ({AUTO, "blue", "tiny"}, "red", "tiny"),  # its specialist does not exist for this key
        ({AUTO, "blue"}, "red", "blue"),  # nor does the base
        ({AUTO, "red", "blue"}, "red", "red"),
        ({AUTO, "tiny"}, "red", "tiny"),
        ({AUTO}, "red", None),
        ({"red", "blue", "tiny"}, "red", None),
    ],
)
def test_a_key_is_routed_among_its_own_models(
    model: Path, adapters: Path, router: Router, models: set[str], task: str, expected: str | None
) -> None:
    access = Access([Client("ann", digest(b"key"), frozenset(models))])
    [reply] = ask(make(model, adapters, router=router, access=access), chat(TASKS[task].format(2)), key="key")
    if expected is None:
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    else:
        assert reply.json()["model"] == expected


def test_an_adapter_that_is_gone_is_not_chosen(
    model: Path, adapters: Path, router: Router, tmp_path: Path
) -> None:
    (tmp_path / "blue").symlink_to(adapters / "blue")  # leads out of the folder, so it is none
    [reply] = ask(make(model, tmp_path, router=router), chat(TASKS["blue"].format(2)))
    assert reply.json()["model"] == "tiny"


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_named_adapter_whose_files_are_gone_is_not_chosen(
    model: Path, adapters: Path, router: Router, tmp_path: Path, lost: str
) -> None:
    shutil.copytree(adapters / "blue", tmp_path / "blue")
    server = make(model, router=router)
    named = {"blue": partial(adapter_folder, tmp_path / "blue")}
    server.models = Models("tiny", model, named, None, lambda folder: None, list)
    (tmp_path / "blue" / lost).unlink()
    [reply] = ask(server, chat(TASKS["blue"].format(2)))
    assert reply.json()["model"] == "tiny"


def test_several_prompts_and_too_many_open_answers_are_refused(
    model: Path, adapters: Path, router: Router
) -> None:
    [several] = ask(make(model, adapters, router=router), {"prompt": ["a", "b"]})
    assert (several.status_code, several.json()["error"]["param"]) == (400, "prompt")
    server = make(model, adapters, router=router, max_waiting=1)
    server.read_rows = 1
    assert ask(server, chat("Hello"))[0].status_code == 503
    access = Access([Client("ann", digest(b"key"), max_open_rows=1)])
    server = make(model, adapters, router=router, access=access)
    server.open_rows["ann"] = 1
    assert ask(server, chat("Hello"), key="key")[0].status_code == 429
    server.open_rows["ann"] = 0  # or the end would wait for it
    access = Access([Client("ann", digest(b"key"), max_prompt_tokens=5)])
    server = make(model, adapters, router=router, access=access)
    assert ask(server, chat("Hello, here is more"), key="key")[0].status_code == 400
    assert "envkit_routing_seconds_count 0.0" in server.metrics.render().decode()


def test_a_fault_while_a_prompt_is_read_fails_its_request_only(
    model: Path, adapters: Path, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(model, adapters, router=router)
    means, broken = EarlyLayers.means, [True]

    def fail(self: EarlyLayers, prompts: Any) -> Any:
        if broken.pop():
            raise RuntimeError("no memory")
        return means(self, prompts)

    monkeypatch.setattr(EarlyLayers, "means", fail)
    broken[:] = [False, True]
    first, second = ask(server, chat(TASKS["red"].format(1)), chat(TASKS["red"].format(1)))
    assert first.status_code == 500
    assert second.json()["model"] == "red"
    assert server.decoder.waiting == 0
    assert not server.open_rows.total()
