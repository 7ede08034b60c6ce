"""Requests for engine tests, and their comparison with plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch

from envkit.engine.protocol import Completion, Request, uniforms
from envkit.models import ModelRef

#: (prompt length, rows): short and long prompts, single rows and groups.
GROUPS = ((1, 3), (9, 1), (33, 8), (60, 5), (34, 2))
#: A tenth of all ids, so that rows end at different times.
STOPS = tuple(range(3, 49152, 10))


def requests(groups: Sequence[tuple[int, int]] = GROUPS) -> list[Request]:
    """Return the requests of all groups, interleaved."""
    made = [
        Request(tiny.prompt(length, seed=length), (7, group, row))
        for group, (length, rows) in enumerate(groups)
        for row in range(rows)
    ]
    return made[::2] + made[1::2]


def reference(model: Any, request: Request, completion: Completion, temperature: float) -> torch.Tensor:
    """Return the log-probabilities (T, V) of a plain forward pass over prompt and completion."""
    ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, dim=-1)


def assert_matches_reference(
    model: Any, batch: Sequence[Request], drawn: Sequence[Completion], temperature: float
) -> None:
    """Assert that every token is the reference distribution's draw for its key, with the right logprob.

    What rounding may change is the logits, by 5e-5; a temperature divides them, so it divides that bound too.
    """
    for request, completion in zip(batch, drawn, strict=True):
        expected = reference(model, request, completion, temperature)
        chosen = torch.tensor(completion.ids)[:, None]
        torch.testing.assert_close(
            torch.tensor(completion.logprobs).double(),
            expected.gather(1, chosen)[:, 0],
            atol=5e-5 / temperature,
            rtol=0,
        )
        cdf = expected.exp().cumsum(-1)
        above = cdf.gather(1, chosen)[:, 0].numpy()
        below = above - expected.exp().gather(1, chosen)[:, 0].numpy()
        number = uniforms(request.rng_key, len(completion.ids))
        assert ((below - 1e-5 < number) & (number < above + 1e-5)).all()


def next_requests(batch: Sequence[Request], drawn: Sequence[Completion], turn: int) -> list[Request]:
    """Return requests that continue the given ones with new ids; a fifth of the conversations ends."""
    made: list[Request] = []
    for number, (request, completion) in enumerate(zip(batch, drawn, strict=True)):
        if number % 5 != turn:
            read = request.prompt_ids + completion.ids
            added = tiny.prompt(1 + (7 * number + turn) % 11, seed=1000 * turn + number)
            made.append(
                Request((*read, *added), (*request.rng_key, turn), earlier_tokens=len(read), keep_cache=True)
            )
    return made


def peft_model(ref: ModelRef) -> Any:
    """Return a PEFT model with three adapters of different ranks on different layers."""
    from peft import LoraConfig, get_peft_model

    model: Any = tiny.plain(ref)
    kinds: list[tuple[int, Any]] = [
        (2, "all-linear"),
        (5, ["q_proj", "down_proj"]),
        (3, ["v_proj", "up_proj"]),
    ]
    for number, (rank, modules) in enumerate(kinds):
        config = LoraConfig(r=rank, lora_alpha=7, target_modules=modules, task_type="CAUSAL_LM")
        if number == 0:
            model = get_peft_model(model, config, adapter_name="0")
        else:
            model.add_adapter(str(number), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def record_forwards(engine: Any) -> list[tuple[int, int]]:
    """Return a list that collects the shapes of all later forward passes."""
    seen, forward = list[tuple[int, int]](), engine.forward

    def spy(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append((ids.shape[0], ids.shape[1]))
        return forward(ids, *others)

    engine.forward = spy
    return seen
