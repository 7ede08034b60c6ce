"""The text space: membership, sampling and clipping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envkit.env.spaces import Utf8

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert "éé" in Utf8(4)
    assert "éé" not in Utf8(3)
    assert "" in Utf8(1)


@pytest.mark.parametrize("other", [b"bytes", 3, None, "\ud800"])
def test_only_valid_text_belongs_to_the_space(other: object) -> None:
    assert not Utf8(100).contains(other)


def test_a_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Utf8(0)


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_samples_belong_to_the_space_and_depend_on_the_seed(max_bytes: int, seed: int) -> None:
    space, twin = Utf8(max_bytes, seed=seed), Utf8(max_bytes, seed=seed)
    drawn = [space.sample() for _ in range(3)]
    assert all(text in space for text in drawn)
    assert drawn == [twin.sample() for _ in range(3)]


@given(ANY_TEXT, st.integers(1, 60))
def test_clipped_text_belongs_to_the_space(text: str, max_bytes: int) -> None:
    space = Utf8(max_bytes)
    clipped = space.clip(text)
    assert clipped in space
    assert space.clip(clipped) == clipped
    if text in space:
        assert clipped == text


def test_clip_replaces_surrogates() -> None:
    assert Utf8(10).clip("a\ud800b") == "a?b"


def test_clip_keeps_head_and_tail_and_marks_the_cut() -> None:
    clipped = Utf8(40).clip("head" + "x" * 1000 + "tail")
    assert clipped.startswith("head")
    assert clipped.endswith("tail")
    assert "[... cut ...]" in clipped
    assert len(clipped) == 40


def test_spaces_are_equal_if_their_limits_are() -> None:
    assert Utf8(5) == Utf8(5)
    assert Utf8(5) != Utf8(6)
    assert repr(Utf8(5)) == "Utf8(5)"
