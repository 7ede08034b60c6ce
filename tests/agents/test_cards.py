"""Agent cards: shipped ones are complete and priced; faults are named by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envkit import ConfigError
from envkit.agents.cards import Card, load_card, shipped_cards
from envkit.errors import UnpricedError
from envkit.runtime.prices import Price, load_prices

ENDPOINTS = {
    "claude-haiku-5-5": "https://api.anthropic.com/v1/",
    "claude-opus-5-5": "https://api.anthropic.com/v1/",
    "claude-sonnet-5-5": "https://api.anthropic.com/v1/",
    "deepseek-v4-flash": "https://api.deepseek.com/",
    "deepseek-v4-pro": "https://api.deepseek.com/",
    "gemini-3.1-pro-preview": "https://generativelanguage.googleapis.com/v1beta/openai/",
    "gemini-3.8-flash": "https://generativelanguage.googleapis.com/v1beta/openai/",
    "gpt-5.4-mini": "https://api.openai.com/v1/",
    "gpt-5.6": "https://api.openai.com/v1/",
    "ollama": "http://localhost:11434/v1/",
    "qwen3-coder-plus": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1/",
    "vllm": "http://localhost:8000/v1/",
}
WHOLE = """\
model = "m"
base_url = "https://host/v1"
key_env = "SOME_KEY"
mode = "tools"
price = "gpt-5.6"
token_limit = "max_tokens"
temperature = false
concurrency = 2
timeout_s = 30
[request]
reasoning_effort = "high"
extra = { nested = [1, 2] }
"""


def card(**changes: Any) -> Card:
    fields: dict[str, Any] = {"name": "n", "model": "m", "base_url": "https://h/v1", "key_env": "KEY"}
    return Card(**{**fields, "price": "gpt-5.6", **changes})


def test_names_of_shipped_cards() -> None:
    assert {name: load_card(name).base_url for name in shipped_cards()} == ENDPOINTS


@pytest.mark.parametrize("name", ENDPOINTS)
def test_shipped_card_has_its_file_name_a_price_and_a_key_unless_local(name: str) -> None:
    found = load_card(name)
    assert found.name == name
    local = "localhost" in found.base_url
    assert (found.price_in(load_prices()) == Price(0.0, 0.0)) == local == bool(found.machine)
    assert bool(found.key_env) != local
    assert local or found.price == found.model


def test_file_with_every_field(tmp_path: Path) -> None:
    path = tmp_path / "mine-1.5.toml"
    path.write_text(WHOLE)
    assert load_card(str(path)) == Card(
        name="mine-1.5",
        model="m",
        base_url="https://host/v1",
        key_env="SOME_KEY",
        mode="tools",
        price="gpt-5.6",
        token_limit="max_tokens",
        temperature=False,
        concurrency=2,
        timeout_s=30.0,
        request={"reasoning_effort": "high", "extra": {"nested": [1, 2]}},
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("modle = 'x'", "the card has the unknown field 'modle'"),
        ("timeout_s = 'long'", "the card.timeout_s is 'long'; expected float"),
        ("concurrency = true", "the card.concurrency is True; expected int"),
        ("concurrency = 0", "concurrency is 0; it must be at least 1"),
        ("timeout_s = 0", "timeout_s is 0.0; it must be above 0"),
        ("timeout_s = inf", "timeout_s is inf"),
        ("mode = 'chat'", "mode is 'chat'; expected one of: text, tools"),
        (
            "token_limit = 'tokens'",
            "token_limit is 'tokens'; expected one of: max_completion_tokens, max_tokens",
        ),
        ("machine = 'h100'", "give either price (paid by the token) or machine (paid by the hour)"),
        ("base_url = 'host/v1'", "base_url must be like https://host/v1"),
        ("base_url = 'ftp://host/v1'", "base_url must be like"),
        ("base_url = 'https://u:p@host/v1'", "base_url must be like"),
        ("base_url = 'https://host/v1?key=k'", "base_url must be like"),
        ("model = ''", "model is empty"),
        ("request = 3", "request is 3; expected a table"),
        ("request = { stream = true }", "request.stream is set by envkit; leave it out"),
        ("request = { max_tokens = 9 }", "request.max_tokens is set by envkit"),
        ("request = { from = 2026-01-01 }", "request cannot be sent as JSON"),
        ("request = { top_p = nan }", "request cannot be sent as JSON"),
        ("= 3", "not TOML"),
    ],
)
def test_wrong_field_is_refused_by_file_and_key(tmp_path: Path, line: str, message: str) -> None:
    kept = [kept for kept in WHOLE.split("[request]")[0].splitlines() if kept.split()[0] != line.split()[0]]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ConfigError) as raised:
        load_card(str(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["model", "base_url", "key_env"])
def test_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(line for line in WHOLE.splitlines() if not line.startswith(missing)))
    with pytest.raises(ConfigError, match=f"lacks the field '{missing}'"):
        load_card(str(path))


@pytest.mark.parametrize("key", ["sk-proj-abc123", "AIzaSyDabcdef", "abc", "A B"])
def test_secret_in_a_wrong_field_is_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="the name of an environment variable") as raised:
        card(key_env=key)
    assert key not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read \(No such file"):
        load_card(str(tmp_path / "gone.toml"))
    (tmp_path / "latin.toml").write_bytes(b"model = '\xe9'")
    with pytest.raises(ConfigError, match=r"latin\.toml: not TOML"):
        load_card(str(tmp_path / "latin.toml"))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"no card is named 'gpt-9'; choose one of: claude-haiku-5-5, .* or give the path of a \.toml",
    ):
        load_card("gpt-9")


def test_unpriced_model_is_refused() -> None:
    with pytest.raises(UnpricedError, match="no price for 'unheard-of'"):
        card(price="unheard-of").price_in(load_prices())
    with pytest.raises(UnpricedError, match="no price for machine 'abacus'"):
        card(price="", machine="abacus").price_in(load_prices())
