"""Sampling with many adapters: in one batch, one after another, with PEFT, and without adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tiny
import torch
from side_by_side import Ways
from train_shared import dtype, expect, timed_model

from envkit.engine.adapters.updates import Update, updates_of
from envkit.engine.protocol import Request, Sampling
from envkit.engine.torch_engine import TorchEngine

ADAPTERS, PROMPTS, ROWS_EACH, PROMPT, NEW = 32, 32, 2, 20, 16


@contextlib.contextmanager
def adapter_ways(count: int = ADAPTERS) -> Generator[Ways]:
    """Sample two short answers to each of 32 prompts, which share ``count`` adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig

    ref = timed_model()
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    peft: Any = get_peft_model(tiny.plain(ref, dtype()), config, adapter_name="0")
    for number in range(1, count):
        peft.add_adapter(str(number), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.01)
    peft.eval()
    adapters = [updates_of(peft, str(number)) for number in range(count)]
    wider = [
        {name: Update(each.down.repeat(4, 1), each.up.repeat(1, 4)) for name, each in adapter.items()}
        for adapter in adapters
    ]
    engine = TorchEngine(tiny.plain(ref, dtype()), [])
    prompts = [tiny.prompt(PROMPT, seed=100 + number) for number in range(PROMPTS)]
    adapter_requests = [
        Request(prompt, (number, row), adapter=number % count)
        for number, prompt in enumerate(prompts)
        for row in range(ROWS_EACH)
    ]
    base_requests = [Request(request.prompt_ids, request.rng_key) for request in adapter_requests]
    ids = torch.tensor([request.prompt_ids for request in adapter_requests])
    names = [str(request.adapter) for request in adapter_requests]
    settings = GenerationConfig(
        max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )

    def ours(loaded: Sequence[Mapping[str, Update]], requests: Sequence[Request]) -> Callable[[], None]:
        def measure() -> None:
            engine.load(loaded)
            drawn = engine.generate(requests, Sampling(1.0, NEW))
            expect(sum(len(each.ids) for each in drawn), len(adapter_requests) * NEW)

        return measure

    def one_after_another() -> None:
        for number, adapter in enumerate(adapters):
            engine.load([adapter])
            mine = [replace(each, adapter=0) for each in adapter_requests if each.adapter == number]
            drawn = engine.generate(mine, Sampling(1.0, NEW))
            expect(sum(len(each.ids) for each in drawn), len(mine) * NEW)

    def theirs() -> None:
        with torch.no_grad():
            found = peft.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=names,
                generation_config=settings,
            )
        expect(found[:, PROMPT:].numel(), len(adapter_requests) * NEW)

    yield {
        "base": ours([], base_requests),
        f"{count} of rank 4": ours(adapters, adapter_requests),
        f"{count} of rank 16": ours(wider, adapter_requests),
        f"{count} one after another": one_after_another,
        "PEFT adapter_names": theirs,
    }
