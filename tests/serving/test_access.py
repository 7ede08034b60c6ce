"""API keys: what their file may say, and how rates are counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from envkit.errors import ConfigError
from envkit.serving.access import Access, Client, RateLimits, digest, read_access

SHA = "0" * 64


def test_a_key_is_found_by_its_digest() -> None:
    access = Access({digest(b"right"): Client("ann")})
    assert access.client("Bearer right") == Client("ann")
    for header in ("", "Bearer", "Bearer wrong", "Basic right", "right", "Bearer r\udcffght"):
        assert access.client(header) is None


@pytest.mark.parametrize("key", ["schlüssel", "à", "鍵"])
def test_a_key_is_the_same_in_the_file_and_in_the_header(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    sha256 = subprocess.run(["sha256sum", file], capture_output=True, check=True, text=True).stdout.split()[0]
    (tmp_path / "keys.toml").write_text(f'[keys.ann]\nsha256 = "{sha256}"\n')
    scope = {"type": "http", "headers": [(b"authorization", f"Bearer {key}".encode())]}
    client = read_access(tmp_path / "keys.toml").client(Headers(scope=scope)["authorization"])
    assert client == Client("ann")


def test_requests_refill_in_a_minute() -> None:
    now_s = [0.0]
    rates, ann = RateLimits(lambda: now_s[0]), Client("ann", requests_per_minute=2)
    assert [rates.enter(ann) for _ in range(2)] == [0, 0]
    assert rates.enter(ann) == 30
    assert rates.enter(Client("bob", requests_per_minute=2)) == 0
    now_s[0] = 30
    assert rates.enter(ann) == 0
    assert rates.enter(ann) == 30


def test_tokens_beyond_the_rate_are_waited_for() -> None:
    now_s = [0.0]
    rates, ann = RateLimits(lambda: now_s[0]), Client("ann", tokens_per_minute=60)
    assert rates.enter(ann) == 0
    assert rates.reserve(ann, 90) == 0
    assert rates.enter(ann) == 31
    assert rates.reserve(ann, 1) == 31
    now_s[0] = 31
    assert rates.enter(ann) == 0


def test_reserved_tokens_that_were_not_used_are_given_back() -> None:
    rates, ann = RateLimits(lambda: 0.0), Client("ann", tokens_per_minute=60)
    assert rates.reserve(ann, 500) == 0
    assert rates.reserve(ann, 1) > 0
    rates.give_back(ann, 490)
    assert rates.reserve(ann, 49) == 0
    assert rates.reserve(ann, 1) == 0
    assert rates.reserve(ann, 1) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected tables"),
        ("[keys]", "expected tables"),
        ("[keys.a]", "sha256 is None"),
        ('[keys.a]\nsha256 = "secret"', "expected 64 hex digits"),
        (f'[keys.a]\nsha256 = "{SHA}"\nrate = 1', "unknown key 'rate'"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmodels = "red"', "models is 'red'"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmax_tokens = -1', "max_tokens is -1"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmax_rows = 0', "max_rows is 0"),
        (f'[keys.a]\nsha256 = "{SHA}"\nadmin = 1', "admin is 1"),
        (f'[keys.a]\nsha256 = "{SHA}"\n[keys.b]\nsha256 = "{SHA}"', "are the same key"),
        ("[keys", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_access(path)
