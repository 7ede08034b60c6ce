"""Packing: the layout of rows that share one prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.errors import ContractError
from envkit.training.learner.packing import (
    PackedBatch,
    TrainingRow,
    chunks,
    pack,
    shared_prompt,
    training_row,
)
from envkit.types import EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn

KEY = EpisodeKey(seed=0, step=0, group=0, row=0, task="t")


def row(ids: str, advantage: float = 1.0, trained: str | None = None) -> TrainingRow:
    """A row of letters; ``trained`` marks sampled ones with ``x``."""
    marks = tuple(mark == "x" for mark in (trained or "x" * len(ids)))
    old, advantages = (tuple(value * mark for mark in marks) for value in (-0.5, advantage))
    return TrainingRow(tuple(map(ord, ids)), marks, old, advantages)


def turn(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Turn:
    return Turn("", Tokens(prompt_ids, completion_ids, logprobs))


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory(KEY, "e", "a", tuple(StepRecord("", each, 0.0) for each in turns), Outcome.FAILED)


def test_a_row_holds_all_tokens_after_the_first_prompt() -> None:
    made = training_row(
        trajectory(turn((1, 2), (3, 4), (-0.3, -0.4)), turn((5, 6), (7,), (-0.7,))), [0.25, -0.5]
    )
    assert made.ids == (3, 4, 5, 6, 7)
    assert made.trained == (True, True, False, False, True)
    assert made.logprobs == (-0.3, -0.4, 0.0, 0.0, -0.7)
    assert made.advantages == (0.25, 0.25, 0.0, 0.0, -0.5)


def test_a_turn_without_tokens_cannot_be_trained() -> None:
    with pytest.raises(ContractError, match="records no tokens"):
        training_row(trajectory(turn((1,), (2,), (-1.0,)), Turn("typed by a person")), [1.0, 1.0])


def test_a_turn_with_truncated_context_starts_a_branch() -> None:
    first = turn((1, 2), (3, 4), (-0.3, -0.4))
    second = Turn("", Tokens((5,), (6,), (-0.6,), kept=3))
    third = Turn("", Tokens((7,), (8,), (-0.8,), kept=2))
    made = training_row(trajectory(first, second, third), [1.0, 1.0, 1.0])
    assert made.ids == (3, 4, 5, 6, 7, 8)
    assert made.kept == {2: 1, 4: 0}


def test_dropping_part_of_the_first_prompt_is_refused() -> None:
    turns = turn((1, 2), (3,), (-0.3,)), Turn("", Tokens((5,), (6,), (-0.6,), kept=1))
    with pytest.raises(ContractError, match="turn 1 of agent a keeps 1 ids of its context"):
        training_row(trajectory(*turns), [1.0, 1.0])


def test_what_all_turns_see_stands_before_the_rows() -> None:
    first = turn((1, 2, 3), (4,), (-0.4,))
    branch = Turn("", Tokens((5,), (6,), (-0.6,), kept=2))
    assert shared_prompt([trajectory(first)]) == (1, 2, 3)
    assert shared_prompt([trajectory(first), trajectory(first, branch)]) == (1, 2)
    made = training_row(trajectory(first, branch), [1.0, 1.0], 2)
    assert made.ids == (3, 4, 5, 6)
    assert made.trained == (False, True, False, True)
    assert made.kept == {2: 0}
    with pytest.raises(ContractError, match="shares no id with the first one"):
        shared_prompt([trajectory(first, Turn("", Tokens((5,), (6,), (-0.6,), kept=0)))])


rows_of_letters = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=12)


@settings(deadline=None)
@given(texts=rows_of_letters, prompt=st.integers(1, 9), limit=st.integers(1, 40))
def test_chunks_hold_every_row_within_the_token_limit(texts: list[str], prompt: int, limit: int) -> None:
    rows = [row(text, advantage=index) for index, text in enumerate(texts)]
    split = list(chunks((0,) * prompt, rows, limit))
    assert sorted(r.advantages[0] for chunk in split for r in chunk) == [r.advantages[0] for r in rows]
    for chunk in split:
        packed = pack((0,) * prompt, chunk).ids_1S.shape[1]
        assert len(chunk) == 1 or prompt + packed <= limit or packed <= limit // 4


def test_a_long_prompt_does_not_make_chunks_of_single_rows() -> None:
    rows = [row(letter * 50) for letter in "abcdefgh"]
    assert [len(chunk) for chunk in chunks((0,) * 5_000, rows, 800)] == [4, 4]


def context(batch: PackedBatch, source: int) -> list[int]:
    """Return the ids that a source of predictions attends to, including its own."""
    prompt = batch.prompt_1P[0].tolist()
    if source == 0:
        return prompt
    length = int(batch.positions_1S[0, source - 1]) + 1 - len(prompt)
    [path_to] = {tuple(path[:length]) for path in batch.paths if path[length - 1 : length] == [source - 1]}
    return [*prompt, *batch.ids_1S[0, list(path_to)].tolist()]


@settings(deadline=None)
@given(texts=rows_of_letters, prompt_length=st.integers(1, 6))
def test_every_token_is_predicted_from_its_own_row(texts: list[str], prompt_length: int) -> None:
    prompt = tuple(range(prompt_length))
    batch = pack(prompt, [row(text) for text in texts])
    rows = [[*map(ord, text)] for text in texts]
    assert batch.targets_K[batch.index_N].tolist() == [token for ids in rows for token in ids]
    assert batch.rows_N.tolist() == [number for number, ids in enumerate(rows) for _ in ids]
    assert batch.rows == len(texts)
    seen = [context(batch, int(position)) for position in batch.sources_K[batch.index_N]]
    assert seen == [[*prompt, *ids[:offset]] for ids in rows for offset in range(len(ids))]


@settings(deadline=None)
@given(texts=rows_of_letters)
def test_common_beginnings_of_rows_are_packed_once(texts: list[str]) -> None:
    batch = pack((0, 1), [row(text) for text in texts])
    beginnings = {
        text[:end] for text in texts for end in range(1, len(text))
    }  # the last token predicts nothing
    assert batch.ids_1S.shape[1] == len(beginnings)
    assert {position for path in batch.paths for position in path} == {*range(len(beginnings))}
    assert len({tuple(path) for path in batch.paths}) == len(batch.paths)


def test_a_branch_sees_only_the_tokens_it_keeps() -> None:
    truncated = replace(row("abcdef", trained="xx.x.x"), kept={2: 1, 4: 0})
    batch = pack((1, 2), [truncated, row("abx")])
    seen = [bytes(context(batch, int(position))) for position in batch.sources_K[batch.index_N]]
    assert seen == [b"\1\2", b"\1\2a", b"\1\2ac", b"\1\2e", b"\1\2", b"\1\2a", b"\1\2ab"]
    assert bytes(batch.ids_1S[0].tolist()) == b"aceb"


def test_only_sampled_tokens_are_trained() -> None:
    batch = pack((1, 2, 3), [row("abcd", 0.5, "x..x"), row("ef", -1.0)])
    assert [chr(target) for target in batch.targets_K[batch.index_N]] == ["a", "d", "e", "f"]
    assert batch.sources_K[batch.index_N].tolist() == [0, 3, 0, 4]
    assert batch.advantages_N.tolist() == [0.5, 0.5, -1.0, -1.0]
    assert batch.old_logprobs_N.tolist() == [-0.5] * 4
    assert batch.rows_N.tolist() == [0, 0, 1, 1]
