"""The recorded agent: replayed actions, refusals, and its file format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from envkit import ContractError, EpisodeKey, TaskFileError, UsageError
from envkit.agents.recorded import RecordedAgent, read_recorded, read_usage, write_recorded
from envkit.agents.scripted import noop
from envkit.types import Turn, Usage

KEY = EpisodeKey(seed=0, step=0, group=0, row=0, task="t")
SAID = {"t": ["edit", "run"], "other": ["look"]}


def turns(agent: RecordedAgent, key: EpisodeKey = KEY, count: int = 3) -> list[Turn]:
    session = agent.start(key, "Answer.")
    found: list[Turn] = []
    for turn in range(count):
        agent.submit(session, f"seen {turn}")
        ((answered, answer),) = agent.collect()
        assert answered is session
        found.append(answer)
    return found


def test_plays_the_record_then_the_idle_action() -> None:
    agent = RecordedAgent("gpt", SAID, idle="submit")
    assert agent.name == "gpt"
    assert [turn.text for turn in turns(agent)] == ["edit", "run", "submit"]
    assert [turn.text for turn in turns(agent, replace(KEY, task="other"), 2)] == ["look", "submit"]


def test_sessions_do_not_disturb_each_other() -> None:
    agent = RecordedAgent("gpt", SAID, idle="submit")
    first, second = agent.start(KEY, "Answer."), agent.start(replace(KEY, seed=1), "Answer.")
    agent.submit(first, "a")
    agent.submit(second, "b")
    agent.submit(first, "c")
    assert [(session, turn.text) for session, turn in agent.collect()] == [
        (first, "edit"),
        (second, "edit"),
        (first, "run"),
    ]
    assert agent.collect() == []


def test_usage_counts_at_the_first_turn_only() -> None:
    agent = RecordedAgent("gpt", SAID, idle="submit", usage={"t": Usage(90, 12, 1.5)})
    assert [turn.usage for turn in turns(agent)] == [Usage(90, 12, 1.5), Usage(), Usage()]
    assert [turn.usage for turn in turns(agent, replace(KEY, task="other"), 1)] == [Usage()]


def test_tokens_of_records_without_usage_are_estimated() -> None:
    agent = RecordedAgent("gpt", SAID, idle="submit", usage={"other": Usage(1, 2)}, count_tokens=len)
    first, second, idle = (turn.usage for turn in turns(agent))
    assert first == Usage(len("Answer.") + len("seen 0"), len("edit"))
    assert second == Usage(first.prompt_tokens + len("edit") + len("seen 1"), len("run"))
    assert idle == Usage()
    assert [turn.usage for turn in turns(agent, replace(KEY, task="other"), 1)] == [Usage(1, 2)]


def test_a_task_without_a_record_and_a_second_sample_are_refused() -> None:
    agent = RecordedAgent("gpt", SAID, idle="submit")
    with pytest.raises(UsageError, match="agent gpt has records of 2 tasks, but none of u"):
        agent.start(replace(KEY, task="u"), "Answer.")
    with pytest.raises(UsageError, match="has one record of task t and was asked for sample 3"):
        agent.start(replace(KEY, row=2), "Answer.")


def test_a_session_of_another_agent_is_refused() -> None:
    with pytest.raises(ContractError, match="session of another agent"):
        RecordedAgent("gpt", SAID, idle="submit").submit(noop().start(KEY, "Answer."), "seen")


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "gpt.jsonl"
    said = {"t": ("edit\u2028\u0085\n", "rün"), "other": ("look",)}
    usage = {"t": Usage(90, 12, 1.5, cached_tokens=30)}
    write_recorded(path, said, usage)
    assert read_recorded(path) == said
    assert read_usage(path) == usage
    written = path.read_bytes()
    write_recorded(path, said, usage)  # the same again is no change
    with pytest.raises(TaskFileError, match="exists and differs"):
        write_recorded(path, {"t": ["other"]})
    assert path.read_bytes() == written
    with pytest.raises(TaskFileError, match="no records to write"):
        write_recorded(tmp_path / "empty.jsonl", {})
    assert not (tmp_path / "empty.jsonl").exists()


GOOD = {"task": "t", "actions": ["edit"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("3", "line 2: found int, expected an object"),
        ('{"actions": ["a"]}', "line 2, field 'task': found nothing, expected a text"),
        ('{"task": 1, "actions": ["a"]}', "line 2, field 'task': found int, expected a text"),
        ('{"task": "u"}', "line 2, field 'actions': found nothing, expected a list of texts"),
        ('{"task": "u", "actions": "a"}', "line 2, field 'actions': found str, expected a list of texts"),
        ('{"task": "u", "actions": []}', "line 2, field 'actions': found an empty list, expected"),
        ('{"task": "u", "actions": ["a", 1]}', "line 2, field 'actions[1]': found int, expected a text"),
        (
            '{"task": "u", "actions": ["a"], "cost": 1}',
            "line 2, field 'cost': unknown; expected task, actions",
        ),
        ('{"task": "t", "actions": ["a"]}', "line 2, field 'task': 't' is on an earlier line too"),
        (
            '{"task": "u", "actions": ["a"], "usage": 3}',
            "line 2, field 'usage': found int, expected an object",
        ),
        (
            '{"task": "u", "actions": ["a"], "usage": {"prompt_tokens": 1.5}}',
            "line 2, field 'usage.prompt_tokens': found 1.5, expected a whole number",
        ),
        (
            '{"task": "u", "actions": ["a"], "usage": {"seconds": -1}}',
            "line 2, field 'usage.seconds': found -1, expected a number of at least 0",
        ),
        (
            '{"task": "u", "actions": ["a"], "usage": {"seconds": NaN}}',
            "line 2, field 'usage.seconds': found nan, expected a number",
        ),
        (
            '{"task": "u", "actions": ["a"], "usage": {"completion_tokens": true}}',
            "line 2, field 'usage.completion_tokens': found True, expected a number",
        ),
        (
            '{"task": "u", "actions": ["a"], "usage": {"tokens": 1}}',
            "line 2, field 'usage.tokens': unknown; expected prompt_tokens",
        ),
    ],
)
def test_malformed_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpt.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(TaskFileError) as caught:
        read_recorded(path)
    assert f"{path}, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"gone.jsonl cannot be read"):
        read_recorded(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TaskFileError, match=r"empty.jsonl is empty; expected one record per line"):
        read_recorded(tmp_path / "empty.jsonl")
