"""Harnesses as TOML files: read, refused, and found by name behind an environment's."""

from __future__ import annotations

from pathlib import Path

import pytest

from envkit.audit.certificate import certificate_problem, fewer_turns
from envkit.env import registry
from envkit.env.harness import Harness, load_harness
from envkit.env.harness.spec import shipped_harnesses
from envkit.errors import ConfigError
from envkit.sandbox import Lock


def test_what_a_placeholder_stands_for_is_not_looked_at_again() -> None:
    harness = Harness("x", ("run", "--at={base_url}", "{prompt}", "{model}{prompt}", "{other}"))
    argv = harness.argv("say {model} to {base_url}", "http://h")
    assert argv == [
        "run",
        "--at=http://h",
        "say {model} to {base_url}",
        "policysay {model} to {base_url}",
        "{other}",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "command"),
        ("command = []", "command is empty"),
        ('command = "run"', "command"),
        ('command = ["run"]\nmax_calls = 0', "max_calls is 0"),
        ('command = ["run"]\ntimeout_s = inf', "timeout_s is inf"),
        ('command = ["run"]\nmore = 1', "more"),
        ("command = [", "not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "odd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"odd\.toml: .*{words}"):
        load_harness(str(file))


def test_an_unknown_harness_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no harness is named 'absent'; choose one of: .*mini-swe-agent"):
        registry.environment("code-editor@absent")
    with pytest.raises(ConfigError, match="cannot be read"):
        registry.environment(f"code-editor@{tmp_path}/absent.toml")


def test_shipped_harnesses_play_the_code_editor() -> None:
    for name in shipped_harnesses():
        kind = registry.environment(f"code-editor@{name}")
        assert kind.id == f"code-editor@{name}"
        assert kind.graded_as() is registry.environment("code-editor")
        assert kind.max_turns == load_harness(name).max_calls
        assert certificate_problem(kind, Lock(), 99) == ""
        assert fewer_turns(kind, Lock(), 1) == ""


def test_the_example_with_short_prompts_needs_what_the_shipped_program_needs() -> None:
    example = Path(__file__).parents[3] / "examples" / "mini-swe-agent-short.toml"
    short, shipped = load_harness(str(example)), load_harness("mini-swe-agent")
    for field in ("packages", "preload", "environment"):
        assert getattr(short, field) == getattr(shipped, field)
    assert short.command[:5] == shipped.command[:5]


def test_a_harness_of_a_file_has_the_files_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('command = ["run", "{prompt}"]\npackages = ["six==1.17.0"]\n')
    kind = registry.environment(f"code-editor@{file}")
    assert (kind.id, tuple(kind.packages)) == (f"code-editor@{file}", ("six==1.17.0",))
