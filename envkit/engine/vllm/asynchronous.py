"""vLLM's asynchronous engine, started for a server: rows of many adapters come and go at any time."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, final

import torch

from envkit.engine.adapters.updates import Update
from envkit.engine.protocol import Sampling
from envkit.engine.vllm.engine import imported, seed_of, supported_rank, variables
from envkit.errors import ModelError
from envkit.models import ModelRef

#: Most likely tokens that a request may ask for; OpenAI's limit.
_MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class AsyncLimits:
    """Memory and sizes of the engine.

    Args:
        dtype: of the weights, ``"float32"`` or ``"bfloat16"``.
        kv_cache_bytes: memory for keys and values.
        adapters_bytes: memory for adapters; it sets how many different ones a batch may have.
        max_rank: largest rank of an adapter.
        max_rows: rows that are decoded together.
    """

    dtype: str
    kv_cache_bytes: int
    adapters_bytes: int
    max_rank: int
    max_rows: int


@final
class AsyncVLLM:
    """vLLM's ``AsyncLLM`` with what envkit needs to ask it.

    Args:
        ref: the base model.
        stop_ids: ids that end an answer.
        shapes: numbers of outputs and inputs of its linear layers without the head, by path.
        limits: of memory and sizes.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: vLLM cannot serve the model with these limits.
    """

    def __init__(
        self,
        ref: ModelRef,
        stop_ids: Sequence[int],
        shapes: Mapping[str, tuple[int, int]],
        limits: AsyncLimits,
    ) -> None:
        self.shapes, self.max_rank = shapes, supported_rank(limits.max_rank)
        self.stop_ids = frozenset(stop_ids)
        number_bytes = 4 if limits.dtype == "float32" else 2
        # vLLM holds each adapter twice: as it was read, and in the batch.
        slot_bytes = 2 * number_bytes * self.max_rank * sum(map(sum, shapes.values()))
        slots = min(limits.adapters_bytes // slot_bytes, limits.max_rows + 1)
        if slots < 2:  # one may be for the base; see `base_needs_adapter`
            raise ModelError(
                f"an adapter of rank {self.max_rank} takes {slot_bytes / 2**20:.0f} MB in vLLM, and there "
                f"must be room for two; the memory for adapters is {limits.adapters_bytes / 2**20:.0f} MB"
            )
        #: Memory of adapters. vLLM allocates it when it starts.
        self.adapter_bytes = slots * slot_bytes
        on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
        #: On a CPU, vLLM 0.32 applies its last slot's adapter to rows without one.
        self.base_needs_adapter = not on_gpu
        before = {*multiprocessing.active_children()}
        try:
            with variables(threads):
                self._vllm, self.lora_request, self.died = imported()
                self._delta = importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA
                self.llm: Any = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(
                    self._vllm.AsyncEngineArgs(
                        model=str(ref.path),
                        skip_tokenizer_init=True,
                        dtype=limits.dtype,
                        enable_lora=True,
                        max_lora_rank=self.max_rank,
                        max_loras=slots,
                        max_cpu_loras=slots,
                        max_num_seqs=limits.max_rows,
                        kv_cache_memory_bytes=limits.kv_cache_bytes,
                        enable_prefix_caching=True,
                        # On a CPU, vLLM 0.32 crashes on chunked prefill with seeded draws.
                        enable_chunked_prefill=None if on_gpu else False,
                        enforce_eager=not on_gpu,
                        max_logprobs=_MOST_LOGPROBS,
                        logprobs_mode="raw_logprobs",
                        enable_log_requests=False,
                    )
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{ref.id}: vLLM cannot serve it ({str(error)[:300]})") from error
        finally:
            torch.set_num_threads(threads)  # vLLM sets 1
        self._processes: set[BaseProcess] = {*multiprocessing.active_children()} - before
        #: Tokens that the model reads at most, the answer included.
        self.longest = int(self.llm.model_config.max_model_len)

    @property
    def cache_tokens(self) -> int:
        """Tokens of vLLM's KV cache, which has one size."""
        cache = self.llm.vllm_config.cache_config
        return int(cache.num_gpu_blocks or 0) * int(cache.block_size)

    def settings(self, sampling: Sampling, rng_key: Sequence[int], top_logprobs: int | None) -> Any:
        """Return vLLM's parameters of a row, whose tokens come one by one.

        Args:
            sampling: how they are drawn.
            rng_key: addresses the draws.
            top_logprobs: as in `RowRequest`; log-probabilities are the model's own.
        """
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed_of(rng_key),
            stop_token_ids=sorted(self.stop_ids),
            ignore_eos=True,  # only `stop_ids` end an answer
            logprobs=top_logprobs,
            detokenize=False,
            output_kind=self._delta,
        )

    def zero_adapter(self) -> dict[str, Update]:
        """An adapter without an effect."""
        path, (outputs, inputs) = next(iter(self.shapes.items()))
        return {path: Update(torch.zeros(1, inputs), torch.zeros(outputs, 1))}

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.shutdown()
        for process in self._processes:
            process.join()
