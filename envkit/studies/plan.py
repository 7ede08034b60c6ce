"""Turn a budget of minutes into numbers of SFT examples, RL steps and held-out tasks, once, at the start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from envkit.benchmark.evaluation import EPISODES_AT_ONCE
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Request, Sampling
from envkit.errors import UsageError
from envkit.studies.machine import CpuTimes, why_busy
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.loss import StepSize, policy_loss
from envkit.training.packing import TrainingRow, pack
from envkit.training.policy import Policy

#: Budget of the demo, in minutes.
DEFAULT_MINUTES = 25.0

#: Prompt and answer lengths of the timing, in tokens: typical of the code editor's tasks.
_PROMPT_TOKENS, _ANSWER_TOKENS = 150, 64
#: Tokens sampled per turn of a held-out episode beyond a prefix shared with the task's other episodes, as a
#: multiple of the right answer's length: for a trained model, and for the longer ones of the base.
_TRAINED_LENGTH, _BASE_LENGTH = 0.5, 2.5
#: Longest answer of a batch, as a multiple of the right one's length: of a trained model, and of the base.
_LONGEST, _LONGEST_OF_BASE = 3.5, 4
#: Share of a group's tokens that its answers do not have in common: after a warm start, and without one.
_UNSHARED_WARM, _UNSHARED_COLD = 0.45, 0.5
#: Seconds that the environment takes per turn.
_ENV_TURN_S = 0.01
#: Length of a later observation, as a multiple of the first one's.
_LATER_OBSERVATION = 1 / 3
#: Share of the turns after the first one that episodes play: of a trained model, and of the base model, which
#: hardly ever submits.
_LATER_TURNS, _LATER_TURNS_OF_BASE = 0.75, 1.0
#: Time of a row's token after the first turn, whose context is longer, as a multiple of one in it.
_LATER_ROW = 2.0
#: Share of a step's groups with a gradient, and speed of learning from them as a share of the measured one,
#: because real groups are smaller than the measured one and their paths differ in length.
_MIXED_GROUPS, _GROUP_SPEED = 0.7, 0.7
#: Share of the budget for evaluation, and of what is left for the warm start, about a third of the whole. RL
#: has what remains.
_EVALUATION_SHARE, _WARM_START_SHARE = 0.3, 0.42
#: Episodes per held-out task. Tasks differ more than episodes of one task, so more tasks tell more.
_SAMPLES = 4
#: Smallest useful training: two batches of SFT examples, two RL steps.
_MIN_EXAMPLES, _MIN_STEPS = 24, 2
#: Smallest number of held-out tasks, and the number used if the first leaves too little time for training.
_MIN_TASKS, _MIN_TASKS_IF_SHORT = 16, 8
#: Largest number of measurements on a busy machine, and seconds after which no further one starts.
_MAX_PROBES, _MAX_PROBE_S = 3, 60.0
#: A run is shortened if its steps take more than this multiple of their forecast.
SLOW_STEPS = 1.5
#: Largest number of RL steps. A larger budget makes steps larger, because their gradients are less noisy.
_MAX_STEPS = 48


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of a model on this machine. Sampling one token in each of n rows takes ``step_s + n * row_s``.

    Args:
        learn: tokens per second in training, forward and backward.
        prefill: prompt tokens per second.
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
    """

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a before/after study.

    Args:
        train: training settings with ``sft_examples`` and ``max_steps`` filled in.
        heldout_tasks: held-out tasks that every row is evaluated on.
        samples: episodes per held-out task.
        eval_temperature: sampling temperature in evaluation.
        step_s: forecast of an RL step, in seconds; 0 if none was made.
    """

    train: TrainConfig
    heldout_tasks: int
    samples: int = 8
    eval_temperature: float = 0.7
    step_s: float = 0.0


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


def lengths_of(renderer: ChatRenderer, demonstrations: Sequence[Demonstration]) -> Lengths:
    """Mean lengths of demonstrations; there must be at least one."""
    prompts = [len(renderer.first(shown.system, shown.observation)) for shown in demonstrations]
    answers = [len(renderer.answer(shown.answer)) for shown in demonstrations]
    return Lengths(round(mean(prompts)), round(mean(answers)))


def require_minutes(minutes: float, adapters: int = 1) -> None:
    """Raise if a budget is too small for any training.

    Raises:
        UsageError: less than one minute per adapter, infinite or not a number.
    """
    minimum = max(adapters, 1)
    if not minimum <= minutes < float("inf"):
        raise UsageError(
            f"--minutes is {minutes}; at least {minimum} is needed to train and evaluate anything"
        )


def plan(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> Plan:
    """Divide a budget: about a third for evaluation, up to a third for the warm start, the rest for RL.

    The warm start sees no task twice, because an overconfident policy explores too little in RL. If RL is
    switched off (``max_steps = 0``), the warm start has its part too.

    Args:
        minutes: wall time of everything after set-up and mining, at least 1.
        speed: speed of this machine.
        lengths: lengths of the environment's texts.
        config: settings whose sizes are replaced; parts that are switched off (0) stay off.
        heldout: number of available held-out tasks; with 0, their part of the budget goes to training.
        imitated: number of available tasks for the warm start.

    Raises:
        UsageError: see `require_minutes`.
    """
    return _divide(minutes, speed, lengths, config, heldout, imitated)[0]


def require_useful(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> None:
    """Raise if a budget allows too little training to show anything; arguments as for `plan`.

    Raises:
        UsageError: the budget is too small; the message gives the measured speed and a sufficient budget.
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
        f"too little to show anything (at least {_MIN_EXAMPLES} and {_MIN_STEPS}): this machine learns "
        f"from {speed.learn:.0f} and reads {speed.prefill:.0f} tokens per second; {advice}"
    )


