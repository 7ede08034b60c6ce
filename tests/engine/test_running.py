"""The running batch: each row decodes as it would alone, whatever joins and leaves beside it."""

from __future__ import annotations

import gc
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from sampling import STOPS, peft_model

from envkit.engine import running
from envkit.engine.adapters.pool import AdapterPool
from envkit.engine.adapters.updates import Update, read_adapter, updates_of
from envkit.engine.attention.ragged import RaggedLayout
from envkit.engine.protocol import Request, Sampling
from envkit.engine.running import Drawn, Failed, RowRequest, RunningBatch
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import ContractError, ModelError
from envkit.models import ModelRef

#: PEFT uses what transformers warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

NAMES = (None, "0", "1", "2")


@pytest.fixture(scope="module")
def peft(ref: ModelRef) -> Any:
    return peft_model(ref)


def decode(ids: Sequence[int]) -> str:
    return str(tiny.tokenizer().decode(ids))


def make(
    ref: ModelRef, peft: Any, stop_ids: Sequence[int] = (), cache_tokens: int = 16_384, **limits: Any
) -> RunningBatch:
    # A token takes 2 layers x (keys and values) x 2 heads x 16 numbers of 4 bytes.
    engine = TorchEngine(tiny.plain(ref), stop_ids, kv_cache_bytes=512 * cache_tokens, decode=decode)
    pool = AdapterPool(engine.linears, limits.pop("budget_bytes", 2**30))
    for name in peft.peft_config:
        pool.register(name, lambda name=name: updates_of(peft, name))
    return RunningBatch(engine, pool, **limits)


def run(batch: RunningBatch) -> dict[int, list[Drawn]]:
    """Tick until all rows have ended; returns the tokens of each."""
    rows: dict[int, list[Drawn]] = {}
    while batch.waiting or batch.running:
        for event in batch.tick():
            assert isinstance(event, Drawn)
            rows.setdefault(event.row, []).append(event)
    return rows


def row(length: int, number: int = 0, adapter: str | None = None, **sampling: Any) -> RowRequest:
    settings = Sampling(**{"max_new_tokens": 10, **sampling})
    return RowRequest(tiny.prompt(length, seed=length), (7, number), settings, adapter, top_logprobs=2)


