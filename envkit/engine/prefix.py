"""The common prefix of two sequences of token ids."""

from __future__ import annotations

from array import array
from typing import TypeVar

#: Slices of both are compared, so both are of one type.
_Ids = TypeVar("_Ids", tuple[int, ...], "array[int]")


def common_prefix_length(some: _Ids, others: _Ids) -> int:
    """Length of the longest prefix that two sequences have in common.

    >>> common_prefix_length((1, 2, 3, 4), (1, 2, 3)), common_prefix_length((1, 2), (3,))
    (3, 0)
    """
    known, step = 0, 16
    while step:  # slices are compared faster than numbers one by one
        end = known + step
        if end <= min(len(some), len(others)) and some[known:end] == others[known:end]:
            known, step = end, 2 * step
        else:
            step //= 2
    return known
