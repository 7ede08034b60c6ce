"""The common prefix of token ids, against one that compares them one by one."""

from __future__ import annotations

import itertools
from array import array

from hypothesis import given
from hypothesis import strategies as st

from envkit.engine.prefix import common_prefix_length

IDS = st.lists(st.integers(0, 2), max_size=80)


@given(common=IDS, some=IDS, others=IDS)
def test_the_common_prefix_is_that_of_a_comparison_one_by_one(
    common: list[int], some: list[int], others: list[int]
) -> None:
    some, others = common + some, common + others
    pairs = zip(some, others, strict=False)
    expected = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    assert common_prefix_length(tuple(some), tuple(others)) == expected >= len(common)
    assert common_prefix_length(array("i", some), array("i", others)) == expected
