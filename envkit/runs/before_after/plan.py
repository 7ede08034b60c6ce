"""Turn a budget of minutes into numbers of SFT examples, RL steps and held-out tasks.

The sizes are chosen at the start. Only the number of RL steps follows the time that is really left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from envkit.errors import UsageError
from envkit.measure.evaluation import EPISODES_AT_ONCE
from envkit.measure.spec import DEFAULT_SAMPLES
from envkit.runs.before_after.probe import Lengths, Speed
from envkit.training.config import TrainConfig

#: Budget of the demo, in minutes.
DEFAULT_MINUTES = 25.0


@dataclass(frozen=True, slots=True)
class _Episodes:
    """Held-out episodes of one kind of model. Lengths are multiples of a correct answer's.

    Args:
        sampled: tokens sampled per turn, beyond a prefix that the task's other episodes share.
        longest: the longest answer among those that are decoded together.
        later_turns: share of the turns after the first one that an episode plays.
        is_trained: True if the model ends its episodes about where demonstrations end.
    """

    sampled: float
    longest: float
    later_turns: float
    is_trained: bool = False


_OF_TRAINED = _Episodes(sampled=0.5, longest=3.5, later_turns=0.75, is_trained=True)
#: The base talks before it answers, and hardly ever submits.
_OF_BASE = _Episodes(sampled=2.5, longest=4.0, later_turns=1.0)

#: Share of a group's tokens that its answers do not have in common: after a warm start, and without one.
_UNSHARED_WARM, _UNSHARED_COLD = 0.45, 0.5
#: Seconds that the environment takes per turn.
_ENV_TURN_S = 0.01
#: Length of a later observation, as a multiple of the first one's.
_LATER_OBSERVATION = 1 / 3
#: Time of a row's token after the first turn, whose context is longer, as a multiple of one in it.
_LATER_ROW = 2.0
#: Share of a step's groups with a gradient, and speed of learning from them as a share of the measured one,
#: because real groups are smaller than the measured one and their paths differ in length.
_MIXED_GROUPS, _GROUP_SPEED = 0.7, 0.7
#: Share of the budget for evaluation, and of what is left for the warm start, about a third of the whole. RL
#: has what remains.
_EVALUATION_SHARE, _WARM_START_SHARE = 0.3, 0.42
#: Smallest useful training: two batches of SFT examples, two RL steps.
_MIN_EXAMPLES, _MIN_STEPS = 24, 2
#: Smallest number of held-out tasks, and the number used if the first leaves too little time for training.
_MIN_TASKS, _MIN_TASKS_IF_SHORT = 16, 8
#: Measured steps that the forecast of a step's time counts for.
_FORECAST_STEPS = 2
#: Largest number of RL steps to plan, unless there are few tasks. A larger budget makes steps larger, because
#: their gradients are less noisy.
_MAX_STEPS = 48


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """The measurements, settings and numbers of tasks that a plan is made from.

    Args:
        speed: of the model on this machine.
        lengths: of the environment's texts.
        config: settings whose sizes are replaced; parts that are switched off (0) stay off.
        heldout: number of available held-out tasks; with 0, their part of the budget goes to training.
        sft_tasks: number of tasks that the warm start may use.
        rl_tasks: number of tasks that RL may use; 0 if it is switched off.
    """

    speed: Speed
    lengths: Lengths
    config: TrainConfig
    heldout: int
    sft_tasks: int
    rl_tasks: int

    @property
    def answer(self) -> int:
        """Length of a correct answer that is not cut off, in tokens."""
        return min(self.lengths.answer, self.config.max_completion_length)

    @property
    def later_observation(self) -> float:
        """Length of an observation after the first one, in tokens."""
        return _LATER_OBSERVATION * self.lengths.prompt

    def turns(self, episodes: _Episodes) -> float:
        """Turns that an episode plays."""
        most: float = self.config.turns
        if episodes.is_trained and self.config.is_warm:
            most = min(most, self.lengths.turns + 1)
        return 1 + episodes.later_turns * (most - 1)

    def decoding_s(self, episodes: _Episodes) -> float:
        """Seconds of decoding episodes together, beside the time of each row; the longest answer decides."""
        longest = min(self.config.max_completion_length, episodes.longest * self.answer)
        return self.turns(episodes) * longest * self.speed.step_s


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a before/after study.

    Args:
        train: training settings with ``sft_examples`` and ``max_steps`` filled in.
        heldout_tasks: held-out tasks that every row is evaluated on.
        samples: episodes per held-out task.
        eval_temperature: sampling temperature in evaluation.
        minutes: the budget that it was made for; 0 if the sizes were given.
        step_s: forecast of an RL step, in seconds; 0 without a budget.
    """

    train: TrainConfig
    heldout_tasks: int
    samples: int
    eval_temperature: float = 0.7
    minutes: float = 0.0
    step_s: float = 0.0


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


