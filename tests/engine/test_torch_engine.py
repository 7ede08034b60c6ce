"""The engine compared with plain transformers: same tokens and probabilities in any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import (
    GROUPS,
    STOPS,
    assert_matches_reference,
    next_requests,
    peft_model,
    record_forwards,
    reference,
    requests,
)
from stops import stop_after

from envkit.engine import torch_engine
from envkit.engine.adapters.updates import Update, updates_of
from envkit.engine.attention.layouts import DecodeLayout
from envkit.engine.batching import RequestSize, waves
from envkit.engine.protocol import Request, Sampling, uniforms
from envkit.engine.sampling import draw
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import ContractError, ModelError, Stopped
from envkit.models import SMALL_MODEL, ModelRef, resolve


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_and_logprobs_equal_those_of_plain_transformers(
    family: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = tiny.make(tmp_path, family)
    rows: list[Sequence[int]] = []
    prompts: list[int] = []
    reorder, narrow = DecodeLayout.reorder, DecodeLayout._drop_others

    def reordered(self: DecodeLayout, chosen: Sequence[int]) -> None:
        rows.append(chosen)
        reorder(self, chosen)

    def narrowed(self: DecodeLayout, chosen: Sequence[int]) -> None:
        prompts.append(len(chosen))
        narrow(self, chosen)

    monkeypatch.setattr(DecodeLayout, "reorder", reordered)
    monkeypatch.setattr(DecodeLayout, "_drop_others", narrowed)
    batch = requests()
    drawn = tiny.engine(ref, STOPS).generate(batch, Sampling(temperature, 40))
    assert prompts
    assert any(len({*chosen}) < len(chosen) for chosen in rows), "nothing branched"
    assert any(len(chosen) < len(before) for before, chosen in pairwise(rows)), "nothing ended"
    assert_matches_reference(tiny.plain(ref), batch, drawn, temperature)


def test_wave_size_and_prefill_size_do_not_change_results(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = requests()
    monkeypatch.setattr(torch_engine, "_PREFILL_TOKENS", 64)
    drawn = tiny.engine(ref, STOPS, max_rows=6).generate(batch, Sampling(1.0, 10))
    assert_matches_reference(tiny.plain(ref), batch, drawn, 1.0)


@pytest.mark.parametrize("polls", [0, 1, 5])
def test_a_stop_request_ends_decoding_at_the_next_token(ref: ModelRef, polls: int) -> None:
    engine = tiny.engine(ref)
    seen = record_forwards(engine)
    with pytest.raises(Stopped):
        list(engine.stream(requests(), Sampling(1.0, 10), stop_after(polls)))
    assert len(seen) <= polls
    assert len(engine.generate(requests(), Sampling(1.0, 10))) == len(requests())  # it can be asked again


def test_the_kv_cache_size_bounds_the_rows_decoded_together(ref: ModelRef) -> None:
    # A token takes 2 layers x (keys and values) x 2 heads x 16 numbers of 4 bytes; half is for decoding.
    engine = TorchEngine(tiny.plain(ref), (), max_rows=8, kv_cache_bytes=2 * 512 * (30 + 4 * 6))
    seen = record_forwards(engine)
    drawn = engine.generate(batch := requests(((30, 8), (60, 2))), Sampling(1.0, 6))
    assert seen[::6] == [(1, 60), (1, 60), (1, 30), (1, 30)]
    assert [rows for rows, _ in seen[5::6]] == [1, 1, 4, 4]
    assert_matches_reference(tiny.plain(ref), batch, drawn, 1.0)


def test_equal_calls_give_equal_bits(ref: ModelRef) -> None:
    engine = tiny.engine(ref, STOPS)
    first = engine.generate(requests(), Sampling(1.0, 10))
    engine.generate(requests(((5, 2),)), Sampling(0.5, 3))
    assert engine.generate(requests(), Sampling(1.0, 10)) == first
    assert tiny.engine(ref, STOPS).generate(requests(), Sampling(1.0, 10)) == first


def test_a_request_draws_the_same_alone_and_in_a_batch(ref: ModelRef) -> None:
    engine, batch = tiny.engine(ref, STOPS), requests()
    among = engine.generate(batch, Sampling(1.0, 6))
    alone = [engine.generate([request], Sampling(1.0, 6))[0] for request in batch]
    # Rounding differs with the batch, so a draw near the boundary between two tokens may differ.
    assert sum(a.ids == b.ids for a, b in zip(alone, among, strict=True)) >= 0.8 * len(batch)


def test_a_prompt_shared_by_many_requests_is_prefilled_once(ref: ModelRef) -> None:
    engine = tiny.engine(ref)
    seen = record_forwards(engine)
    engine.generate(requests(((30, 8), (20, 8))), Sampling(1.0, 3))
    assert seen[0] == (2, 30)


def test_common_beginnings_of_completions_are_decoded_once(ref: ModelRef) -> None:
    engine = tiny.engine(ref, STOPS)
    batch = [
        dataclasses.replace(request, keep_cache=True) for request in requests(((30, 8), (20, 8), (9, 1)))
    ]
    for turn in range(3):
        seen = record_forwards(engine)
        drawn = engine.generate(batch, Sampling(0.03, 12))
        answers = {
            (request.prompt_ids, completion.ids) for request, completion in zip(batch, drawn, strict=True)
        }
        common = [
            len({(prompt, ids[:read]) for prompt, ids in answers if len(ids) > read})
            for read in range(1, max(len(ids) for _, ids in answers))
        ]
        assert seen[-len(common) :] == [(rows, 1) for rows in common]
        assert sum(common) < 0.8 * sum(len(completion.ids) - 1 for completion in drawn)
        assert_matches_reference(tiny.plain(ref), batch, drawn, 0.03)
        batch = [
            Request(
                (*request.prompt_ids, *completion.ids, 40, 50 + turn),
                (*request.rng_key, turn),
                earlier_tokens=n,
                keep_cache=True,
            )
            for request, completion in zip(batch, drawn, strict=True)
            for n in [len(request.prompt_ids) + len(completion.ids)]
        ]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(("pieces", "max_rows"), [(1024, 128), (32, 6)])
def test_a_continued_conversation_draws_as_if_prefilled_again(
    family: str, pieces: int, max_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "_PREFILL_TOKENS", pieces)
    ref = tiny.make(tmp_path, family)
    engine, plain = tiny.engine(ref, STOPS, max_rows), tiny.plain(ref)
    batch = [dataclasses.replace(request, keep_cache=True) for request in requests()]
    for turn in range(4):
        drawn = engine.generate(batch, Sampling(1.0, 9))
        assert {completion.stop for completion in drawn} == {"stop", "length"}
        assert_matches_reference(plain, batch, drawn, 1.0)
        batch = next_requests(batch, drawn, turn)
        # A new conversation joins.
        batch.append(Request(tiny.prompt(20 + turn, seed=turn), (9, turn), keep_cache=True))


def test_only_new_tokens_of_a_continued_conversation_are_prefilled(ref: ModelRef) -> None:
    engine = tiny.engine(ref)
    batch = [dataclasses.replace(request, keep_cache=True) for request in requests(((30, 4), (20, 4)))]
    drawn = engine.generate(batch, Sampling(1.0, 3))
    read = [request.prompt_ids + completion.ids for request, completion in zip(batch, drawn, strict=True)]
    later = [Request((*ids, 5, 6, 7), (row,), earlier_tokens=len(ids)) for row, ids in enumerate(read)]
    seen = record_forwards(engine)
    first = engine.generate(later, Sampling(1.0, 2))
    # The last drawn token and the three new ones.
    assert seen == [(8, 4), (8, 1)]  # all eight completions differ
    del seen[:]
    again = engine.generate(later, Sampling(1.0, 2))
    assert seen[0] == (8, 36), "the KV cache was kept longer than until the next call"
    assert_matches_reference(tiny.plain(ref), later, first, 1.0)
    assert_matches_reference(tiny.plain(ref), later, again, 1.0)


def test_conversations_beyond_the_limit_are_prefilled_again(ref: ModelRef) -> None:
    # A quarter is for held conversations: two prompts, padded to 30 tokens, and two answers of 3 tokens, the
    # last of which has no keys yet.
    size = 4 * 512 * (2 * 30 + 2 * 2)
    batch = [dataclasses.replace(request, keep_cache=True) for request in requests(((30, 1), (20, 1)))]
    for limit, prefilled in ((size, (2, 4)), (size - 4 * 512, (1, 36))):
        engine = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=limit)
        drawn = engine.generate(batch, Sampling(1.0, 3))
        later = [
            Request((*ids, 5, 6, 7), (row,), earlier_tokens=len(ids))
            for row, ids in enumerate(
                request.prompt_ids + completion.ids for request, completion in zip(batch, drawn, strict=True)
            )
        ]
        seen = record_forwards(engine)
        after = engine.generate(later, Sampling(1.0, 2))
        assert prefilled in seen
        assert_matches_reference(tiny.plain(ref), later, after, 1.0)


def test_new_weights_drop_cached_kv_state(ref: ModelRef) -> None:
    policy = tiny.policy(ref, noise=0.1)
    (drawn,) = policy.engine.generate([Request((5, 6, 7), (1,), keep_cache=True)], Sampling(1.0, 3))
    policy.sync()
    ids = (5, 6, 7, *drawn.ids)
    seen = record_forwards(policy.engine)
    policy.engine.generate([Request((*ids, 8), (2,), earlier_tokens=len(ids))], Sampling(1.0, 1))
    assert seen == [(1, len(ids) + 1)]


@pytest.mark.parametrize("top_p", [0.6, 0.9, 1.0, 1e-9])
def test_truncation_equals_that_of_transformers(top_p: float) -> None:
    from transformers.generation.logits_process import TopPLogitsWarper

    logits = 3 * torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    kept: Any = TopPLogitsWarper(top_p)(torch.zeros(40, 1), logits / 0.8)
    probs = kept.double().softmax(-1)
    numbers = torch.from_numpy(uniforms((1,), 120)).view(40, 3)
    tokens, logprobs = draw(logits, numbers, Sampling(0.8, top_p=top_p))
    assert torch.equal(tokens, (probs.cumsum(-1)[:, None] < numbers[..., None]).sum(-1))
    torch.testing.assert_close(logprobs.double(), probs.gather(1, tokens).log(), atol=1e-5, rtol=0)


def test_temperature_0_equals_greedy_search_of_transformers(ref: ModelRef) -> None:
    model, batch = tiny.plain(ref), requests([(length, 1) for length, _ in GROUPS])
    drawn = tiny.engine(ref, STOPS).generate(batch, Sampling(0.0, 12))
    for request, completion in zip(batch, drawn, strict=True):
        ids = torch.tensor([request.prompt_ids])
        greedy = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=list(STOPS))
        assert completion.ids == tuple(greedy[0, ids.shape[1] :].tolist())
        expected = reference(model, request, completion, 1.0).gather(1, torch.tensor(completion.ids)[:, None])
        torch.testing.assert_close(
            torch.tensor(completion.logprobs).double(), expected[:, 0], atol=1e-4, rtol=0
        )


def test_a_row_ends_at_its_first_stop_id_or_at_the_budget(ref: ModelRef) -> None:
    drawn = tiny.engine(ref, STOPS).generate(requests(), Sampling(1.0, 9))
    for completion in drawn:
        inner, last = completion.ids[:-1], completion.ids[-1]
        assert not set(inner) & set(STOPS)
        assert completion.stop == ("stop" if last in STOPS else "length")
        assert len(completion.ids) == 9 or completion.stop == "stop"
        assert len(completion.logprobs) == len(completion.ids)
    assert {completion.stop for completion in drawn} == {"stop", "length"}


def test_a_stop_string_ends_a_turn_with_the_token_that_completes_it(ref: ModelRef) -> None:
    decode = tiny.tokenizer().decode
    engine = TorchEngine(tiny.plain(ref), STOPS, decode=decode)
    batch, strings = requests(), ("e", "th")
    free = engine.generate(batch, Sampling(1.0, 9))
    drawn = engine.generate(batch, Sampling(1.0, 9, stop_strings=strings))
    for one, other in zip(drawn, free, strict=True):
        ends = [n for n in range(1, 10) if any(part in decode(other.ids[:n]) for part in strings)]
        assert one.ids == other.ids[: min(ends, default=9)]  # a row's draws do not depend on other rows
        assert one.stop == ("stop" if ends else other.stop)
    assert any(one.ids != other.ids for one, other in zip(drawn, free, strict=True))
    continuing = [dataclasses.replace(request, keep_cache=True) for request in batch]
    stopped_early = engine.generate(continuing, Sampling(1.0, 9, stop_strings=strings))
    later = next_requests(continuing, stopped_early, turn=0)
    assert_matches_reference(tiny.plain(ref), later, engine.generate(later, Sampling(1.0, 3)), 1.0)
    with pytest.raises(ContractError, match="an engine that was made with `decode`"):
        tiny.engine(ref).generate(batch, Sampling(stop_strings=strings))


def test_the_longest_completion_has_exactly_the_budget(ref: ModelRef) -> None:
    for budget in (1, 2):
        (completion,) = tiny.engine(ref).generate(requests(((4, 1),)), Sampling(1.0, budget))
        assert (len(completion.ids), completion.stop) == (budget, "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_are_refused(ref: ModelRef, temperature: float) -> None:
    model = tiny.plain(ref)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="logits are not finite"):
        TorchEngine(model, STOPS).generate(requests(((4, 2),)), Sampling(temperature, 2))


def test_no_requests_give_no_completions(ref: ModelRef) -> None:
    assert tiny.engine(ref).generate([], Sampling()) == []


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_frequencies_match_the_softmax(ref: ModelRef, temperature: float) -> None:
    context, draws, bins = tiny.prompt(12, seed=1), 1500, 25
    batch = [Request(context, (11, row)) for row in range(draws)]
    drawn = tiny.engine(ref).generate(batch, Sampling(temperature, 1))
    probs = reference(tiny.plain(ref), batch[0], drawn[0], temperature).exp()[0].numpy()
    # Shuffled ids in bins of about equal probability.
    order = np.random.default_rng(0).permutation(len(probs))
    bin_of = np.empty(len(probs), dtype=int)
    bin_of[order] = np.minimum(probs[order].cumsum() * bins, bins - 1).astype(int)
    expected = np.bincount(bin_of, probs, minlength=bins) * draws
    assert (expected > 5).all()
    counted = np.bincount(bin_of[[completion.ids[0] for completion in drawn]], minlength=bins)
    assert ((counted - expected) ** 2 / expected).sum() < 51.2  # 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
def test_an_impossible_token_is_never_drawn(number: float) -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, 20:30] = torch.randn(10, generator=torch.Generator().manual_seed(0))
    token, logprob = draw(logits, torch.tensor([[number]], dtype=torch.float64), Sampling(1.0))
    assert 20 <= int(token) < 30
    assert torch.isfinite(logprob).all()


def test_completions_end_at_the_models_context_length(tmp_path: Path) -> None:
    engine = tiny.engine(tiny.make(tmp_path, max_position_embeddings=24))
    short, long = engine.generate(requests(((10, 1), (20, 1))), Sampling(1.0, 8))
    assert [(len(one.ids), one.stop) for one in (short, long)] == [(8, "length"), (4, "length")]
    with pytest.raises(ModelError, match=r"24 tokens; the model reads 24.*use shorter tasks"):
        engine.generate(requests(((24, 1),)), Sampling(1.0, 8))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 60),
    st.booleans(),
)
def test_waves_hold_every_request_once_within_the_limits(
    groups: list[tuple[int, int]], budget: int, max_rows: int, max_tokens: int, go_on: bool
) -> None:
    batch = [
        Request((group,) * length, (group, row))
        for group, (length, count) in enumerate(groups)
        for row in range(count)
    ]
    held = {
        i: RequestSize(len(each.prompt_ids), each.prompt_ids, i % 7 * go_on, i % 3 * go_on)
        for i, each in enumerate(batch)
    }
    found = waves(held, budget, max_rows, max_tokens)
    assert sorted(index for wave in found for group in wave for index in group) == list(range(len(batch)))
    for wave in found:
        rows, longest = sum(map(len, wave)), max(len(batch[group[0]].prompt_ids) for group in wave)
        assert rows <= max_rows
        members = [held[index] for group in wave for index in group]
        own = max(one.cached for one in members) + max(one.new for one in members) + budget
        assert rows == 1 or len(wave) * longest + rows * own <= max_tokens
        assert all(len({batch[index].prompt_ids for index in group}) == 1 for group in wave)
    lengths = [len(batch[group[0]].prompt_ids) for wave in found for group in wave]
    assert all(a >= b for a, b in pairwise(lengths))


def test_attention_that_is_not_plain_causal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="attention uses sliding_window"):
        tiny.engine(tiny.make(tmp_path, "mistral", sliding_window=16))


def test_load_adds_and_removes_the_adapter(ref: ModelRef) -> None:
    policy, batch = tiny.policy(ref, noise=0.1), requests()
    before = policy.engine.generate(batch, Sampling(1.0, 4))
    policy.sync()
    with_adapter = policy.engine.generate(batch, Sampling(1.0, 4))
    assert with_adapter != before
    policy.sync()
    assert policy.engine.generate(batch, Sampling(1.0, 4)) == with_adapter
    policy.engine.load([])
    assert policy.engine.generate(batch, Sampling(1.0, 4)) == before


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(("pieces", "max_rows"), [(1024, 128), (96, 6)])
def test_rows_of_many_adapters_draw_as_with_each_adapter_alone(
    family: str, pieces: int, max_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "_PREFILL_TOKENS", pieces)
    ref = tiny.make(tmp_path, family)
    peft, engine = peft_model(ref), tiny.engine(ref, STOPS, max_rows)
    engine.load([updates_of(peft, "0"), {}, updates_of(peft, "1"), updates_of(peft, "2")])
    batch = [
        dataclasses.replace(request, adapter=number % 4, keep_cache=True)
        for number, request in enumerate(requests())
    ]
    for turn in range(3):
        drawn = engine.generate(batch, Sampling(1.0, 9))
        for number, name in enumerate(("0", None, "1", "2")):
            mine = [index for index, request in enumerate(batch) if request.adapter == number]
            model = tiny.plain(ref) if name is None else peft
            if name is not None:
                peft.set_adapter(name)
            assert_matches_reference(
                model, [batch[index] for index in mine], [drawn[index] for index in mine], 1.0
            )
        numbers = [request.adapter for index, request in enumerate(batch) if index % 5 != turn]
        batch = [
            dataclasses.replace(request, adapter=number)
            for request, number in zip(next_requests(batch, drawn, turn), numbers, strict=True)
        ]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_engine_shares_the_models_weights_and_does_not_change_its_modules(
    family: str, tmp_path: Path
) -> None:
    model = tiny.plain(tiny.make(tmp_path, family))
    ids = torch.tensor([tiny.prompt(9, seed=1)])
    with torch.no_grad():
        before = model(ids).logits
        engine = TorchEngine(model, STOPS)
        assert torch.equal(model(ids).logits, before)
        batch = requests(((9, 4),))
        drawn = engine.generate(batch, Sampling(1.0, 3))
        for parameter in model.parameters():
            parameter.mul_(1.1)
        assert engine.generate(batch, Sampling(1.0, 3)) != drawn
    assert_matches_reference(model, batch, engine.generate(batch, Sampling(1.0, 3)), 1.0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_that_does_not_fit_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    engine = tiny.engine(tiny.make(tmp_path, num_hidden_layers=1))
    peft = peft_model(ref)
    with pytest.raises(ModelError, match=r"changes model\.layers\.1\..* which is no linear layer below the"):
        engine.load([updates_of(peft, "0")])
    wrong = {"model.layers.0.mlp.up_proj": Update(torch.zeros(2, 64), torch.zeros(99, 2))}
    with pytest.raises(
        ModelError, match=r"shape \(99, 64\) changes .*up_proj, which has shape \(128, 64\) here"
    ):
        engine.load([wrong])
    with pytest.raises(ContractError, match="no adapter 'x'; there are: 0, 1, 2"):
        updates_of(peft, "x")
    with pytest.raises(ContractError, match="for adapter 1; the engine was given 0, numbered from 0"):
        engine.generate([Request((5,), (1,), adapter=1)], Sampling())


@pytest.mark.model
def test_the_real_model_agrees_with_plain_transformers() -> None:
    ref = resolve(SMALL_MODEL)
    text = "def mean(values):\n    return sum(values) / len(values)\n"
    ids = tuple(tiny.tokenizer().encode(text * 3))
    batch = [Request(ids[:length], (length, row)) for length in (40, 25) for row in range(3)]
    drawn = tiny.engine(ref, [2]).generate(batch, Sampling(0.7, 8))
    assert_matches_reference(tiny.plain(ref), batch, drawn, 0.7)
    again = tiny.engine(ref, [2]).generate(batch, Sampling(0.7, 8))
    assert [dataclasses.astuple(c) for c in again] == [dataclasses.astuple(c) for c in drawn]
