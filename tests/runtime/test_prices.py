"""Prices: a dated table with sources, strict price files, and no guesses for unknown models."""

from __future__ import annotations

from pathlib import Path

import pytest

from envkit.errors import ConfigError, UnpricedError
from envkit.runtime.prices import Price, load_prices


def test_the_shipped_table_is_dated_and_sourced() -> None:
    table = load_prices()
    assert table.date == "2026-11-24"
    assert table.source
    assert len(table.models) >= 40
    assert table.of("gpt-4-0613") == Price(30.0, 60.0)
    assert "2023" in table.notes["gpt-4-0613"]
    assert all(price.output >= price.input > 0 for price in table.models.values())
    assert all(price.cached is None or price.cached <= price.input for price in table.models.values())


def test_cost_adds_fresh_cached_and_written_tokens() -> None:
    price = Price(2.0, 8.0, 0.5)
    assert price.cost_usd(1_000_000, 0) == 2.0
    assert price.cost_usd(1_000_000, 500_000, 1_000_000) == 4.5
    assert Price(2.0, 8.0).cost_usd(1_000_000, 0, 1_000_000) == 2.0


def test_an_unknown_model_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnpricedError, match=r'no price for \'abacus-1\'.*--prices.*\[models."abacus-1"\]'):
        load_prices().of("abacus-1")
    with pytest.raises(UnpricedError, match="no price for machine 'abacus'; there is: cpu-2-cores"):
        load_prices().hourly_usd("abacus")


def test_a_price_file_extends_and_overrides_the_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'date = "2027-01-01"\nsource = "my invoice"\n[models."abacus-1"]\ninput = 1\noutput = 2.5\n'
        '[models."gpt-5.6"]\ninput = 3.0\noutput = 4.0\n[machines]\ncpu-2-cores = 0.01\n'
    )
    table = load_prices(file)
    assert table.of("abacus-1") == Price(1.0, 2.5)
    assert table.of("gpt-5.6") == Price(3.0, 4.0)
    assert table.of("gpt-4-0613") == Price(30.0, 60.0)
    assert table.hourly_usd("cpu-2-cores") == 0.01
    assert table.notes["abacus-1"] == "my invoice"
    assert "2027-01-01" in table.date
    assert "my invoice" in table.source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date = ", "not TOML"),
        ('date = "x"', "lacks 'source'"),
        ('date = "x"\nsource = "y"\nmodel = 1', "unknown key 'model'"),
        ('date = "x"\nsource = "y"\n[models.a]\ninput = -1\noutput = 1', "models.a: input is -1"),
        ('date = "x"\nsource = "y"\n[models.a]\ninput = 1', "models.a: output is None"),
        ('date = "x"\nsource = "y"\n[models.a]\ninput = true\noutput = 1', "models.a: input is True"),
        ('date = "x"\nsource = "y"\n[models.a]\ninput = nan\noutput = 1', "models.a: input is nan"),
        ('date = "x"\nsource = "y"\n[models]\na = 3', "models.a: expected a table"),
        ('date = "x"\nsource = "y"\n[machines]\na = "1"', "machines: a is '1'"),
    ],
)
def test_an_invalid_price_file_is_refused_with_the_fault(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
