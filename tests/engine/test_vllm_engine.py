"""The vLLM engine compared with plain transformers, in a separate environment: `make test-vllm`."""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.util
import multiprocessing
import os
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from scipy.stats import chisquare

from envkit.engine.adapters.updates import Update
from envkit.engine.protocol import Completion, Request, Sampling
from envkit.engine.vllm.engine import VLLMEngine, variables
from envkit.errors import ContractError, MissingExtraError, ModelError
from envkit.models import SMALL_MODEL, ModelRef, resolve

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = [
    pytest.mark.nightly,
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM has an environment of its own: make test-vllm"),
]
STOPS = tuple(range(3, 49152, 10))
#: Largest difference in log-probability caused by another order of float32 sums.
TOLERANCE_NATS = 2e-4


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_the_error_without_vllm_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"\.\[vllm\]"):
        VLLMEngine(resolve(SMALL_MODEL), [2], dtype="float32")


def test_vllm_starts_with_envkits_threads_and_the_users_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    before = dict(os.environ)
    with variables(3):
        assert [os.environ[name] for name in names] == ["3", "nobind", "INFO", "ext://sys.stderr"]
    assert dict(os.environ) == before


def test_vllm_gets_the_memory_for_keys_and_values(monkeypatch: pytest.MonkeyPatch, ref: ModelRef) -> None:
    given = dict[str, Any]()
    fake = SimpleNamespace(LLM=lambda **settings: given.update(settings))
    monkeypatch.setattr("envkit.engine.vllm.engine.imported", lambda: (fake, None, RuntimeError))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    VLLMEngine(ref, [2], dtype="float32", kv_cache_bytes=300 * 2**20)
    assert given["kv_cache_memory_bytes"] == 300 * 2**20
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ, "it would take precedence"


@pytest.fixture(scope="module")
def ref() -> ModelRef:
    return resolve(SMALL_MODEL)


@pytest.fixture(scope="module")
def engine(ref: ModelRef) -> Generator[VLLMEngine]:
    made: list[VLLMEngine] = [VLLMEngine(ref, STOPS, dtype="float32", lora_r=6, max_adapters=3)]
    yield made[0]
    made.clear()
    gc.collect()


@pytest.fixture(scope="module")
def plain(ref: ModelRef) -> Any:
    return tiny.plain(ref)


def requests(count: int = 12, adapters: int = 1) -> list[Request]:
    prompts = [tiny.prompt(length, seed=length) for length in (5, 40, 130)]
    return [Request(prompts[row % 3], (7, row), adapter=row % adapters) for row in range(count)]


