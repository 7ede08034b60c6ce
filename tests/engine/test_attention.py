"""Who sees whom: with equal scores and one-hot values, attention shows its own mask."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envkit.engine.attention import Decode, Packed, Prefill


def zeros(batch: int, heads: int, tokens: int, size: int) -> Tensor:
    return torch.zeros(batch, heads, tokens, size)


def seen(weights: Tensor) -> list[int]:
    """Positions with weight; all of them have the same."""
    found = weights.nonzero()[:, 0]
    torch.testing.assert_close(weights[found], torch.full((len(found),), 1 / len(found)))
    return found.tolist()


@settings(deadline=None)
@given(prompt=st.integers(1, 5), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_packed_row_sees_the_prompt_and_itself(prompt: int, lengths: list[int]) -> None:
    total = prompt + sum(lengths)
    query, key, value = (
        zeros(1, 4, total, total),
        zeros(1, 2, total, total),
        torch.eye(total).expand(1, 2, -1, -1),
    )
    out = Packed(prompt, lengths).attend(0, query, key, value, 1.0)
    assert out.shape == (1, total, 4, total)
    for place in range(prompt):
        assert seen(out[0, place, 0]) == list(range(place + 1))
    start = prompt
    for length in lengths:
        for offset in range(length):
            for head in range(4):
                expected = [*range(prompt), *range(start, start + offset + 1)]
                assert seen(out[0, start + offset, head]) == expected
        start += length


def test_a_decoded_row_sees_its_prompt_and_its_own_tokens() -> None:
    lengths, rows, longest, budget = torch.tensor([3, 5]), 2, 5, 3
    size = longest + budget * 4  # a place for every prompt position and for every row's every token
    prefix = Prefill(2, longest)
    value = torch.eye(size)[:longest].expand(2, 2, -1, -1)
    prefix.attend(0, zeros(2, 4, longest, size), zeros(2, 2, longest, size), value, 1.0)
    layout = Decode(prefix, lengths, rows, budget)
    owners = [0, 1, 2, 3]

    def step() -> Tensor:
        own = torch.stack([torch.eye(size)[longest + budget * row + layout.used] for row in owners])
        count = len(owners)
        value = own[:, None, None].expand(count, 2, 1, size)
        out = layout.attend(0, zeros(count, 4, 1, size), zeros(count, 2, 1, size), value, 1.0)
        layout.advance()
        return out[:, 0, 3]

    for now in (1, 2):
        for row, weights in enumerate(step()):
            own = [longest + budget * row + at for at in range(now)]
            assert seen(weights) == [*range(int(lengths[row // rows])), *own]
    # The second prompt goes on with its second row; the other slot is filled with a copy.
    layout.keep(torch.tensor([1]), torch.tensor([3, 3]))
    owners = [3, 3]
    for weights in step():
        assert seen(weights) == [*range(5), *(longest + budget * 3 + at for at in range(3))]