def shortened(planned: Plan, step: int, spent_s: float) -> int:
    """Number of RL steps that fit into the planned time if steps take longer than forecast.

    Args:
        planned: a plan with a forecast (``step_s``).
        step: steps taken so far, at least 1.
        spent_s: seconds of these steps together.

    Returns:
        The number of the last step; ``planned.train.max_steps`` if the forecast holds.
    """
    steps, measured_s = planned.train.max_steps, spent_s / step
    if measured_s <= SLOW_STEPS * planned.step_s:
        return steps
    return min(steps, max(step, _MIN_STEPS, int(steps * planned.step_s / measured_s)))


def _is_useful(sized: Plan, examples: int) -> bool:
    """True if a plan trains enough to show anything; ``examples`` as from `_divide`."""
    is_warm = not sized.train.sft_examples or examples >= _MIN_EXAMPLES
    has_rl = sized.train.max_steps >= _MIN_STEPS or sized.train.is_sft_alone
    return is_warm and has_rl


def _divide(
    minutes: float, speed: Speed, lengths: Lengths, config: TrainConfig, heldout: int, imitated: int
) -> tuple[Plan, int]:
    """Return the plan, and the number of SFT examples that the budget alone would allow."""
    require_minutes(minutes)
    divided = _divide_with(_MIN_TASKS, minutes, speed, lengths, config, heldout, imitated)
    if _is_useful(*divided):
        return divided
    return _divide_with(_MIN_TASKS_IF_SHORT, minutes, speed, lengths, config, heldout, imitated)


def _divide_with(
    min_tasks: int,
    minutes: float,
    speed: Speed,
    lengths: Lengths,
    config: TrainConfig,
    heldout: int,
    imitated: int,
) -> tuple[Plan, int]:
    """Divide the budget as `_divide` does, with at least ``min_tasks`` held-out tasks if they exist."""
    seconds, alone = minutes * 60, config.is_sft_alone
    length, group_size = config.max_completion_length, config.num_generations
    turns = 1 + _LATER_TURNS * (config.turns - 1)
    answer_tokens = min(lengths.answer, length)
    longest = min(length, _LONGEST * answer_tokens)
    observation = _LATER_OBSERVATION * lengths.prompt
    later = (turns - 1) * observation  # tokens that each episode prefills separately

    def evaluation_s(tasks: int) -> float:
        """Time of all rows' evaluation."""
        base_turns = 1 + _LATER_TURNS_OF_BASE * (config.turns - 1)
        rows = [(base_turns, _BASE_LENGTH, min(length, _LONGEST_OF_BASE * answer_tokens))]
        rows += [(turns, _TRAINED_LENGTH, longest)] * (2 if config.sft_examples and not alone else 1)
        total_s = 0.0
        for played, answer_length, slowest in rows:
            sampled = answer_length * answer_tokens * (1 + _LATER_ROW * (played - 1))
            episode_s = sampled * speed.row_s + (played - 1) * observation / speed.prefill
            episode_s += played * _ENV_TURN_S
            chunks = math.ceil(tasks * _SAMPLES / EPISODES_AT_ONCE)
            total_s += chunks * played * slowest * speed.step_s
            total_s += tasks * (lengths.prompt / speed.prefill + _SAMPLES * episode_s)
        return total_s

    affordable_tasks = (
        n for n in range(min_tasks, heldout) if evaluation_s(n + 1) > _EVALUATION_SHARE * seconds
    )
    tasks = min(heldout, next(affordable_tasks, heldout))
    left_s = seconds - evaluation_s(tasks)
    example_s = (lengths.prompt + lengths.answer) / speed.learn
    affordable = max(int((1.0 if alone else _WARM_START_SHARE) * left_s / example_s), 0)
    batches = min(affordable, imitated) // config.sft_batch_size
    examples = max(batches, 1) * config.sft_batch_size if config.sft_examples else 0
    left_s -= examples * example_s
    # Without a warm start, a model samples until the length limit or a stop string.
    answer = answer_tokens if config.sft_examples or config.stop_strings else length
    unshared = turns * group_size * answer * (_UNSHARED_WARM if config.sft_examples else _UNSHARED_COLD)
    prefilled = lengths.prompt + group_size * later
    row_s = speed.row_s * (1 + _LATER_ROW * (turns - 1)) / turns
    group_s = prefilled / speed.prefill + unshared * row_s + turns * group_size * _ENV_TURN_S
    group_s += config.num_iterations * _MIXED_GROUPS * (prefilled + unshared) / (_GROUP_SPEED * speed.learn)
    base_s = turns * longest * speed.step_s  # of a step, whatever its number of groups
    groups = max(config.groups_per_step, round((left_s / _MAX_STEPS - base_s) / group_s))
    steps = max(int(left_s / (base_s + groups * group_s)), 1)
    train = replace(
        config,
        sft_examples=examples,
        groups_per_step=groups,
        max_steps=0 if alone else steps,
    )
    planned = Plan(train, tasks, _SAMPLES, step_s=base_s + groups * group_s)
    return planned, affordable
