"""The vLLM engine: vLLM's scheduler and kernels behind the engine protocol, in a separate process."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import tempfile
import weakref
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from envkit.engine.adapters.updates import Update
from envkit.engine.protocol import AdapterEngine, Completion, Request, Sampling, seeds
from envkit.errors import ContractError, MissingExtraError, ModelError
from envkit.models import ModelRef
from envkit.runtime.lease import Lease
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped

#: Values of vLLM's ``max_lora_rank``.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@final
class VLLMEngine(AdapterEngine):
    """Samples with vLLM. Implements `envkit.engine.protocol.AdapterEngine`.

    vLLM's prefix cache shares KV state between conversations, so `Request.earlier_tokens` and
    `Request.keep_cache` have no effect. vLLM makes the random draws, seeded by each request's key. It holds
    adapters in the base's dtype, the learner in float32, so log-probabilities differ by rounding; see
    ``importance_sampling_mode`` in `envkit.training.config.TrainConfig`.

    vLLM starts its process by running the main module again: in your own script, create the engine below
    ``if __name__ == "__main__":``. On a CPU, vLLM uses as many threads as torch does here. vLLM's environment
    variables take precedence. By default it logs only errors, to stderr.

    Args:
        ref: the model to sample from.
        stop_ids: ids that end a turn.
        dtype: of the weights, ``"float32"`` or ``"bfloat16"``.
        lora_r: largest rank of an adapter, at most 512.
        max_adapters: adapters per batch, the base included; more take turns.
        max_length: longest conversation in tokens; ``None`` for the model's context.
        kv_cache_bytes: memory for keys and values. It must hold one conversation of ``max_length``.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: vLLM cannot serve the model on this machine.
    """

    def __init__(
        self,
        ref: ModelRef,
        stop_ids: Sequence[int],
        *,
        dtype: str,
        lora_r: int = 16,
        max_adapters: int = 1,
        max_length: int | None = None,
        kv_cache_bytes: int = 2 * 2**30,
    ) -> None:
        rank = supported_rank(lora_r)
        threads = torch.get_num_threads()
        others = set(multiprocessing.active_children())
        try:
            with variables(threads):
                self._vllm, self._request, self._died = imported()
                self._llm: Any = self._vllm.LLM(
                    model=str(ref.path),
                    skip_tokenizer_init=True,
                    dtype=dtype,
                    enable_lora=True,
                    max_lora_rank=rank,
                    max_loras=max_adapters,
                    enable_prefix_caching=True,
                    # On a CPU, vLLM 0.32 crashes on chunked prefill with seeded draws.
                    enable_chunked_prefill=None if torch.cuda.is_available() else False,
                    enforce_eager=True,
                    max_model_len=max_length,
                    # By default vLLM takes nine tenths of the memory, and the learner needs its share.
                    kv_cache_memory_bytes=kv_cache_bytes,
                    # Log-probabilities after temperature and truncation.
                    logprobs_mode="processed_logprobs",
                    use_tqdm_on_load=False,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{ref.id}: vLLM cannot serve it ({str(error)[:300]})") from error
        finally:
            torch.set_num_threads(threads)  # vLLM sets 1, and the learner runs in this process
        self._processes = set(multiprocessing.active_children()) - others
        self._rank = rank
        self._stop = sorted(set(stop_ids))
        #: vLLM's request object of each adapter; ``None`` for the base.
        self._adapters: list[Any] = []
        self._made = 0
        self._lease = Lease(Path(tempfile.gettempdir()))
        #: Removes the adapters' files; runs at the latest when the engine or program ends.
        self._clean = weakref.finalize(self, self._lease.close)

    def load(self, adapters: Sequence[Mapping[str, Update]]) -> None:
        """See `envkit.engine.protocol.AdapterEngine.load`; vLLM reads an adapter when it is first used."""
        for updates in adapters:
            require_rank(updates, self._rank)
        self.forget()
        for path in self._lease.path.glob("[0-9]*"):
            shutil.rmtree(path)
        example = next((updates for updates in adapters if updates), None)
        lora_requests: list[Any] = []
        for updates in adapters:
            if example is None:
                lora_requests.append(None)
                continue
            # On a CPU, vLLM 0.32 applies its last slot's adapter to rows without one.
            # So the base gets a zero adapter.
            self._made += 1  # vLLM caches adapters by number
            path = self._lease.path / str(self._made)
            write_adapter(updates or zero_adapter(example), path)
            lora_requests.append(self._request(f"adapter-{self._made}", self._made, str(path)))
        self._adapters = lora_requests

    def forget(self) -> None:
        """See `envkit.engine.protocol.AdapterEngine.forget`."""
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """End vLLM's processes; see `envkit.engine.protocol.AdapterEngine.close`."""
        self._clean()
        self._llm.llm_engine.engine_core.shutdown()
        for process in self._processes:
            process.join()  # vLLM kills it after five seconds, and does not wait for that

    @property
    def longest(self) -> int:
        return int(self._llm.model_config.max_model_len)

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, should_stop: ShouldStop = never
    ) -> Generator[tuple[int, Completion]]:
        raise_if_stopped(should_stop)  # once: vLLM answers all requests in one call
        if not requests:
            return
        adapters = self._adapters or [None]
        for request in requests:
            if len(request.prompt_ids) >= self.longest:
                raise ModelError(
                    f"a prompt has {len(request.prompt_ids)} tokens; vLLM reads {self.longest}, the answer "
                    "included; use shorter tasks, or a model with a longer context"
                )
            if not 0 <= request.adapter < len(adapters):
                raise ContractError(
                    f"a request is for adapter {request.adapter}; the engine was given "
                    f"{len(self._adapters)}, numbered from 0"
                )
        if sampling.stop_strings:
            raise ContractError(
                "vLLM runs without a tokenizer and supports no stop strings; leave stop_strings empty"
            )
        settings: list[Any] = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed_of(request.rng_key),
                stop_token_ids=self._stop,
                ignore_eos=True,  # only `stop_ids` end a turn
                logprobs=0,
                detokenize=False,
            )
            for request in requests
        ]
        try:
            answers = self._llm.generate(
                [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
                settings,
                lora_request=[adapters[request.adapter] for request in requests],
                use_tqdm=False,
            )
        except self._died as error:
            raise ModelError(
                "vLLM's process ended while sampling; its message is above. --engine torch works without it"
            ) from error
        yield from enumerate(_completion(answer.outputs[0]) for answer in answers)


def supported_rank(lora_r: int) -> int:
    """Return the smallest ``max_lora_rank`` of vLLM's for adapters of this rank.

    Raises:
        ContractError: there is none.
    """
    rank = next((rank for rank in _RANKS if rank >= lora_r), 0)
    if not rank:
        raise ContractError(f"lora_r is {lora_r}; vLLM supports ranks up to {_RANKS[-1]}")
    return rank


def imported() -> tuple[Any, Any, Any]:
    """Import vLLM; returns the module, its adapter request class and its error for a dead process."""
    try:
        # By name, because vLLM is not installed where types are checked.
        vllm = importlib.import_module("vllm")
        request = importlib.import_module("vllm.lora.request").LoRARequest
        return vllm, request, importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
    except ImportError as error:
        raise MissingExtraError("vllm", "vllm") from error


@contextlib.contextmanager
def variables(threads: int) -> Generator[None]:
    """Set environment variables that vLLM reads on import and when it starts processes.

    Args:
        threads: of its processes.
    """
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is the program's own
        # By default vLLM leaves one core idle, which is half of two.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _completion(output: Any) -> Completion:
    ids = tuple(output.token_ids)
    logprobs = tuple(by_token[token].logprob for token, by_token in zip(ids, output.logprobs, strict=True))
    return Completion(ids, logprobs, "stop" if output.finish_reason == "stop" else "length")


def seed_of(rng_key: Sequence[int]) -> int:
    """Derive a seed from the key alone; 63 bits are vLLM's limit."""
    return int(seeds(rng_key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def zero_adapter(example: Mapping[str, Update]) -> dict[str, Update]:
    """Make a zero adapter of rank 1 for one of ``example``'s layers."""
    name, update = next(iter(example.items()))
    return {name: Update(torch.zeros_like(update.down[:1]), torch.zeros_like(update.up[:, :1]))}


def require_rank(updates: Mapping[str, Update], max_rank: int) -> None:
    """Refuse an adapter of a rank that vLLM was not started for, or with more than matrices.

    Raises:
        ModelError: the rank of a layer is too large, its output is shifted, or its weight is replaced.
    """
    for name, update in updates.items():
        if update.shift is not None or update.weight is not None:
            change = "shifts the output" if update.weight is None else "replaces the weight"
            raise ModelError(f"an adapter {change} of {name}; vLLM cannot do that, and the torch engine can")
        if (rank := update.down.shape[0]) > max_rank:
            raise ModelError(f"an adapter has rank {rank} at {name}; this engine supports up to {max_rank}")


def write_adapter(updates: Mapping[str, Update], folder: Path) -> None:
    """Write an adapter as a PEFT folder. Its scale is in the weights, so alpha equals the rank."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    rank = max(update.down.shape[0] for update in updates.values())
    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        # Pad every layer to the largest rank with zeros.
        missing = rank - update.down.shape[0]
        down = torch.nn.functional.pad(update.down, (0, 0, 0, missing))
        up = torch.nn.functional.pad(update.up, (0, missing))
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.rsplit(".", 1)[-1] for name in updates})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
