"""API keys: what their file may say, and how rates are counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from envkit.errors import ConfigError
from envkit.serving.guards.access import Access, Client, RateLimits, digest, read_access

SHA = "0" * 64


def test_a_key_is_found_by_its_digest() -> None:
    ann = Client("ann", digest(b"right"))
    access = Access([ann])
    assert access.client("Bearer right") == ann
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
    assert client == Client("ann", sha256)


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
        ("[keys.a]", "sha256 is missing"),
        ('[keys.a]\nsha256 = "secret"', "sha256 is another text; expected 64 hex digits"),
        (f'[keys.a]\nsha256 = "{SHA}"\nrate = 1', "unknown key 'rate'"),
        ('[keys]\na = "secret"', "keys.a is a text; expected a table"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmodels = "secret"', "models is a text; expected a list"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmax_rows = "secret"', "max_rows is a text; expected an integer"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmax_tokens = -1', "max_tokens is -1"),
        (f'[keys.a]\nsha256 = "{SHA}"\nmax_rows = 0', "max_rows is 0"),
        (f'[keys.a]\nsha256 = "{SHA}"\nadmin = 1', "admin is a number, date or time"),
        (f'[keys.a]\nsha256 = "{SHA}"\n[keys.b]\nsha256 = "{SHA}"', "are the same key"),
        ("[keys", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_access(path)
    assert "secret" not in str(caught.value)


def table(name: str, key: str, more: str = "") -> str:
    return f'[keys.{name}]\nsha256 = "{digest(key.encode())}"\n{more}\n'


def test_keys_come_change_and_go_with_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(table("ann", "one") + table("bob", "two"))
    access = read_access(path)
    path.write_text(table("ann", "one", "max_rows = 3") + table("cid", "three"))
    assert access.client("Bearer two") is None
    assert access.client("Bearer one") == Client("ann", digest(b"one"), max_rows=3)
    assert access.client("Bearer three") == Client("cid", digest(b"three"))
    assert access.digests == {digest(b"one"), digest(b"three")}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "2 API keys are in force; new: cid; gone: bob" in caplog.text
    new = tmp_path / "new.toml"
    new.write_text(table("cid", "four"))
    new.replace(path)
    assert access.client("Bearer three") is None
    assert access.client("Bearer four") == Client("cid", digest(b"four"))
    assert "1 API keys are in force; new: cid; gone: ann, cid" in caplog.text


@pytest.mark.parametrize("text", ["", "[keys", '[keys.ann]\nsha256 = "secret"\n', None])
def test_keys_stay_in_force_if_the_new_file_is_not_valid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(table("ann", "one"))
    access = read_access(path)
    path.unlink() if text is None else path.write_text(text)
    for _ in range(2):
        assert access.client("Bearer one") == Client("ann", digest(b"one"))
        assert access.client("Bearer two") is None
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "the old ones stay in force" in caplog.text
    assert "secret" not in caplog.text
    path.write_text(table("bob", "two"))
    assert access.client("Bearer one") is None
    assert access.client("Bearer two") == Client("bob", digest(b"two"))


def test_a_changed_rate_counts_at_once() -> None:
    rates = RateLimits(lambda: 0.0)
    few, many = (Client("ann", requests_per_minute=count) for count in (1, 3))
    assert rates.enter(few) == 0
    assert rates.enter(few) > 0
    assert [rates.enter(many) > 0 for _ in range(4)] == [False, False, False, True]
    assert rates.enter(few) > 0
