"""How a budget of minutes becomes numbers of examples, steps and held-out tasks, once, at start."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch

from envkit.engine.protocol import Request, Sampling
from envkit.errors import UsageError
from envkit.train.config import TrainConfig
from envkit.train.loss import StepSize, logprobs, policy_loss
from envkit.train.packing import Row, pack
from envkit.train.policy import Policy

#: Budget of the demo, in minutes.
DEFAULT_MINUTES = 20.0

#: Typical lengths in tokens of the code editor's single-turn episodes.
_PROMPT, _ANSWER = 150, 64
#: Tokens that base, SFT and SFT+RL sample for one held-out episode; the untouched model rambles.
_EVALUATED = 224
#: Time of a forward pass beside forward and backward.
_FORWARD = 0.39
#: A longer run takes larger steps rather than more of them: their gradients are less noisy.
_MOST_STEPS = 48
#: Speed of whole rollouts beside that of a full batch: rows that end leave it half empty, and grading waits.
_FULL_SHARE = 0.68


@dataclass(frozen=True, slots=True)
class Speed:
    """What this machine does with this model, in tokens per second.

    Args:
        learn: forward and backward of training.
        prefill: prompt tokens read.
        decode: tokens sampled, rows decoded together.
    """

    learn: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a before/after study.

    Args:
        train: training settings with ``sft_examples`` and ``max_steps`` filled in.
        heldout_tasks: held-out tasks that every arm is evaluated on.
        samples: episodes per held-out task.
        eval_temperature: of sampling in evaluation.
    """

    train: TrainConfig
    heldout_tasks: int
    samples: int = 8
    eval_temperature: float = 0.7


def measure(policy: Policy) -> Speed:
    """Time one small rollout and one training forward and backward. Weights stay as they are."""
    prompts = [tuple(range(100 + row, 100 + row + _PROMPT)) for row in range(8)]
    requests = [Request(ids, (row, copy)) for row, ids in enumerate(prompts) for copy in range(8)]
    nothing, ones = (0.0,) * _ANSWER, (1.0,) * _ANSWER
    rows = [Row(ids[-_ANSWER:], (True,) * _ANSWER, nothing, ones) for ids in prompts]
    batch = pack(prompts[0], rows, policy.device)
    settings, size = TrainConfig(), StepSize(len(rows) * _ANSWER, len(rows))

    def learn() -> None:
        policy_loss(logprobs(policy.model, batch, 1.0), batch, size, settings).total.backward()
        if policy.device.type != "cpu":
            torch.accelerator.synchronize()  # what was asked for is done later there
        for parameter in policy.trainable():
            parameter.grad = None

    def seconds(work: Callable[[], object]) -> float:
        """The least of three: what else this machine does in these seconds, it may not do later."""
        times: list[float] = []
        for _ in range(3):
            started = time.monotonic()
            work()
            times.append(time.monotonic() - started)
        return min(times)

    def sample(tokens: int) -> None:
        policy.engine.forget()  # or an engine that remembers prompts would read none
        policy.engine.generate(requests, Sampling(1.0, tokens))

    policy.sync()  # an adapter costs a little, also one that does nothing yet
    # Once for caches, thread pools and the allocator, then for the clock.
    sample(2)
    learn()
    read_s = seconds(lambda: sample(1))
    sampled_s = seconds(lambda: sample(9))
    return Speed(
        learn=batch.ids_1S.shape[1] / seconds(learn),
        prefill=len(prompts) * _PROMPT / read_s,
        decode=8 * len(requests) / max(sampled_s - read_s, 1e-3),
    )


def require_minutes(minutes: float, adapters: int = 1) -> None:
    """Refuse a budget that nothing fits into.

    Raises:
        UsageError: less than a minute for each adapter, or not a number.
    """
    least = max(adapters, 1)
    if not least <= minutes < float("inf"):
        raise UsageError(f"--minutes is {minutes}; at least {least} is needed to train and evaluate anything")


def plan(minutes: float, speed: Speed, config: TrainConfig, heldout: int, imitated: int) -> Plan:
    """Divide a budget: about a quarter to evaluation, up to a third to the warm start, the rest to RL.

    The warm start sees no task twice, lest the policy be sure of itself before RL has tried anything. A tenth
    of RL's part goes to estimates of difficulty, which its curriculum begins with.

    Args:
        minutes: wall time of everything after set-up and mining, at least 1.
        speed: of this machine.
        config: settings whose sizes are replaced; what they switch off (0) stays off.
        heldout: held-out tasks there are.
        imitated: tasks there are for the warm start.

    Raises:
        UsageError: see `require_minutes`.
    """
    require_minutes(minutes)
    seconds, samples = minutes * 60, 8
    decode = _FULL_SHARE * speed.decode
    per_task = 3 * _PROMPT / speed.prefill + samples * _EVALUATED / decode
    tasks = min(heldout, max(16, int(0.25 * seconds / per_task)))
    left = seconds - tasks * per_task
    per_example = (_PROMPT + _ANSWER) / speed.learn
    batches = min(int(0.42 * left / per_example), imitated) // config.sft_batch_size
    examples = max(batches, 1) * config.sft_batch_size if config.sft_examples else 0
    size = config.num_generations
    left -= examples * per_example
    estimated = max(int(0.1 * left / (_FORWARD * per_example)), config.groups_per_step)
    estimated = estimated if config.curriculum_tasks else 0
    left -= estimated * _FORWARD * per_example
    # A model that was never shown an answer talks on until it is cut off, or until a stop string.
    answer = _ANSWER if config.sft_examples or config.stop_strings else config.max_completion_length
    # Most groups are mixed, and half of a group's answers are distinct.
    per_group = _PROMPT / speed.prefill + size * answer / decode
    per_group += 0.7 * (_PROMPT + 0.6 * size * answer) / speed.learn
    groups = max(int(left / per_group), 1)
    per_step = max(config.groups_per_step, round(groups / _MOST_STEPS))
    train = replace(
        config,
        sft_examples=examples,
        curriculum_tasks=estimated,
        groups_per_step=per_step,
        max_steps=max(groups // per_step, 1),
    )
    return Plan(train, tasks, samples)


def on_this_machine(config: TrainConfig) -> TrainConfig:
    """The configuration with what it leaves to the machine filled in."""
    if config.dtype != "auto":
        return config
    if config.device == "cpu":
        return replace(config, dtype=faster_dtype())
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, dtype="float32" if emulated else "bfloat16")


@functools.cache
def faster_dtype() -> str:
    """The dtype that this machine multiplies faster: some have instructions for bfloat16, others emulate it.

    float32 unless it is clearly slower, for it is more exact.
    """
    seconds: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(64, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times: list[float] = []
        for _ in range(30):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            times.append(time.perf_counter() - started)
        seconds[str(dtype)] = median(times)
    return "bfloat16" if seconds["torch.bfloat16"] < 0.7 * seconds["torch.float32"] else "float32"


def use_threads(threads: int | None = None) -> int:
    """Fix torch's thread count (default: all cores this process may use); returns it."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    _keep_freed_memory()
    return count


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: the next step wants the same ones.

    It would give them back to the kernel, and a training step would then spend a sixth of its time on
    page faults. Other C libraries have no ``mallopt`` and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
