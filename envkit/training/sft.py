"""The warm start: supervised fine-tuning on known answers.

A batch is packed like one of RL: what its prompts have in common is read once, and logits are computed only
where they predict an answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envkit.engine.attention.layouts import context_length
from envkit.engine.chat import ChatRenderer, Conversation
from envkit.engine.prefix import common_prefix_length
from envkit.engine.protocol import seeds
from envkit.errors import ModelError
from envkit.runtime.stop import ShouldStop, never, raise_if_stopped
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.grpo import require_finite
from envkit.training.learner.heap import HeapLimit
from envkit.training.learner.memory import tokens_per_forward
from envkit.training.learner.packing import TrainingRow, chunks, pack
from envkit.training.policy import Policy

#: (step, loss) after every step.
OnStep = Callable[[int, float], None]

#: Share of the steps in which the learning rate rises.
_WARMUP = 0.05
#: Seconds between checkpoints.
_SAVE_S = 120.0


@dataclass(frozen=True, slots=True)
class SftExample:
    """A demonstration in tokens.

    Args:
        prompt: ids before the first answer, at least one.
        row: what follows: answers, which have a loss, and the observations between them.
        length: of the longest context, its answer included.
    """

    prompt: tuple[int, ...]
    row: TrainingRow
    length: int

    @property
    def trained(self) -> int:
        """Number of tokens with a loss."""
        return sum(self.row.trained)


def train(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    config: TrainConfig,
    on_step: OnStep,
    should_stop: ShouldStop = never,
    store: CheckpointStore | None = None,
) -> int:
    """Train the policy on demonstrations, one pass over all of them.

    The learning rate rises for a twentieth of the steps and then falls linearly. After its newest checkpoint,
    an interrupted pass goes on with the same steps as one that was not interrupted.

    Args:
        policy: its adapter is trained in place.
        demonstrations: correct answers; the seed decides their order. The last incomplete batch is left out.
        config: the ``sft_*`` fields, the seed and the limits of memory and of the gradient.
        on_step: called after every step.
        should_stop: polled before every forward pass.
        store: of checkpoints, one every two minutes and one when a step cannot be taken, such as when the
            pass is stopped; ``None`` for none.

    Returns:
        The number of steps of the whole pass.

    Raises:
        Stopped: ``should_stop`` has become True; the adapter is half trained.
        ModelError: a demonstration is longer than the model's context.
        StoreError: a checkpoint cannot be read or written.
        TrainingError: a gradient is not finite.
    """
    size, max_tokens = config.sft_batch_size, tokens_per_forward(policy.ref, config)
    steps = len(demonstrations) // size
    examples = [encode(policy.renderer, shown, config.max_context_length) for shown in demonstrations]
    _require_fit(policy, examples)
    order: list[int] = (
        np.random.Generator(np.random.Philox(seeds((config.seed,)))).permutation(len(examples)).tolist()
    )
    optimizer, heap = torch.optim.AdamW(policy.trainable(), weight_decay=0.0), HeapLimit()
    state = store.load(policy, optimizer) if store else None
    taken, saved_at = int(state["step"]) if state else 0, time.monotonic()
    for step in range(taken + 1, steps + 1):
        batch = [examples[index] for index in order[(step - 1) * size : step * size]]
        for settings in optimizer.param_groups:
            settings["lr"] = config.sft_learning_rate * _schedule(step, steps)
        try:
            loss = backward(policy, batch, max_tokens, should_stop)
            norm = torch.nn.utils.clip_grad_norm_(policy.trainable(), config.max_grad_norm)
            require_finite(float(norm), step, "sft_learning_rate")
        except Exception:  # also `Stopped`, and too little memory
            if store and step > taken + 1:
                store.save(step - 1, policy, optimizer, {"step": step - 1})
            raise
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        heap.after_step()
        on_step(step, loss)
        if store and time.monotonic() - saved_at >= _SAVE_S:
            store.save(step, policy, optimizer, {"step": step})
            saved_at = time.monotonic()
    return steps


def backward(
    policy: Policy, batch: Sequence[SftExample], max_tokens: int, should_stop: ShouldStop = never
) -> float:
    """Accumulate the gradient of a batch's mean loss per answer token, and return that loss in nats."""
    answers, total = sum(example.trained for example in batch), 0.0
    for prompt, rows in _packs(batch):
        raise_if_stopped(should_stop)
        prefilled = policy.prefill(prompt)
        for chunk in chunks(prompt, rows, max_tokens):
            raise_if_stopped(should_stop)
            new_N = policy.logprobs(pack(prompt, chunk, policy.device), 1.0, prefilled)
            loss = -new_N.sum() / answers
            loss.backward()
            total += float(loss.detach())
        prefilled.backward()
    return total