def plan(minutes: float, inputs: PlanInputs) -> Plan:
    """Divide a budget: about a third for evaluation, up to a third for the warm start, the rest for RL.

    The warm start sees no task twice if there are enough for a batch: an overconfident policy explores too
    little in RL. If RL is switched off (``max_steps = 0``), the warm start has its part too.

    Args:
        minutes: wall time of everything after set-up and mining, at least 1.
        inputs: what the plan is made from.

    Raises:
        UsageError: see `require_minutes`.
    """
    return _divide(minutes, inputs)[0]


def require_useful(minutes: float, inputs: PlanInputs, adapters: int = 1) -> None:
    """Raise if a budget allows too little training to show anything.

    Args:
        minutes: of one adapter, as for `plan`.
        inputs: as for `plan`.
        adapters: number of adapters that share the run's budget equally.

    Raises:
        UsageError: the budget is too small; the message gives the measured speed and a sufficient budget.
    """
    sized, examples = _divide(minutes, inputs)
    if _is_useful(sized, examples):
        return
    larger = range(math.ceil(minutes), 7 * 24 * 60)
    enough = next((more for more in larger if _is_useful(*_divide(more, inputs))), None)
    advice = "use a smaller model or a faster machine"
    if enough is not None:
        advice = (
            f"give --minutes {enough * adapters}; short tasks (--max-task-chars) and one turn "
            "(max_turns = 1) need less"
        )
    allows = "allows" if adapters == 1 else f"allows each of {adapters} adapters"
    raise UsageError(
        f"--minutes {minutes * adapters:g} {allows} {examples} known answers and {sized.train.max_steps} RL "
        f"steps here, too little to show anything (at least {_MIN_EXAMPLES} and {_MIN_STEPS}): this machine "
        f"learns from {inputs.speed.learn:.0f} and reads {inputs.speed.prefill:.0f} tokens per second; "
        f"{advice}"
    )


def steps_in_time(left_s: float, step: int, spent_s: float, forecast_s: float) -> int:
    """Number of RL steps, those taken included, for which there is time.

    Args:
        left_s: seconds left for more steps.
        step: steps taken so far.
        spent_s: seconds of these steps together.
        forecast_s: seconds of a step as planned, above 0. It counts like two steps, because the first ones
            take very different times.
    """
    step_s = (_FORECAST_STEPS * forecast_s + spent_s) / (_FORECAST_STEPS + step)
    return max(step + int(max(left_s, 0.0) / step_s), _MIN_STEPS)


def _is_useful(sized: Plan, examples: int) -> bool:
    """True if a plan trains enough to show anything; arguments as `_divide` returns them."""
    is_warm = not sized.train.sft_examples or examples >= _MIN_EXAMPLES
    has_rl = sized.train.max_steps >= _MIN_STEPS or sized.train.is_sft_alone
    return is_warm and has_rl


def _divide(minutes: float, inputs: PlanInputs) -> tuple[Plan, int]:
    """Return the plan, and the number of SFT examples that the budget alone would allow."""
    require_minutes(minutes)
    divided = _divide_with(_MIN_TASKS, minutes, inputs)
    return divided if _is_useful(*divided) else _divide_with(_MIN_TASKS_IF_SHORT, minutes, inputs)


