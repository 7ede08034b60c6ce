"""Models that environments ask: one request a question, within a budget, and answers that are kept."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, Body, Say, completion, refusal
from judged_letters import KEY, forget, fresh_models, prompt, write_card
from starlette.responses import Response

from envkit.agents.asking import CachedModel, open_model
from envkit.errors import ConfigError, ModelUnavailable, SandboxError, StoreError

Serve = Callable[[Say], Api]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    with fresh_models(tmp_path / "cache"):
        yield tmp_path / "cache"


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., CachedModel]:
    return lambda url, **fields: open_model(str(write_card(tmp_path, "card", url, **fields)))


def numbered(body: Body, number: int) -> Response:
    return completion(f"answer {number}")


def test_a_question_is_asked_once_also_by_later_processes(
    serve: Serve, opened: Callable[..., CachedModel]
) -> None:
    api = serve(numbered)
    assert [opened(api.url).ask("Hm?", 1) for _ in range(2)] == ["answer 0"] * 2
    forget()
    assert opened(api.url).ask("Hm?", 1) == "answer 0"
    assert api.asked == [
        {
            "model": "card",
            "messages": [{"role": "user", "content": "Hm?"}],
            "max_completion_tokens": 1024,
            "temperature": 0.0,
        }
    ]


def test_another_prompt_seed_temperature_or_card_is_another_question(
    serve: Serve, opened: Callable[..., CachedModel]
) -> None:
    api = serve(numbered)
    model = opened(api.url)
    answers = [model.ask("Hm?", 1), model.ask("Hm!", 1), model.ask("Hm?", 2), model.ask("Hm?", 1, 0.5)]
    forget()
    answers.append(opened(api.url, model="other").ask("Hm?", 1))
    assert answers == [f"answer {number}" for number in range(5)]


def test_a_kept_answer_needs_no_key(
    serve: Serve, opened: Callable[..., CachedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = serve(numbered)
    opened(api.url).ask("Hm?", 1)
    forget()
    monkeypatch.delenv("TEST_API_KEY")
    assert opened(api.url).ask("Hm?", 1) == "answer 0"
    with pytest.raises(ConfigError, match="card card: TEST_API_KEY is not set; put the provider's key there"):
        opened(api.url).ask("Hm?", 2)


def test_threads_that_ask_the_same_at_once_pay_once(serve: Serve, opened: Callable[..., CachedModel]) -> None:
    api = serve(numbered)
    model = opened(api.url)
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda number: model.ask("Hm?", number % 2), range(8))]
    assert len(api.asked) == 2
    assert answers == answers[:2] * 4


def test_processes_that_ask_the_same_at_once_pay_once(serve: Serve, tmp_path: Path, cache: Path) -> None:
    asked = threading.Event()

    async def slow(body: Body, number: int) -> Response:
        import asyncio

        asked.set()
        await asyncio.sleep(0.5)
        return completion(f"answer {number}")

    api = serve(slow)
    card = write_card(tmp_path, "card", api.url)
    program = (
        "import sys; from envkit.agents.asking import open_model; "
        "print(open_model(sys.argv[1]).ask('Hm?', 1))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", program, card], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in running] == ["answer 0\n"] * 2
    assert asked.is_set()
    assert len(api.asked) == 1


def test_no_call_is_made_that_might_exceed_the_budget(
    serve: Serve, opened: Callable[..., CachedModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = serve(numbered)
    prices = tmp_path / "prices.toml"
    # 20 prompt tokens and 3 of the answer cost $1.06; at most, the call costs a bit over $51.
    prices.write_text(
        'date = "2026-01-01"\nsource = "a test"\n[models.m]\ninput = 50_000.0\noutput = 20_000.0\n'
    )
    monkeypatch.setenv("ENVKIT_PRICES", str(prices))
    monkeypatch.setenv("ENVKIT_ASK_BUDGET_USD", "75")
    model = opened(api.url, price="m", max_completion_tokens=50)
    answers = (model.ask("Hm?", seed) for seed in range(50))
    with pytest.raises(ConfigError) as refused:
        list(answers)
    assert 10 < len(api.asked) < 20
    assert str(refused.value).startswith("the budget of $75 is used up: $")
    assert str(refused.value).endswith("set ENVKIT_ASK_BUDGET_USD to more")
    assert model.ask("Hm?", 0) == "answer 0"


@pytest.mark.parametrize("budget", ["much", "-1", "nan"])
def test_a_budget_that_is_no_amount_is_refused(
    opened: Callable[..., CachedModel], monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    monkeypatch.setenv("ENVKIT_ASK_BUDGET_USD", budget)
    with pytest.raises(ConfigError, match=f"ENVKIT_ASK_BUDGET_USD is '{budget}'; expected dollars"):
        opened("http://127.0.0.1:9/v1")


def test_a_model_without_a_price_is_refused(opened: Callable[..., CachedModel]) -> None:
    with pytest.raises(ConfigError, match=r"no price for 'dear' .*; set ENVKIT_PRICES to a price table"):
        opened("http://127.0.0.1:9/v1", price="dear")


def test_a_failure_that_passes_is_retried(serve: Serve, opened: Callable[..., CachedModel]) -> None:
    api = serve(lambda body, n: refusal(503, "busy") if n == 0 else completion("fine"))
    assert opened(api.url).ask("Hm?", 1) == "fine"
    assert len(api.asked) == 2


def test_a_model_that_is_down_is_unavailable_and_then_asked_once_until_it_answers(
    serve: Serve, opened: Callable[..., CachedModel]
) -> None:
    api = serve(lambda body, n: refusal(503, "closed") if n < 5 else completion("fine"))
    model = opened(api.url)
    with pytest.raises(ModelUnavailable, match="card does not answer: 503: closed"):
        model.ask("Hm?", 1)
    assert len(api.asked) == 3, "two attempts and a probe"
    with pytest.raises(ModelUnavailable):
        model.ask("Hm?", 1)
    assert len(api.asked) == 5, "one attempt and a probe"
    assert model.ask("Hm?", 1) == "fine"


@pytest.mark.parametrize("status", [400, 413, 500])
def test_a_prompt_that_alone_is_not_answered_does_not_count_as_a_model_that_is_down(
    serve: Serve, opened: Callable[..., CachedModel], status: int
) -> None:
    """The agent wrote a part of it: an episode that is void would spare it a bad grade."""
    api = serve(lambda body, n: refusal(status, "no") if "poison" in prompt(body) else completion("yes"))
    with pytest.raises(
        SandboxError, match=f"card does not answer one prompt, but others: .*{status}"
    ) as found:
        opened(api.url).ask("poison", 1)
    assert not isinstance(found.value, ModelUnavailable)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "the key in TEST_API_KEY is refused"), (404, "there is no model")]
)
def test_a_model_that_refuses_all_prompts_is_an_error_of_the_setup(
    serve: Serve, opened: Callable[..., CachedModel], status: int, words: str
) -> None:
    api = serve(lambda body, n: refusal(status, "no"))
    with pytest.raises(ConfigError, match=words):
        opened(api.url).ask("Hm?", 1)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_or_withheld_is_empty_and_kept(
    serve: Serve, opened: Callable[..., CachedModel], finish: str
) -> None:
    api = serve(lambda body, n: completion("yes", finish=finish))
    assert [opened(api.url).ask("Hm?", 1) for _ in range(2)] == ["", ""]
    assert len(api.asked) == 1


def test_neither_key_nor_prompt_are_kept_or_logged(
    serve: Serve, opened: Callable[..., CachedModel], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="envkit")
    caplog.set_level(logging.INFO)
    api = serve(lambda body, n: completion(f"You sent {KEY}."))
    assert opened(api.url).ask("the hidden question", 1) == "You sent [key]."
    assert api.headers[0]["authorization"] == f"Bearer {KEY}"
    (kept,) = cache.rglob("*.json")
    for text in (kept.read_text(), str(kept), caplog.text):
        assert KEY not in text
        assert "hidden question" not in text
    assert json.loads(kept.read_text())["usage"]["prompt_tokens"] == 20


def test_a_damaged_answer_is_named(serve: Serve, opened: Callable[..., CachedModel], cache: Path) -> None:
    api = serve(numbered)
    model = opened(api.url)
    model.ask("Hm?", 1)
    (kept,) = cache.rglob("*.json")
    kept.write_text("{")
    with pytest.raises(StoreError, match=f"{kept} holds no answer .*; remove it to ask again"):
        model.ask("Hm?", 1)
    kept.unlink()
    assert model.ask("Hm?", 1) == "answer 1"


def test_no_more_requests_run_at_once_than_the_card_allows(
    serve: Serve, opened: Callable[..., CachedModel]
) -> None:
    async def slow(body: Body, number: int) -> Any:
        import asyncio

        await asyncio.sleep(0.05)
        return completion("x")

    api = serve(slow)
    model = opened(api.url, concurrency=2)
    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(lambda seed: model.ask("Hm?", seed), range(6))] == ["x"] * 6
    assert api.most_at_once == 2