def _packs(batch: Iterable[SftExample]) -> Iterator[tuple[tuple[int, ...], list[TrainingRow]]]:
    """Split a batch into packs: what all prompts of a pack begin with, and a row of what follows in each."""
    by_first: dict[int, list[SftExample]] = {}
    for example in batch:  # a pack's prompt has at least one token
        by_first.setdefault(example.prompt[0], []).append(example)
    for examples in by_first.values():
        first, last = min(example.prompt for example in examples), max(example.prompt for example in examples)
        shared = common_prefix_length(first, last)  # all prompts between these two begin with it, too
        yield first[:shared], [_row(example, shared) for example in examples]


def _row(example: SftExample, shared: int) -> TrainingRow:
    """The example's row behind the first tokens of its prompt, which others share."""
    own, row = example.prompt[shared:], example.row
    kept = {index + len(own): seen + len(own) for index, seen in row.kept.items()}
    return _untrained_yet(own + row.ids, (False,) * len(own) + row.trained, kept)


def _untrained_yet(ids: tuple[int, ...], trained: tuple[bool, ...], kept: Mapping[int, int]) -> TrainingRow:
    zeros = (0.0,) * len(ids)  # nothing was sampled
    return TrainingRow(ids, trained, zeros, zeros, kept)


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate in a step, counted from 1; never 0.

    >>> [_schedule(step, 4) for step in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return min(step / max(int(_WARMUP * steps), 1), (steps - step + 1) / steps)


def encode(renderer: ChatRenderer, demonstration: Demonstration, max_context_length: int = 0) -> SftExample:
    """Render a demonstration as an agent would have played it.

    Args:
        renderer: of the model's tokenizer.
        demonstration: the oracle's episode.
        max_context_length: see `envkit.training.config.TrainConfig`.
    """
    talk = Conversation(renderer, demonstration.system, max_context_length or sys.maxsize)
    prompt: tuple[int, ...] = ()
    ids: list[int] = []
    trained: list[bool] = []
    kept: dict[int, int] = {}
    length = 0
    for observation, action in demonstration.exchanges:
        talk.observe(observation)
        answer = renderer.answer(action)
        if not talk.turns:
            prompt = talk.new_ids
        else:
            if talk.kept is not None:
                kept[len(ids)] = talk.kept - len(prompt)
            ids += talk.new_ids
            trained += [False] * len(talk.new_ids)
        ids += answer
        trained += [True] * len(answer)
        talk.answer(answer)
        length = max(length, len(talk.ids))
    return SftExample(prompt, _untrained_yet(tuple(ids), tuple(trained), kept), length)


def _require_fit(policy: Policy, examples: Sequence[SftExample]) -> None:
    """Refuse demonstrations that the model cannot read whole.

    Raises:
        ModelError: the longest exceeds the model's context.
    """
    longest = max((example.length for example in examples), default=0)
    if longest > (limit := context_length(policy.model.config)):
        raise ModelError(
            f"a demonstration has {longest} tokens, but the context of {policy.ref.id} has {limit}; use a "
            "model with a longer context"
        )
