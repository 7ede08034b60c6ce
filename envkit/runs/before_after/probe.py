"""Measure what a plan rests on: the speed of a model on this machine, and the lengths of texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from envkit.engine.protocol import Request, Sampling
from envkit.runs.folder.machine import CpuTimes, why_busy
from envkit.training import sft
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.learner.loss import StepSize, policy_loss
from envkit.training.learner.packing import TrainingRow, pack
from envkit.training.policy import Policy

#: Prompt and answer lengths of the timing, in tokens: typical of the code editor's tasks.
_PROMPT_TOKENS, _ANSWER_TOKENS = 150, 64
#: Largest number of measurements on a busy machine, and seconds after which no further one starts.
_MAX_PROBES, _MAX_PROBE_S = 3, 60.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of a model on this machine. Sampling one token in each of n rows takes ``step_s + n * row_s``.

    Args:
        learn: in training, forward and backward; tokens per second.
        prefill: of prompts; tokens per second.
        step_s: fixed part of the time of a sampling step, in seconds.
        row_s: additional seconds per row.
    """

    learn: float
    prefill: float
    step_s: float
    row_s: float

    def fastest(self, other: Speed) -> Speed:
        """Combine two measurements: the faster value of each kind of work."""
        return Speed(
            max(self.learn, other.learn),
            max(self.prefill, other.prefill),
            min(self.step_s, other.step_s),
            min(self.row_s, other.row_s),
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths of an environment's texts, in tokens.

    Args:
        prompt: everything before the first answer: system message, first observation, chat template.
        answer: a correct answer.
        example: a whole demonstration: prompt, answers and the observations between them.
        turns: answers of a demonstration.
    """

    prompt: int
    answer: int
    example: int
    turns: float


def probe(policy: Policy, say: Callable[[str], None]) -> Speed:
    """Measure the speed of this machine; the fastest time of each kind of work counts.

    A busy machine is measured again, up to three times.

    Args:
        policy: the model; its weights do not change.
        say: called with a message if the machine is busy.
    """
    fastest: Speed | None = None
    started = time.monotonic()
    for number in range(1, _MAX_PROBES + 1):
        before = CpuTimes.now()
        speed, spread = measure(policy)
        fastest = speed if fastest is None else fastest.fastest(speed)
        reason = why_busy(before, CpuTimes.now(), spread, torch.get_num_threads())
        if not reason:
            break
        is_last = number == _MAX_PROBES or time.monotonic() - started > _MAX_PROBE_S
        say(
            f"this machine is busy: {reason}; "
            + ("planning with the fastest times" if is_last else "measuring again")
        )
        if is_last:
            break
    assert fastest is not None
    return fastest


def measure(policy: Policy) -> tuple[Speed, float]:
    """Time a small rollout and one training forward and backward. Weights do not change.

    Returns:
        The speed, and the largest ratio of slowest to fastest among timings of equal work.
    """
    spreads: list[float] = []
    prompts = [tuple(range(100 + row, 100 + row + _PROMPT_TOKENS)) for row in range(8)]
    requests = [Request(ids, (row, copy)) for row, ids in enumerate(prompts) for copy in range(8)]
    length = _ANSWER_TOKENS
    zeros, ones = (0.0,) * length, (1.0,) * length
    rows = [TrainingRow(ids[-length:], (True,) * length, zeros, ones) for ids in prompts]
    batch = pack(prompts[0], rows, policy.device)
    settings, size = TrainConfig(), StepSize(len(rows) * length, len(rows))

    def learn() -> None:
        policy_loss(policy.logprobs(batch, 1.0), batch, size, settings).total.backward()
        if policy.device.type != "cpu":
            torch.accelerator.synchronize()  # accelerators compute asynchronously
        for parameter in policy.trainable():
            parameter.grad = None

    def seconds(work: Callable[[], object]) -> float:
        """Time ``work`` three times and return the shortest, which other programs disturbed least."""
        times: list[float] = []
        for _ in range(3):
            started = time.monotonic()
            work()
            times.append(time.monotonic() - started)
        spreads.append(max(times) / max(min(times), 1e-3))  # differences below a millisecond are noise
        return min(times)

    def sample(batch: Sequence[Request], tokens: int) -> None:
        policy.engine.forget()  # otherwise a prefix cache would skip the prefill
        policy.engine.generate(batch, Sampling(100.0, tokens))  # so hot that all rows differ

    policy.sync()  # a new adapter has no effect yet, but takes some time
    # Warm up caches, thread pools and the allocator before the timing.
    sample(requests, 2)
    learn()
    few = requests[::8]
    read_s = seconds(lambda: sample(requests, 1))
    few_s = (seconds(lambda: sample(few, 9)) - read_s) / 8
    many_s = (seconds(lambda: sample(requests, 9)) - read_s) / 8
    row_s = max((many_s - few_s) / (len(requests) - len(few)), 1e-6)
    speed = Speed(
        learn=(batch.prompt_1P.shape[1] + batch.ids_1S.shape[1]) / seconds(learn),
        prefill=len(prompts) * _PROMPT_TOKENS / read_s,
        step_s=max(few_s - len(few) * row_s, 1e-4),
        row_s=row_s,
    )
    return speed, max(spreads)


def lengths_of(examples: Sequence[sft.SftExample], demonstrations: Sequence[Demonstration]) -> Lengths:
    """Mean lengths of demonstrations; there must be at least one."""
    turns = mean(len(shown.exchanges) for shown in demonstrations)
    return Lengths(
        prompt=round(mean(len(example.prompt) for example in examples)),
        answer=round(mean(example.trained for example in examples) / turns),
        example=round(mean(len(example.prompt) + len(example.row.ids) for example in examples)),
        turns=turns,
    )