def _divide_with(min_tasks: int, minutes: float, inputs: PlanInputs) -> tuple[Plan, int]:
    """Divide the budget as `_divide` does, with at least ``min_tasks`` held-out tasks if they exist."""
    config, lengths = inputs.config, inputs.lengths
    left_s, is_alone = minutes * 60, config.is_sft_alone
    tasks = _affordable_tasks(min_tasks, _EVALUATION_SHARE * left_s, inputs)
    left_s -= _evaluation_s(tasks, inputs)
    example_s = lengths.example / inputs.speed.learn
    affordable = max(int((1.0 if is_alone else _WARM_START_SHARE) * left_s / example_s), 0)
    batches = min(affordable, inputs.sft_tasks) // config.sft_batch_size
    examples = max(batches, 1) * config.sft_batch_size if config.sft_examples else 0
    left_s -= examples * example_s
    group_s, decoding_s = _group_s(inputs), inputs.decoding_s(_OF_TRAINED)
    groups = max(config.groups_per_step, round((left_s / _MAX_STEPS - decoding_s) / group_s))
    groups = min(groups, inputs.rl_tasks or groups)  # a step visits no task twice
    step_s = decoding_s + groups * group_s
    steps = 0 if is_alone else max(int(left_s / step_s), 1)
    train = replace(config, sft_examples=examples, groups_per_step=groups, max_steps=steps)
    return Plan(train, tasks, DEFAULT_SAMPLES, minutes=minutes, step_s=step_s), affordable


def _affordable_tasks(fewest: int, seconds: float, inputs: PlanInputs) -> int:
    """Number of held-out tasks that can be evaluated in a time, but at least ``fewest`` if they exist."""
    tasks = min(fewest, inputs.heldout)
    while tasks < inputs.heldout and _evaluation_s(tasks + 1, inputs) <= seconds:
        tasks += 1
    return tasks


def _evaluation_s(tasks: int, inputs: PlanInputs) -> float:
    """Seconds to play a number of held-out tasks with every model of the report."""
    trained = 2 if inputs.config.is_warm and not inputs.config.is_sft_alone else 1
    return _row_s(tasks, inputs, _OF_BASE) + trained * _row_s(tasks, inputs, _OF_TRAINED)


def _row_s(tasks: int, inputs: PlanInputs, episodes: _Episodes) -> float:
    """Seconds to play a number of held-out tasks with one model."""
    speed, turns = inputs.speed, inputs.turns(episodes)
    sampled = episodes.sampled * inputs.answer * (1 + _LATER_ROW * (turns - 1))
    episode_s = sampled * speed.row_s + (turns - 1) * inputs.later_observation / speed.prefill
    episode_s += turns * _ENV_TURN_S
    chunks = math.ceil(tasks * DEFAULT_SAMPLES / EPISODES_AT_ONCE)
    task_s = inputs.lengths.prompt / speed.prefill + DEFAULT_SAMPLES * episode_s
    return chunks * inputs.decoding_s(episodes) + tasks * task_s


def _group_s(inputs: PlanInputs) -> float:
    """Seconds that a step takes for each of its groups, beside `PlanInputs.decoding_s`."""
    config, speed, turns = inputs.config, inputs.speed, inputs.turns(_OF_TRAINED)
    # Without a warm start, a model samples until the length limit or a stop string.
    ends = config.is_warm or config.stop_strings
    answer = inputs.answer if ends else config.max_completion_length
    share = _UNSHARED_WARM if config.is_warm else _UNSHARED_COLD
    unshared = turns * config.num_generations * answer * share
    prefilled = inputs.lengths.prompt + config.num_generations * (turns - 1) * inputs.later_observation
    row_s = speed.row_s * (1 + _LATER_ROW * (turns - 1)) / turns
    rollout_s = prefilled / speed.prefill + unshared * row_s + turns * config.num_generations * _ENV_TURN_S
    learn_s = _MIXED_GROUPS * (prefilled + unshared) / (_GROUP_SPEED * speed.learn)
    return rollout_s + config.num_iterations * learn_s
