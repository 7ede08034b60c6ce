"""How a budget of minutes becomes numbers of examples, steps and held-out tasks, once, at start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from envkit.benchmark.evaluation import CHUNK
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Request, Sampling
from envkit.errors import UsageError
from envkit.studies.machine import CpuTimes, why_busy
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.loss import StepSize, logprobs, policy_loss
from envkit.training.packing import TrainingRow, pack
from envkit.training.policy import Policy

#: Budget of the demo, in minutes.
DEFAULT_MINUTES = 20.0

#: Lengths in tokens that a machine is timed with: those of the code editor's tasks.
_PROMPT, _ANSWER = 150, 64
#: Tokens of an answer on held-out tasks that no other of that task shares, in lengths of the right one:
#: of a trained model, and of the untouched one, which rambles.
_DRAWN, _RAMBLED = 0.5, 1.3
#: Share of a group's tokens that its answers do not have in common: behind a warm start, and without one.
_APART, _APART_UNTAUGHT = 0.25, 0.5
#: Seconds that a turn waits for its environment.
_GRADED_S = 0.01
#: What an environment says to a turn that does not end the episode, in times its first observation's length.
_REPLY = 1 / 3
#: Groups of a step that teach.
_TAUGHT = 0.8
#: Time of a forward pass beside forward and backward.
_FORWARD = 0.39
#: Less than this shows nothing: two batches of known answers, two RL steps.
_LEAST_EXAMPLES, _LEAST_STEPS = 24, 2
#: Held-out tasks at least, and in a budget that is too small for useful training beside those.
_LEAST_TASKS, _FEWEST_TASKS = 16, 8
#: Measurements of a busy machine, at most, and seconds after which none is begun.
_MOST_PROBES, _MOST_PROBE_S = 3, 60.0
#: A step may take this many times its forecast before the rest of the run is planned anew.
SLOW_STEPS = 1.5
#: A longer run takes larger steps rather than more of them: their gradients are less noisy.
_MOST_STEPS = 48


@dataclass(frozen=True, slots=True)
class Speed:
    """What this machine does with this model.

    Args:
        learn: tokens per second, forward and backward of training.
        prefill: prompt tokens read per second.
        step_s: seconds of a sampled token of every row, however few they are.
        row_s: and seconds more for each row.
    """

    learn: float
    prefill: float
    step_s: float
    row_s: float

    def fastest(self, other: Speed) -> Speed:
        """The better value of each kind of work."""
        return Speed(
            max(self.learn, other.learn),
            max(self.prefill, other.prefill),
            min(self.step_s, other.step_s),
            min(self.row_s, other.row_s),
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long an environment's texts are, in tokens.

    Args:
        prompt: first observation with all that stands before the answer.
        answer: a right one.
    """

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a before/after study.

    Args:
        train: training settings with ``sft_examples`` and ``max_steps`` filled in.
        heldout_tasks: held-out tasks that every arm is evaluated on.
        samples: episodes per held-out task.
        eval_temperature: of sampling in evaluation.
        step_s: forecast of an RL step, in seconds; 0 if none was made.
    """

    train: TrainConfig
    heldout_tasks: int
    samples: int = 8
    eval_temperature: float = 0.7
    step_s: float = 0.0


def probe(policy: Policy, say: Callable[[str], None]) -> Speed:
    """Measure this machine, again if it is busy; the fastest time of each kind of work counts.

    Args:
        policy: the model; its weights stay as they are.
        say: told if the machine is busy, and why.
    """
    fastest: Speed | None = None
    started = time.monotonic()
    for number in range(1, _MOST_PROBES + 1):
        before = CpuTimes.now()
        speed, spread = measure(policy)
        fastest = speed if fastest is None else fastest.fastest(speed)
        reason = why_busy(before, CpuTimes.now(), spread)
        if not reason:
            break
        is_last = number == _MOST_PROBES or time.monotonic() - started > _MOST_PROBE_S
        say(
            f"this machine is busy: {reason}; "
            + ("planning with the fastest times" if is_last else "measuring again")
        )
        if is_last:
            break
    assert fastest is not None
    return fastest


def measure(policy: Policy) -> tuple[Speed, float]:
    """Time one small rollout and one training forward and backward. Weights stay as they are.

    Returns:
        The speed, and the largest ratio of slowest to fastest among timings of equal work.
    """
    spreads: list[float] = []
    prompts = [tuple(range(100 + row, 100 + row + _PROMPT)) for row in range(8)]
    requests = [Request(ids, (row, copy)) for row, ids in enumerate(prompts) for copy in range(8)]
    nothing, ones = (0.0,) * _ANSWER, (1.0,) * _ANSWER
    rows = [TrainingRow(ids[-_ANSWER:], (True,) * _ANSWER, nothing, ones) for ids in prompts]
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
        spreads.append(max(times) / max(min(times), 1e-3))  # a millisecond differs by chance
        return min(times)

    def sample(asked: Sequence[Request], tokens: int) -> None:
        policy.engine.forget()  # or an engine that remembers prompts would read none
        policy.engine.generate(asked, Sampling(100.0, tokens))  # so hot that no two rows draw the same

    policy.sync()  # an adapter costs a little, also one that does nothing yet
    # Once for caches, thread pools and the allocator, then for the clock.
    sample(requests, 2)
    learn()
    few = requests[::8]
    read_s = seconds(lambda: sample(requests, 1))
    few_s = (seconds(lambda: sample(few, 9)) - read_s) / 8
    many_s = (seconds(lambda: sample(requests, 9)) - read_s) / 8
    row_s = max((many_s - few_s) / (len(requests) - len(few)), 1e-6)
    speed = Speed(
        learn=batch.ids_1S.shape[1] / seconds(learn),
        prefill=len(prompts) * _PROMPT / read_s,
        step_s=max(few_s - len(few) * row_s, 1e-4),
        row_s=row_s,
    )
    return speed, max(spreads)


def lengths_of(renderer: ChatRenderer, shown: Sequence[Demonstration]) -> Lengths:
    """Mean lengths of demonstrations, of which there must be some."""
    prompts = [len(renderer.first(one.system, one.observation)) for one in shown]
    answers = [len(renderer.answer(one.answer)) for one in shown]
    return Lengths(round(mean(prompts)), round(mean(answers)))


def require_minutes(minutes: float, adapters: int = 1) -> None:
    """Refuse a budget that nothing fits into.

    Raises:
        UsageError: less than a minute for each adapter, or not a number.
    """
    least = max(adapters, 1)
    if not least <= minutes < float("inf"):
        raise UsageError(f"--minutes is {minutes}; at least {least} is needed to train and evaluate anything")


def plan(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> Plan:
    """Divide a budget: about a quarter to evaluation, up to a third to the warm start, the rest to RL.

    The warm start sees no task twice, lest the policy be sure of itself before RL has tried anything. A tenth
    of RL's part goes to estimates of difficulty, which its curriculum begins with. Episodes are taken to last
    for all their turns.

    Args:
        minutes: wall time of everything after set-up and mining, at least 1.
        speed: of this machine.
        lengths: of the environment's texts.
        config: settings whose sizes are replaced; what they switch off (0) stays off.
        heldout: held-out tasks there are to evaluate on; 0 leaves their part of the budget to training.
        imitated: tasks there are for the warm start.

    Raises:
        UsageError: see `require_minutes`.
    """
    return _divide(minutes, speed, lengths, config, heldout, imitated)[0]


def require_useful(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> None:
    """Refuse a budget that allows too little training to show anything; arguments as of `plan`.

    Raises:
        UsageError: it does; says what was measured, and how many minutes are enough.
    """

    def fits(budget: float) -> bool:
        return _is_useful(*_divide(budget, speed, lengths, config, heldout, imitated))

    if fits(minutes):
        return
    sized, examples = _divide(minutes, speed, lengths, config, heldout, imitated)
    enough = next((more for more in range(math.ceil(minutes), 7 * 24 * 60) if fits(more)), None)
    advice = "use a smaller model or a faster machine" if enough is None else f"give --minutes {enough}"
    raise UsageError(
        f"--minutes {minutes:g} allows {examples} known answers and {sized.train.max_steps} RL steps here, "
        f"too little to show anything (at least {_LEAST_EXAMPLES} and {_LEAST_STEPS}): this machine learns "
        f"from {speed.learn:.0f} and reads {speed.prefill:.0f} tokens per second; {advice}"
    )


def shortened(planned: Plan, step: int, spent_s: float) -> int:
    """RL steps that still fit the plan's time when steps take longer than forecast.

    Args:
        planned: with a forecast of its steps.
        step: steps taken so far, at least 1.
        spent_s: their seconds together.

    Returns:
        The number of the last step; ``planned.train.max_steps`` if the forecast holds.
    """
    steps, measured_s = planned.train.max_steps, spent_s / step
    if measured_s <= SLOW_STEPS * planned.step_s:
        return steps
    return min(steps, max(step, _LEAST_STEPS, int(steps * planned.step_s / measured_s)))


def _is_useful(sized: Plan, examples: int) -> bool:
    """True if a plan trains enough to show anything; ``examples`` as from `_divide`."""
    is_warm = not sized.train.sft_examples or examples >= _LEAST_EXAMPLES
    return is_warm and sized.train.max_steps >= _LEAST_STEPS


def _divide(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> tuple[Plan, int]:
    """The plan, and the known answers that the budget alone would allow."""
    require_minutes(minutes)
    found = _divide_beside(_LEAST_TASKS, minutes, speed, lengths, config, heldout, imitated)
    if _is_useful(*found):
        return found
    return _divide_beside(_FEWEST_TASKS, minutes, speed, lengths, config, heldout, imitated)


def _divide_beside(
    least_tasks: int,
    minutes: float,
    speed: Speed,
    lengths: Lengths,
    config: TrainConfig,
    heldout: int,
    imitated: int,
) -> tuple[Plan, int]:
    """As `_divide`, with at least so many held-out tasks."""
    seconds, samples = minutes * 60, 8
    length, size, turns = config.max_completion_length, config.num_generations, config.max_turns
    right = min(lengths.answer, length)
    replies = (turns - 1) * _REPLY * lengths.prompt  # read by each episode for itself
    arms = 3 if config.sft_examples else 2
    drawn = right * (_RAMBLED + (arms - 1) * _DRAWN)
    waited = turns * (_GRADED_S + length * speed.step_s / CHUNK)
    played = turns * drawn * speed.row_s + arms * (waited + replies / speed.prefill)
    per_task = arms * lengths.prompt / speed.prefill + samples * played
    tasks = min(heldout, max(least_tasks, int(0.25 * seconds / per_task)))
    left = seconds - tasks * per_task
    per_example = (lengths.prompt + lengths.answer) / speed.learn
    affordable = max(int(0.42 * left / per_example), 0)
    batches = min(affordable, imitated) // config.sft_batch_size
    examples = max(batches, 1) * config.sft_batch_size if config.sft_examples else 0
    left -= examples * per_example
    estimated = max(int(0.1 * left / (_FORWARD * per_example)), config.groups_per_step)
    estimated = estimated if config.curriculum_tasks else 0
    left -= estimated * _FORWARD * per_example
    # A model that was never shown an answer talks on until it is cut off, or until a stop string.
    answer = right if config.sft_examples or config.stop_strings else length
    apart = turns * size * answer * (_APART if config.sft_examples else _APART_UNTAUGHT)
    read = lengths.prompt + size * replies
    per_group = read / speed.prefill + apart * speed.row_s + turns * size * _GRADED_S
    per_group += _TAUGHT * (read + apart) / speed.learn
    alone = turns * length * speed.step_s  # of a step, however few its groups
    per_step = max(config.groups_per_step, round((left / _MOST_STEPS - alone) / per_group))
    steps = max(int(left / (alone + per_step * per_group)), 1)
    train = replace(
        config,
        sft_examples=examples,
        curriculum_tasks=estimated,
        groups_per_step=per_step,
        max_steps=steps,
    )
    planned = Plan(train, tasks, samples, step_s=alone + per_step * per_group)
    return planned, affordable