def reference(peft: Any, request: RowRequest, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of the answer's tokens, in PEFT alone."""
    ids = torch.tensor([[*request.prompt_ids, *tokens]])
    with torch.no_grad():
        if request.adapter is None:
            with peft.disable_adapter():
                logits = peft(ids).logits
        else:
            peft.set_adapter(request.adapter)
            logits = peft(ids).logits
    return torch.log_softmax(logits[0, len(request.prompt_ids) - 1 : -1], dim=-1)


def assert_as_alone(peft: Any, request: RowRequest, drawn: Sequence[Drawn]) -> None:
    expected = reference(peft, request, [token.token for token in drawn])
    for position, token in enumerate(drawn):
        assert token.likely is not None
        assert abs(token.likely.drawn - float(expected[position, token.token])) < 1e-4
        for other, logprob in token.likely.top:
            assert abs(logprob - float(expected[position, other])) < 1e-4


@pytest.mark.parametrize("prefill_tokens", [7, 128])
def test_rows_that_join_and_leave_decode_as_alone(ref: ModelRef, peft: Any, prefill_tokens: int) -> None:
    batch = make(ref, peft, STOPS, prefill_tokens=prefill_tokens)
    dice = random.Random(4)
    kinds = [
        row(
            dice.choice((1, 2, 9, 33, 60, 70, 130)),
            number,
            NAMES[number % 4],
            max_new_tokens=dice.randint(1, 40),
        )
        for number in range(40)
    ]
    requests: dict[int, RowRequest] = {}
    drawn: dict[int, list[Drawn]] = {}
    together: set[int] = set()
    while kinds or batch.waiting or batch.running:
        for _ in range(min(dice.randint(0, 3), len(kinds))):
            request = kinds.pop()
            requests[batch.submit(request)] = request
        for event in batch.tick():
            assert isinstance(event, Drawn)
            drawn.setdefault(event.row, []).append(event)
        together.add(batch.running)
    assert max(together) >= 6
    assert {tokens[-1].stop for tokens in drawn.values()} == {"stop", "length"}
    assert drawn.keys() == requests.keys()
    for number, request in requests.items():
        assert_as_alone(peft, request, drawn[number])
    assert batch.cache_tokens == 0


def read_in(batch: RunningBatch, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Run a batch to its end; returns the prompt tokens of each row, by forward pass."""
    passes: list[list[int]] = []
    select = RaggedLayout.select

    def spy(layout: RaggedLayout, slots: Sequence[Any], counts: Sequence[int]) -> None:
        if max(counts) > 1:
            passes.append([*counts])
        select(layout, slots, counts)

    monkeypatch.setattr(RaggedLayout, "select", spy)
    run(batch)
    return passes


def test_prompts_are_not_cut_into_small_pieces(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make(ref, peft, prefill_tokens=128)
    for number in range(4):
        batch.submit(row(5, number, max_new_tokens=30))
    batch.tick()
    # The last token of each prompt is decoded, not prefilled.
    for length in (101, 102, 31, 91):
        batch.submit(row(length, length))
    assert read_in(batch, monkeypatch) == [[100], [101], [30], [90]]


def test_prompts_of_about_equal_length_are_read_in_one_pass(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make(ref, peft)
    for name in NAMES:  # reads the adapters
        batch.submit(row(5, 0, name))
        run(batch)
    lengths = (101, 30, 120, 95, 7, 28)
    for length in lengths:
        batch.submit(row(length, length, NAMES[length % 4]))
    passes = read_in(batch, monkeypatch)
    assert [sorted(counts) for counts in passes] == [[94, 100, 119], [27, 29], [6]]


def test_the_more_rows_wait_for_their_prompts_the_more_is_read_in_a_tick(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_tick(waiting: int, running: int) -> int:
        batch = make(ref, peft, prefill_tokens=32)
        for number in range(running):
            batch.submit(row(1, number, max_new_tokens=40))
        batch.tick()
        for number in range(waiting):
            batch.submit(row(33 + number, number))
        counts: list[int] = []
        select = RaggedLayout.select

        def spy(layout: RaggedLayout, slots: Sequence[Any], new: Sequence[int]) -> None:
            counts.extend(count for count in new if count > 1)
            select(layout, slots, new)

        with monkeypatch.context() as patch:
            patch.setattr(RaggedLayout, "select", spy)
            batch.tick()
        return sum(counts)

    assert first_tick(1, 4) == first_tick(4, 4) == 32
    assert first_tick(8, 4) == 64
    assert first_tick(8, 1) == 4 * 32


def test_a_row_draws_what_the_engine_generates(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft, STOPS)
    made = [row(length, number) for number, length in enumerate((1, 9, 33, 60))]
    drawn = run(batch) if [batch.submit(request) for request in made] else {}
    for tokens, request in zip(drawn.values(), made, strict=True):
        [alone] = tiny.engine(ref, STOPS).generate(
            [Request(request.prompt_ids, request.rng_key)], request.sampling
        )
        assert tuple(token.token for token in tokens) == alone.ids
        assert [token.logprob for token in tokens] == pytest.approx(alone.logprobs, abs=1e-4)
        assert tokens[-1].stop == alone.stop


def test_every_row_has_its_own_sampling(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft)
    greedy = batch.submit(row(9, 1, temperature=0, max_new_tokens=12))
    narrow = batch.submit(row(9, 2, top_p=1e-6, max_new_tokens=5))
    free = batch.submit(row(9, 3, temperature=1.5))
    drawn = run(batch)
    assert all(token.token == token.likely.top[0][0] for token in drawn[greedy] if token.likely)
    assert [token.token for token in drawn[narrow]] == [token.token for token in drawn[greedy]][:5]
    assert [token.token for token in drawn[free]] != [token.token for token in drawn[greedy]][:10]
    assert [len(drawn[number]) for number in (greedy, narrow, free)] == [12, 5, 10]


def test_a_temperature_without_finite_quotients_fails_its_own_row_only(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft)
    good, bad = batch.submit(row(9, 1, max_new_tokens=3)), batch.submit(row(9, 2, temperature=1e-320))
    events: list[Drawn | Failed] = []
    while batch.waiting or batch.running:
        events += batch.tick()
    assert [event.row for event in events if isinstance(event, Failed)] == [bad]
    assert [event.row for event in events if isinstance(event, Drawn)] == [good] * 3


def test_a_stop_string_ends_its_own_row_only(ref: ModelRef, peft: Any) -> None:
    plain = make(ref, peft)
    plain.submit(row(9, 1, max_new_tokens=12))
    [tokens] = run(plain).values()
    text = decode([tokens[3].token])
    batch = make(ref, peft)
    stopped = batch.submit(row(9, 1, max_new_tokens=12, stop_strings=(text,)))
    other = batch.submit(row(9, 1, max_new_tokens=12))
    drawn = run(batch)
    assert text in decode([token.token for token in drawn[stopped]])
    assert len(drawn[stopped]) <= 4
    assert drawn[stopped][-1].stop == "stop"
    assert [token.token for token in drawn[other]] == [token.token for token in tokens]


def test_running_rows_draw_a_token_at_every_tick_while_a_long_prompt_is_prefilled(
    ref: ModelRef, peft: Any
) -> None:
    batch = make(ref, peft, prefill_tokens=16)
    early = batch.submit(row(5, max_new_tokens=60))
    batch.tick()
    late = batch.submit(row(200, max_new_tokens=3))
    before = 0
    while True:
        events = batch.tick()
        assert events[0].row == early
        if [event.row for event in events] == [early, late]:
            break
        before += 1
    assert before == 199 // 16


def test_rows_with_equal_beginnings_share_a_prefill_within_an_owner(ref: ModelRef, peft: Any) -> None:
    def prefilled(*rows: tuple[str, str | None]) -> int:
        batch = make(ref, peft)
        counts: list[int] = []
        forward = batch._engine.forward

        def spy(ids: torch.Tensor, *others: Any) -> torch.Tensor:
            counts.append(ids.numel() if ids.shape[1] > 1 else 0)
            return forward(ids, *others)

        batch._engine.forward = spy  # type: ignore[method-assign]
        for number, (owner, adapter) in enumerate(rows):
            request = RowRequest(tiny.prompt(50, 1), (number,), Sampling(max_new_tokens=4), adapter, 1, owner)
            batch.submit(request)
        drawn = run(batch)
        for number, tokens in drawn.items():
            request = RowRequest(tiny.prompt(50, 1), (), Sampling(), rows[number - 1][1])
            assert_as_alone(peft, request, tokens)
        return sum(counts)

    assert prefilled(("me", None), ("me", None), ("me", None)) == 49
    assert prefilled(("me", None), ("you", None)) == 98
    assert prefilled(("me", None), ("me", "0")) == 98


def test_prompts_that_begin_alike_are_read_in_two_passes(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make(ref, peft)
    begin = tiny.prompt(100, 1)
    for number in range(8):
        prompt = (*begin, *tiny.prompt(41, 10 + number))
        batch.submit(RowRequest(prompt, (number,), Sampling(max_new_tokens=2)))
    assert read_in(batch, monkeypatch) == [[140], [40] * 7]


def test_a_long_common_beginning_is_read_once_though_more_of_each_prompt_differs(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_PASS_TOKENS", 64)
    batch = make(ref, peft)
    begin, requests = tiny.prompt(100, 1), list[RowRequest]()
    for number in range(3):
        prompt = (*begin, *tiny.prompt(131, 10 + number))
        requests.append(RowRequest(prompt, (number,), Sampling(max_new_tokens=2), top_logprobs=2))
        batch.submit(requests[-1])
    assert sum(map(sum, read_in(batch, monkeypatch))) == 100 + 3 * 130


def test_a_cancelled_row_frees_its_memory_and_adapter(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft, cache_tokens=512)
    first = batch.submit(row(100, 1, "0", max_new_tokens=400))
    batch.submit(row(100, 2, "1", max_new_tokens=400))
    waiting = batch.submit(row(100, 3, "2", max_new_tokens=400))
    batch.tick()
    assert (batch.running, batch.waiting, batch.cache_tokens) == (1, 2, 512)
    batch.cancel(first)
    batch.cancel(waiting)
    batch.cancel(12345)
    events = batch.tick()
    assert (batch.running, batch.waiting, [event.row for event in events]) == (1, 0, [2])
    assert batch._pool.loaded == ("0", "1")
    batch.cancel(2)
    batch.tick()
    assert (batch.running, batch.cache_tokens) == (0, 0)


def test_a_freed_place_shows_nothing_of_a_broken_row_before(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft, cache_tokens=128)
    broken = batch.submit(row(30, 1, max_new_tokens=30))
    beside = row(25, 2, max_new_tokens=30)
    beside_number = batch.submit(beside)
    before = batch.tick()
    place = batch._running[0].place
    for part in (*place.shelf.keys, *place.shelf.values):
        part[place.index] = float("nan")
    failed, after = batch.tick()
    assert isinstance(failed, Failed)
    assert failed.row == broken
    assert "not finite" in str(failed.error)
    request = row(20, 3)
    number = batch.submit(request)
    events = [*before[1:], after, *batch.tick()]
    assert batch._running[1].place.shelf is place.shelf
    assert batch._running[1].place.index == place.index
    while batch.running:
        events += batch.tick()
    for which, asked in ((beside_number, beside), (number, request)):
        drawn = [event for event in events if isinstance(event, Drawn) and event.row == which]
        assert len(drawn) == asked.sampling.max_new_tokens
        assert_as_alone(peft, asked, drawn)


def adapter_bytes(ref: ModelRef, peft: Any, name: str) -> int:
    engine = tiny.engine(ref)
    engine.load([updates_of(peft, name)])
    return engine.linears.adapter_bytes


def test_the_least_recently_used_adapter_is_evicted_and_loaded_again(ref: ModelRef, peft: Any) -> None:
    rank_two = adapter_bytes(ref, peft, "0")
    engine = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=512 * 16_384)
    pool = AdapterPool(engine.linears, 2 * rank_two)
    for name in ("a", "b", "c"):
        pool.register(name, lambda: updates_of(peft, "0"))
    batch = RunningBatch(engine, pool)

    def play(name: str) -> None:
        request = row(9, 1, name, max_new_tokens=3)
        batch.submit(request)
        [tokens] = run(batch).values()
        assert_as_alone(peft, RowRequest(request.prompt_ids, (), Sampling(), "0"), tokens)

    for name in ("a", "b", "a", "c"):
        play(name)
    assert pool.loaded == ("a", "c")
    assert pool.evictions == 1
    play("b")
    assert pool.loaded == ("c", "b")
    assert pool.loads == 4
    assert pool.used_bytes == 2 * rank_two


def test_memory_for_a_high_rank_is_free_again_when_its_adapter_is_evicted(ref: ModelRef, peft: Any) -> None:
    rank_two = adapter_bytes(ref, peft, "0")
    wide = {
        path: Update(u.down.repeat(4, 1), u.up.repeat(1, 4) / 4) for path, u in updates_of(peft, "0").items()
    }
    engine = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=512 * 16_384)
    pool = AdapterPool(engine.linears, 8 * rank_two)
    pool.register("wide", lambda: wide)
    for name in ("a", "b", "c", "d"):
        pool.register(name, lambda: updates_of(peft, "0"))
    batch = RunningBatch(engine, pool)
    for name in ("a", "wide", "b", "c", "d", "a", "b", "wide"):
        request = row(9, 1, name, max_new_tokens=3)
        batch.submit(request)
        [tokens] = run(batch).values()
        assert_as_alone(peft, RowRequest(request.prompt_ids, (), Sampling(), "0"), tokens)
        if name == "d":
            assert pool.loaded == ("b", "c", "d")  # "b" took the place of "a", and "c" that of "wide"
            assert pool.used_bytes == 3 * rank_two
    assert pool.loads == 7


def tensor_bytes() -> int:
    """Memory of all tensors there are."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor and not item.is_mkldnn]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_batch_of_adapters_that_do_not_stand_together_copies_none_of_them(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft)
    kinds = dict(zip("abcdef", ("0", "2", "1", "0", "2", "1"), strict=True))
    for name, kind in kinds.items():
        batch._pool.register(name, lambda kind=kind: updates_of(peft, kind))
        batch._pool.acquire(name)
        batch._pool.release(name)
    sizes: list[int] = []
    for names in ([None] * 5, ["a", "c", "e", None], ["b", "c"], ["f", "b", "a", "e", "d"]):
        asked = [row(9, number, name, max_new_tokens=3) for number, name in enumerate(names)]
        numbers = [batch.submit(request) for request in asked]
        drawn = run(batch)
        for number, request in zip(numbers, asked, strict=True):
            alone = RowRequest(request.prompt_ids, (), Sampling(), kinds.get(request.adapter or ""))
            assert_as_alone(peft, alone, drawn[number])
        sizes.append(tensor_bytes())
    assert max(sizes) - sizes[0] < adapter_bytes(ref, peft, "0")
    assert batch._pool.loads == 6


def test_room_for_adapters_grows_in_steps_within_the_budget(ref: ModelRef, peft: Any) -> None:
    rank_two = adapter_bytes(ref, peft, "0")
    pool = AdapterPool(tiny.engine(ref).linears, 40 * rank_two)
    sizes: list[int] = []
    for number in range(50):
        pool.register(str(number), lambda: updates_of(peft, "0"))
        pool.acquire(str(number))
        pool.release(str(number))
        assert len(pool.loaded) * rank_two <= pool.used_bytes <= 40 * rank_two
        sizes.append(pool.used_bytes)
    assert len({*sizes}) <= 14
    assert pool.loaded == tuple(map(str, range(10, 50)))
    assert sizes[-1] == 40 * rank_two


def test_no_more_adapters_leave_than_a_high_rank_needs(ref: ModelRef, peft: Any) -> None:
    rank_two = adapter_bytes(ref, peft, "0")
    twice = {
        path: Update(u.down.repeat(2, 1), u.up.repeat(1, 2)) for path, u in updates_of(peft, "0").items()
    }
    pool = AdapterPool(tiny.engine(ref).linears, 8 * rank_two)
    for name in "abcdef":
        pool.register(name, lambda: updates_of(peft, "0"))
        pool.acquire(name)
        pool.release(name)
    pool.register("twice", lambda: twice)
    pool.acquire("twice")
    assert pool.loaded == ("d", "e", "f", "twice")
    assert pool.used_bytes == 8 * rank_two


def test_a_row_waits_for_an_adapter_that_does_not_fit_beside_those_in_use(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft, budget_bytes=adapter_bytes(ref, peft, "0"))
    first = batch.submit(row(9, 1, "0", max_new_tokens=5))
    second = batch.submit(row(9, 2, "0", max_new_tokens=3))
    other = row(9, 3, "2", max_new_tokens=2)
    last = batch.submit(other)
    batch.tick()
    assert (batch.running, batch.waiting) == (2, 1)
    drawn = run(batch)
    assert [len(drawn[number]) for number in (first, second, last)] == [4, 2, 2]
    assert_as_alone(peft, other, drawn[last])
    assert batch._pool.loaded == ("2",)


def test_rows_go_on_while_an_adapter_is_read(ref: ModelRef, peft: Any) -> None:
    batch, go_on = make(ref, peft), threading.Event()

    def slow() -> dict[str, Update]:
        assert go_on.wait(60)
        return updates_of(peft, "0")

    batch._pool.register("slow", slow)
    first = batch.submit(row(9, 1, max_new_tokens=30))
    batch.tick()
    gone, behind = batch.submit(row(9, 2, "slow")), batch.submit(row(9, 3, max_new_tokens=30))
    for _ in range(5):
        assert [event.row for event in batch.tick()] == [first]
    batch.cancel(gone)
    assert [event.row for event in batch.tick()] == [first, behind]
    late = batch.submit(row(9, 4, "slow"))
    assert [event.row for event in batch.tick()] == [first, behind]
    go_on.set()
    drawn = run(batch)[late]
    assert_as_alone(peft, row(9, 4, "0"), drawn)
    assert batch._pool.loads == 1


def test_an_adapter_that_is_unregistered_while_it_is_read_fails_its_rows(ref: ModelRef, peft: Any) -> None:
    batch, go_on = make(ref, peft), threading.Event()

    def slow() -> dict[str, Update]:
        go_on.wait(60)
        return {}

    batch._pool.register("slow", slow)
    first = batch.submit(row(9, 1, max_new_tokens=10))
    batch.tick()
    late = batch.submit(row(9, 2, "slow"))
    batch.tick()
    batch._pool.unregister("slow")
    batch._pool.register("1 again", lambda: updates_of(peft, "1"))
    last = batch.submit(row(9, 3, "1 again"))
    failed, drawn = batch.tick()
    assert isinstance(failed, Failed)
    assert (failed.row, drawn.row, batch.waiting) == (late, first, 1)
    go_on.set()
    assert_as_alone(peft, row(9, 3, "1"), run(batch)[last])


def test_an_unregistered_adapter_leaves_with_its_last_row(ref: ModelRef, peft: Any) -> None:
    batch, request = make(ref, peft), row(9, 1, "0", max_new_tokens=4)
    batch.submit(request)
    events = batch.tick()
    batch._pool.unregister("0")
    late = batch.submit(request)
    [failed, after] = batch.tick()
    assert isinstance(failed, Failed)
    assert failed.row == late
    with pytest.raises(ContractError, match="registered already"):
        batch._pool.register("0", dict)
    tokens = [*events, after, *run(batch)[1]]
    assert_as_alone(peft, request, [token for token in tokens if isinstance(token, Drawn)])
    assert batch._pool.used_bytes == 0
    batch._pool.register("0", lambda: updates_of(peft, "0"))


def test_adapters_beside_a_new_one_keep_their_updates(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft)
    for name in ("0", "2", "1", "0"):
        request = row(9, 1, name, max_new_tokens=3)
        batch.submit(request)
        [tokens] = run(batch).values()
        assert_as_alone(peft, request, tokens)
    batch._pool.unregister("2")
    for name in ("0", "1"):
        request = row(9, 1, name, max_new_tokens=3)
        batch.submit(request)
        [tokens] = run(batch).values()
        assert_as_alone(peft, request, tokens)


def test_bfloat16_adapters_decode_as_alone_in_any_company(ref: ModelRef, peft: Any) -> None:
    def logits(names: Sequence[str], gone: Sequence[str] = ()) -> torch.Tensor:
        """Logits of adapter "0" among rows of others, after some adapters came and went."""
        engine = TorchEngine(tiny.plain(ref, "bfloat16"), ())
        pool = AdapterPool(engine.linears, 2**30)
        for name in ("0", "1", "2"):
            pool.register(name, lambda name=name: updates_of(peft, name))
        for name in (*gone, *names):
            pool.acquire(name)
        for name in gone:
            pool.release(name)
            pool.unregister(name)
        numbers = [number for name in names if (number := pool.acquire(name)) is not None]
        layout = RaggedLayout(1024)
        slots = [layout.add(1) for _ in numbers]
        layout.select([slot for slot in slots if slot is not None], [1] * len(numbers))
        return engine.next_logits([100] * len(numbers), [0] * len(numbers), layout, numbers)[0]

    alone = logits(["0"])
    for names, gone in ((["0", "2"], ["1"]), (["0", "1", "2"], []), (["0", "1"], ["2"])):
        torch.testing.assert_close(logits(names, gone), alone, atol=0.15, rtol=0.05)
    assert (logits(["1"]) - alone).abs().max() > 1


@pytest.mark.parametrize("name", ["missing", "broken", "uneven", "flat", "large"])
def test_an_adapter_that_cannot_be_loaded_fails_its_rows_only(ref: ModelRef, peft: Any, name: str) -> None:
    batch = make(ref, peft, budget_bytes=adapter_bytes(ref, peft, "0"))
    wrong = Update(torch.zeros(1, 3), torch.zeros(3, 1))
    wide = {path: Update(u.down.repeat(9, 1), u.up.repeat(1, 9)) for path, u in updates_of(peft, "0").items()}
    batch._pool.register("broken", lambda: {"nowhere": wrong})
    fitting = updates_of(peft, "0").items()
    batch._pool.register("uneven", lambda: {path: Update(u.down, u.up[:, :1]) for path, u in fitting})
    batch._pool.register("flat", lambda: {path: Update(u.down[0], u.up) for path, u in fitting})
    batch._pool.register("large", lambda: wide)
    good = batch.submit(row(9, 1, "0", max_new_tokens=3))
    bad = batch.submit(row(9, 1, name))
    after = batch.submit(row(9, 2, "0", max_new_tokens=3))
    events: list[Drawn | Failed] = []
    while batch.waiting or batch.running:
        events += batch.tick()
    assert [event.row for event in events if isinstance(event, Failed)] == [bad]
    assert {event.row for event in events if isinstance(event, Drawn)} == {good, after}


def test_an_adapter_larger_than_the_budget_fails_at_once_and_evicts_none(ref: ModelRef, peft: Any) -> None:
    pool = make(ref, peft, budget_bytes=4 * adapter_bytes(ref, peft, "0"))._pool
    wide = {path: Update(u.down.repeat(9, 1), u.up.repeat(1, 9)) for path, u in updates_of(peft, "0").items()}
    pool.register("large", lambda: wide)
    pool.acquire("0")
    pool.release("0")
    pool.acquire("2")
    with pytest.raises(
        ModelError,
        match=r"takes 1 MB of memory, and adapters may take 0 MB; start .* --adapters-mb 1 or more",
    ):
        pool.acquire("large")
    assert pool.loaded == ("0", "2")


def test_a_row_may_have_all_memory_for_keys_and_values(ref: ModelRef, peft: Any) -> None:
    batch, request = make(ref, peft, cache_tokens=100), row(61, max_new_tokens=40)
    batch.submit(request)
    first = [event for event in batch.tick() if isinstance(event, Drawn)]
    assert batch.cache_tokens == 100
    assert_as_alone(peft, request, [*first, *run(batch)[1]])
    with pytest.raises(ModelError, match="up to 101 tokens"):
        batch.submit(row(62, max_new_tokens=40))


def test_a_long_prompt_is_prefilled_in_pieces_that_get_smaller(
    ref: ModelRef, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_PREFILL_PAIRS", 8_000)
    batch, request = make(ref, peft, prefill_tokens=64), row(400, max_new_tokens=3)
    masks: list[int] = []
    attend = RaggedLayout.attend

    def spy(layout: RaggedLayout, layer: int, query: torch.Tensor, *others: Any) -> torch.Tensor:
        masks.extend(part.bias.numel() for part in layout._parts)
        return attend(layout, layer, query, *others)

    monkeypatch.setattr(RaggedLayout, "attend", spy)
    batch.submit(request)
    assert_as_alone(peft, request, run(batch)[1])
    assert max(masks) <= 8_000


def test_what_can_never_fit_is_refused_at_once(ref: ModelRef, peft: Any) -> None:
    batch = make(ref, peft, cache_tokens=128)
    with pytest.raises(ModelError, match="up to 139 tokens"):
        batch.submit(row(130))
    with pytest.raises(ModelError, match="expected 1 to 1023"):
        batch.submit(row(1024))
    with pytest.raises(ModelError, match="expected 1 to 1023"):
        batch.submit(row(0))


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 8}, "rank_pattern": {"layers.0.*q_proj": 2}}],
)
def test_an_adapter_is_read_from_its_files_as_peft_has_it(
    ref: ModelRef, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", **settings)
    model: Any = get_peft_model(tiny.plain(ref), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    read, expected = read_adapter(tmp_path), updates_of(model, "default")
    assert read.keys() == expected.keys()
    for path, update in expected.items():
        assert torch.equal(read[path].down, update.down)
        torch.testing.assert_close(read[path].up, update.up)


def test_files_that_are_no_plain_adapter_are_refused(ref: ModelRef, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path)
    get_peft_model(tiny.plain(ref), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ModelError, match="use_dora is set"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": "x"}))
    with pytest.raises(ModelError, match="lora_alpha is 'x'"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path)
