"""Packing: the layout of rows behind one prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envkit.errors import ContractError
from envkit.train.packing import Row, chunks, merge, pack, row_of
from envkit.types import EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn

KEY = EpisodeKey(seed=0, step=0, group=0, row=0, task="t")


def row(ids: str, advantage: float = 1.0, trained: str | None = None) -> Row:
    """A row of letters; ``trained`` marks sampled ones with ``x``."""
    marks = tuple(mark == "x" for mark in (trained or "x" * len(ids)))
    old, advantages = (tuple(value * mark for mark in marks) for value in (-0.5, advantage))
    return Row(tuple(map(ord, ids)), marks, old, advantages)


def turn(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Turn:
    return Turn("", Tokens(prompt_ids, completion_ids, logprobs))


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory(KEY, "e", "a", tuple(StepRecord("", each, 0.0) for each in turns), Outcome.FAILED)


def test_a_row_is_all_that_follows_the_first_prompt() -> None:
    made = row_of(trajectory(turn((1, 2), (3, 4), (-0.3, -0.4)), turn((5, 6), (7,), (-0.7,))), [0.25, -0.5])
    assert made.ids == (3, 4, 5, 6, 7)
    assert made.trained == (True, True, False, False, True)
    assert made.logprobs == (-0.3, -0.4, 0.0, 0.0, -0.7)
    assert made.advantages == (0.25, 0.25, 0.0, 0.0, -0.5)


def test_a_turn_without_tokens_cannot_be_trained() -> None:
    with pytest.raises(ContractError, match="records no tokens"):
        row_of(trajectory(turn((1,), (2,), (-1.0,)), Turn("typed by a person")), [1.0, 1.0])


def test_equal_rows_of_one_sign_are_merged() -> None:
    merged = merge([row("ab", 0.5), row("ac", 0.5), row("ab", 0.5), row("ab", 0.25), row("ab", -0.5)])
    assert [(r.ids, r.advantages, r.count) for r in merged] == [
        ((97, 98), (1.25, 1.25), 3),
        ((97, 99), (0.5, 0.5), 1),
        # The clip depends on the sign: these two cannot be one.
        ((97, 98), (-0.5, -0.5), 1),
    ]


def test_rows_that_differ_in_what_was_sampled_are_not_merged() -> None:
    assert len(merge([row("abc", trained="xxx"), row("abc", trained="x.x")])) == 2


rows_of_letters = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=12)


@settings(deadline=None)
@given(texts=rows_of_letters, prompt=st.integers(1, 9), limit=st.integers(1, 40))
def test_chunks_keep_every_row_and_the_limit(texts: list[str], prompt: int, limit: int) -> None:
    rows = [row(text, advantage=index) for index, text in enumerate(texts)]
    split = list(chunks((0,) * prompt, rows, limit))
    assert sorted(r.advantages[0] for chunk in split for r in chunk) == [r.advantages[0] for r in rows]
    for chunk in split:
        assert len(chunk) == 1 or prompt + sum(len(r.ids) for r in chunk) <= limit


@settings(deadline=None)
@given(texts=rows_of_letters, prompt_length=st.integers(1, 6))
def test_every_row_follows_the_prompt(texts: list[str], prompt_length: int) -> None:
    prompt = tuple(range(prompt_length))
    batch = pack(prompt, [row(text) for text in texts])
    assert batch.ids_1S[0].tolist() == [*prompt, *map(ord, "".join(texts))]
    assert (batch.prompt, batch.lengths) == (prompt_length, tuple(map(len, texts)))
    rows = [prompt_length + offset for text in texts for offset in range(len(text))]
    assert batch.positions_1S[0].tolist() == [*prompt, *rows]
    assert batch.targets_N.tolist() == batch.ids_1S[0, prompt_length:].tolist()
    # A token is predicted from the one before it in its row, a row's first from the prompt's last.
    before = list(range(prompt_length - 1, len(batch.ids_1S[0]) - 1))
    firsts = {sum(map(len, texts[:index])) for index in range(len(texts))}
    expected = [prompt_length - 1 if at in firsts else place for at, place in enumerate(before)]
    assert batch.sources_N.tolist() == expected


def test_only_sampled_tokens_are_trained() -> None:
    batch = pack((1, 2, 3), [row("abcd", 0.5, "x..x"), row("ef", -1.0)])
    assert [chr(target) for target in batch.targets_N] == ["a", "d", "e", "f"]
    assert batch.sources_N.tolist() == [2, 5, 2, 7]
    assert batch.advantages_N.tolist() == [0.5, 0.5, -1.0, -1.0]
    assert batch.old_logprobs_N.tolist() == [-0.5] * 4
    assert batch.rows_N.tolist() == [0, 0, 1, 1]
    assert batch.counts_N.tolist() == [1.0] * 4