def updates(model: Any, seed: int, rank: int) -> dict[str, Update]:
    """Return an adapter on every linear layer except the head."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    return {
        name: Update(drawn(rank, module.in_features), drawn(module.out_features, rank))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def merged(model: Any, adapter: dict[str, Update]) -> Any:
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        if name in adapter:
            module.weight.data += adapter[name].up @ adapter[name].down
    return made


def max_logprob_error(
    models: Sequence[Any], batch: Sequence[Request], drawn: Sequence[Completion], temperature: float
) -> float:
    """Return the largest difference, in nats, to the logprobs of plain transformers."""
    worst = 0.0
    for request, completion in zip(batch, drawn, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
        with torch.no_grad():
            logits = models[request.adapter](ids).logits[0, len(request.prompt_ids) - 1 : -1].double()
        expected = torch.log_softmax(logits / (temperature or 1), -1)
        chosen = expected.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        worst = max(worst, float((chosen - torch.tensor(completion.logprobs).double()).abs().max()))
    return worst


class TestWithVLLM:
    pytestmark = needs_vllm

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
    def test_logprobs_equal_those_of_plain_transformers(
        self, engine: VLLMEngine, plain: Any, temperature: float
    ) -> None:
        engine.load([])
        drawn = engine.generate(requests(), Sampling(temperature, 14))
        assert max_logprob_error([plain], requests(), drawn, temperature) < TOLERANCE_NATS
        assert engine.generate(requests(), Sampling(temperature, 14)) == drawn

    def test_completions_end_at_a_stop_id_or_the_budget(self, engine: VLLMEngine) -> None:
        engine.load([])
        drawn = engine.generate(requests(24), Sampling(1.0, 14))
        assert {completion.stop for completion in drawn} == {"stop", "length"}
        for completion in drawn:
            assert (completion.ids[-1] in STOPS) == (completion.stop == "stop")
            assert not set(completion.ids[:-1]) & set(STOPS)
            assert completion.stop == "stop" or len(completion.ids) == 14

    def test_temperature_0_takes_the_most_likely_tokens(self, engine: VLLMEngine, plain: Any) -> None:
        engine.load([])
        prompt = tuple(tiny.tokenizer()("I am done.").input_ids)
        [completion] = engine.generate([Request(prompt, (1,))], Sampling(0.0, 40))
        with torch.no_grad():
            logits = plain(torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
        assert tuple(logits.argmax(-1).tolist()) == completion.ids

    def test_draws_follow_the_truncated_distribution(self, engine: VLLMEngine, plain: Any) -> None:
        engine.load([])
        prompt = tiny.prompt(20, seed=1)
        batch = [Request(prompt, (3, row)) for row in range(2000)]
        with torch.no_grad():
            logits = plain(torch.tensor([prompt])).logits[0, -1].double()
        top = torch.softmax(logits / 2.0, -1).topk(4)
        sampling = Sampling(2.0, 1, top_p=float(top.values.sum() - top.values[-1] / 2))  # keeps these four
        drawn = [completion.ids[0] for completion in engine.generate(batch, sampling)]
        probabilities = top.values / top.values.sum()
        counts = [drawn.count(token) for token in top.indices.tolist()]
        assert sum(counts) == len(batch)
        assert chisquare(counts, probabilities.numpy() * len(batch)).pvalue > 1e-4
        again = engine.generate(batch[:8], sampling)
        for completion in again:
            place = top.indices.tolist().index(completion.ids[0])
            assert completion.logprobs[0] == pytest.approx(
                float(probabilities[place].log()), abs=TOLERANCE_NATS
            )

    def test_rows_use_their_own_adapters_and_load_replaces_them(self, engine: VLLMEngine, plain: Any) -> None:
        first, second, third = (updates(plain, seed, rank) for seed, rank in ((1, 4), (2, 6), (3, 1)))
        batch = requests(12, adapters=3)
        engine.load([first, {}, second])
        drawn = engine.generate(batch, Sampling(1.0, 8))
        models = [merged(plain, first), plain, merged(plain, second)]
        assert max_logprob_error(models, batch, drawn, 1.0) < TOLERANCE_NATS
        assert max_logprob_error([plain] * 3, batch, drawn, 1.0) > 0.1, "the adapters do nothing"
        engine.load([third, second, {}])
        drawn = engine.generate(batch, Sampling(1.0, 8))
        assert max_logprob_error([merged(plain, third), models[2], plain], batch, drawn, 1.0) < TOLERANCE_NATS

    def test_more_adapters_than_fit_one_batch_are_served_in_turn(
        self, engine: VLLMEngine, plain: Any
    ) -> None:
        some = [updates(plain, seed, 2) for seed in range(5)]
        batch = requests(15, adapters=5)
        engine.load(some)
        drawn = engine.generate(batch, Sampling(1.0, 4))
        assert (
            max_logprob_error([merged(plain, adapter) for adapter in some], batch, drawn, 1.0)
            < TOLERANCE_NATS
        )

    def test_conversations_can_be_continued(self, engine: VLLMEngine, plain: Any) -> None:
        engine.load([])
        batch = [dataclasses.replace(request, keep_cache=True) for request in requests()]
        for turn in range(3):
            drawn = engine.generate(batch, Sampling(1.0, 6))
            assert max_logprob_error([plain], batch, drawn, 1.0) < TOLERANCE_NATS
            batch = [
                dataclasses.replace(
                    request,
                    prompt_ids=(*request.prompt_ids, *completion.ids, *tiny.prompt(7, seed=turn)),
                    earlier_tokens=len(request.prompt_ids) + len(completion.ids),
                    rng_key=(*request.rng_key, turn),
                )
                for request, completion in zip(batch, drawn, strict=True)
            ]

    def test_prompts_that_exceed_one_batch_are_served_in_turn(self, engine: VLLMEngine, plain: Any) -> None:
        engine.load([])
        batch = [Request(tiny.prompt(900, seed=row), (9, row)) for row in range(12)]
        drawn = engine.generate(batch, Sampling(1.0, 4))
        assert max_logprob_error([plain], batch, drawn, 1.0) < TOLERANCE_NATS

    def test_unsupported_requests_and_adapters_are_refused(
        self, engine: VLLMEngine, plain: Any, ref: ModelRef
    ) -> None:
        engine.load([{}])
        with pytest.raises(ContractError, match="adapter 1; the engine was given 1"):
            engine.generate(requests(2, adapters=2), Sampling())
        with pytest.raises(ContractError, match="ranks up to 512"):
            VLLMEngine(ref, [2], dtype="float32", lora_r=513)
        with pytest.raises(ModelError, match="20000 tokens; vLLM reads 8192"):
            engine.generate([Request((5,) * 20_000, (1,))], Sampling(1.0, 4))
        with pytest.raises(ModelError, match=r"rank 9 at model.layers.0.*supports up to 8"):
            engine.load([updates(plain, 1, 9)])
        assert engine.generate([], Sampling()) == []
        assert len(engine.generate(requests(2), Sampling(1.0, 4))) == 2

    def test_closing_the_engine_ends_its_process(self, ref: ModelRef) -> None:
        before = set(multiprocessing.active_children())
        engine = VLLMEngine(ref, [2], dtype="float32", max_length=512)
        assert set(multiprocessing.active_children()) - before
        for _ in range(2):
            engine.close()
            assert set(multiprocessing.active_children()) == before
