"""Attention masks: with equal scores and one-hot values, the output shows which positions are visible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from envkit.engine.attention import layouts as attention
from envkit.engine.attention.layouts import DecodeLayout, PrefillLayout, RowCache
from envkit.engine.attention.packed_tree import PromptLayout, TreeLayout


def zeros(batch: int, heads: int, tokens: int, size: int) -> Tensor:
    return torch.zeros(batch, heads, tokens, size)


def visible_positions(weights: Tensor) -> list[int]:
    """Return the positions with nonzero weight; assert that their weights are equal."""
    found = weights.nonzero()[:, 0]
    torch.testing.assert_close(weights[found], torch.full((len(found),), 1 / len(found)))
    return found.tolist()


def attend(prompt: int, paths: list[list[int]], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with a prompt and the tree after it; ``paths`` count from the first token after the prompt."""
    first = PromptLayout()
    parts = [[part[:, :, :prompt], part[:, :, prompt:]] for part in (query, key, value)]
    out = first.attend(0, *(part[0] for part in parts), 1.0)
    if not paths:
        return out
    tree = TreeLayout(first.keys, first.values, paths)
    return torch.cat([out, tree.attend(0, *(part[1] for part in parts), 1.0)], dim=1)


@settings(deadline=None)
@given(prompt=st.integers(1, 5), forks=st.lists(st.integers(-1, 20), max_size=12))
def test_a_packed_token_sees_the_prompt_and_its_path(prompt: int, forks: list[int]) -> None:
    # Each fork's token follows an earlier fork's token or the prompt.
    ways: list[list[int]] = []
    for number, fork in enumerate(forks):
        before = ways[fork] if 0 <= fork < number else []
        ways.append([*before, number])
    total = prompt + len(forks)
    paths = [way for way in ways if not any(way == other[: len(way)] != other for other in ways)]
    query, key, value = (
        zeros(1, 4, total, total),
        zeros(1, 2, total, total),
        torch.eye(total).expand(1, 2, -1, -1),
    )
    out = attend(prompt, paths, query, key, value)
    assert out.shape == (1, total, 4, total)
    for place in range(prompt):
        assert visible_positions(out[0, place, 0]) == list(range(place + 1))
    for way in ways:
        for head in range(4):
            seen = [*range(prompt), *(prompt + place for place in way)]
            assert visible_positions(out[0, seen[-1], head]) == seen


def test_a_decoded_row_sees_its_prompt_and_its_own_tokens() -> None:
    lengths, prompts, longest = torch.tensor([3, 5, 4]), [0, 1, 2], 5
    size = longest + 40  # one dimension per prompt position and per generated token
    prefix = PrefillLayout(3, longest)
    value = torch.eye(size)[:longest].expand(3, 2, -1, -1)
    prefix.attend(0, zeros(3, 4, longest, size), zeros(3, 2, longest, size), value, 1.0)
    layout = DecodeLayout(prefix, lengths, prompts, room=6, slots=4)
    own: list[list[int]] = [[] for _ in prompts]
    fresh = iter(range(longest, size))
    # Rows branch, swap and end, including all rows of the first prompt.
    for rows in ([0, 1, 2], [2, 0, 1, 1, 0, 0], [3, 0, 2], [1, 1, 0, 0, 0]):
        layout.reorder(rows)
        prompts, own = [prompts[row] for row in rows], [[*own[row], next(fresh)] for row in rows]
        count = len(rows)
        value = torch.eye(size)[[path[-1] for path in own]][:, None, None].expand(count, 2, 1, size)
        out = layout.attend(0, zeros(count, 4, 1, size), zeros(count, 2, 1, size), value, 1.0)
        layout.advance()
        assert layout.prompts == prompts
        for prompt, path, weights in zip(prompts, own, out[:, 0, 3], strict=True):
            assert visible_positions(weights) == [*range(int(lengths[prompt])), *path]
    assert {*prompts} == {1, 2}


@pytest.mark.parametrize("fresh", [1, 3])
@pytest.mark.parametrize("in_steps", [False, True])
def test_decoding_equals_one_softmax_over_prompt_and_own_tokens(
    fresh: int, in_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_steps:  # as on a GPU
        monkeypatch.setattr(attention, "partial_attention", attention.partial_in_steps)
    generator = torch.Generator().manual_seed(fresh)

    def draw(batch: int, heads: int, tokens: int) -> Tensor:
        return 3 * torch.randn(batch, heads, tokens, 8, generator=generator)

    lengths, own, scale = [700, 20, 3], [1, 600, 4], 0.3
    prefix, prompt_keys, prompt_values = PrefillLayout(3, 700), draw(3, 2, 700), draw(3, 2, 700)
    prefix.attend(0, draw(3, 6, 700), prompt_keys, prompt_values, scale)
    layout = DecodeLayout(prefix, torch.tensor(lengths), range(3), room=3, slots=610)
    caches = [RowCache([draw(1, 2, count)[0]], [draw(1, 2, count)[0]]) for count in own]
    layout.restore(caches)
    query, keys, values = draw(3, 6, fresh), draw(3, 2, fresh), draw(3, 2, fresh)
    out = layout.attend(0, query, keys, values, scale)
    for row, cache in enumerate(caches):
        seen = [
            torch.cat([prompt[row, :, : lengths[row]], cached[0], new[row]], dim=1)[None]
            for prompt, cached, new in (
                (prompt_keys, cache.keys, keys),
                (prompt_values, cache.values, values),
            )
        ]
        later = torch.ones(fresh, seen[0].shape[2]).tril(seen[0].shape[2] - fresh).bool()
        wanted = scaled_dot_product_attention(query[row][None], *seen, later, scale=scale, enable_gqa=True)
        torch.testing.assert_close(out[row], wanted[0].transpose(0, 1))


def test_a_gpus_scores_are_not_rounded_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        (3 * torch.randn(2, 3, tokens, 64, generator=generator)).bfloat16() for tokens in (5, 400, 400)
    )
    out, mass = attention.partial_in_steps(query, keys, values, None, 0.125)
    scores = query.double() @ keys.double().transpose(-1, -2) * 0.125
    torch.testing.assert_close(mass.double(), scores.logsumexp(dim=-1), rtol=0, atol=1e-3)
    assert (out.dtype, mass.dtype) == (torch.bfloat16, torch.float32)


def test_gradients_are_bit_identical_across_repeated_multithreaded_runs() -> None:
    shared, own, rows = 30, 12, 8
    prompt = 20
    paths = [[*range(shared), *range(shared + row * own, shared + (row + 1) * own)] for row in range(rows)]
    total = prompt + shared + rows * own
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, total, 64, generator=generator) for heads in (9, 3, 3)]
    weight = torch.randn(1, total, 9, 64, generator=generator)
    threads = torch.get_num_threads()

    def gradients() -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in parts]
        (attend(prompt, paths, *leaves) * weight).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    torch.set_num_threads(4)
    try:
        expected = gradients()
        assert len(expected) == 3
        for _ in range(30):
            assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
