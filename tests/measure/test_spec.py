"""Specifications: read strictly, with paths relative to their folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envkit.errors import ConfigError
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec, from_toml

GOOD = """
samples = 2
[[environments]]
name = "code-editor"
tasks = "debugbench:items.jsonl"
[[agents]]
name = "oracle"
script = "oracle"
[[agents]]
name = "trained"
adapter = "adapter"
temperature = 1
[[agents]]
name = "gpt"
card = "gpt-5.6"
[[agents]]
name = "old"
recorded = "gpt-4-0613"
"""


def read(tmp_path: Path, text: str) -> BenchSpec:
    (tmp_path / "items.jsonl").touch()
    (tmp_path / "adapter").mkdir(exist_ok=True)
    file = tmp_path / "spec.toml"
    file.write_text(text)
    return from_toml(file)


def test_a_spec_names_environments_and_agents(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    assert spec.environments == (EnvironmentSpec("code-editor", f"debugbench:{tmp_path / 'items.jsonl'}"),)
    assert [row.name for row in spec.agents] == ["oracle", "trained", "gpt", "old"]
    assert spec.agents[1].adapter == str(tmp_path / "adapter")
    assert spec.agents[2].card == "gpt-5.6"
    filled = [spec.of(row) for row in spec.agents]
    assert [row.samples for row in filled] == [1, 2, 2, 1]
    assert [row.temperature for row in filled] == [0.7, 1.0, 0.7, 0.7]
    assert {row.max_completion_length for row in filled} == {384}
    stops = replace(spec, stop_strings=(".",)), replace(spec.agents[1], stop_strings=())
    assert [stops[0].of(row).stop_strings for row in (spec.agents[1], stops[1])] == [(".",), ()]
    bound = replace(spec, max_context_length=512), replace(spec.agents[1], max_context_length=0)
    assert [bound[0].of(row).max_context_length for row in (spec.agents[1], bound[1])] == [512, 0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("samples = 2", "samples = 0", "samples is 0"),
        ("samples = 2", "sample = 2", "unknown field 'sample'"),
        ("samples = 2", 'samples = "2"', "samples is '2'; expected int"),
        ('script = "oracle"', "", "give one of script"),
        ('script = "oracle"', 'script = "oracle"\ncard = "x"', "give one of script"),
        ('name = "old"', 'name = "gpt"', "names of agents must be unique"),
        ('name = "old"', 'name = "../old"', "it names a file"),
        ("temperature = 1", "temperature = nan", "temperature is nan"),
        ('name = "code-editor"', "", "lacks the field 'name'"),
        ("[[environments]]", "[[environment]]", "unknown field 'environment'"),
        ("samples = 2", "samples = ", "not TOML"),
        ("samples = 2", "budget_usd = -1.0", "budget_usd is -1.0"),
        ("samples = 2", "max_turns = 0", "max_turns is 0"),
        ("samples = 2", 'stop_strings = [""]', "the spec: stop_strings has an empty text"),
        ("temperature = 1", 'stop_strings = [""]', "agent trained: stop_strings has an empty text"),
        ("samples = 2", "max_context_length = -1", "the spec: max_context_length is -1"),
        ('card = "gpt-5.6"', 'card = "gpt-5.6"\nstop_strings = ["x"]', "leave them out with a card"),
        ('recorded = "gpt-4-0613"', 'recorded = "x"\nshots = 2', "agent old: shots is 2"),
        ("temperature = 1", "shots = -1", "agent trained: shots is -1"),
        ('recorded = "gpt-4-0613"', 'recorded = "x"\nsamples = 4', "agent old: samples is 4, but recorded"),
    ],
)
def test_wrong_field_is_named_with_its_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "spec.toml") in str(caught.value)
    assert said in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        from_toml(tmp_path / "none.toml")


def test_a_spec_plays_something() -> None:
    with pytest.raises(ConfigError, match="no agents"):
        BenchSpec((EnvironmentSpec("code-editor"),), ())
    with pytest.raises(ConfigError, match="no environments"):
        BenchSpec((), (AgentSpec("oracle", script="oracle"),))
