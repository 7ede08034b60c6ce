"""Several adapters of one base, trained at once: what all of them sample is one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envkit.errors import StoreError, TrainingError
from envkit.train.grpo import GRPOTrainer, Trainer
from envkit.train.metrics import StepMetrics
from envkit.train.rollouts import collect_all


def resume_seeds(trainers: Sequence[Trainer]) -> None:
    """Go on from the newest step that all have saved; whoever an alarm has ended before stays ended.

    What only some have saved beyond it is discarded, alarms of later steps included: it will be done again,
    with all who took part in it.

    Raises:
        StoreError: all have checkpoints, and none is of a step that all have.
    """
    ended = [trainer for trainer in trainers if trainer.store.alarm()]
    left = [trainer for trainer in trainers if trainer not in ended]
    common = _newest_common(left)
    while left and (late := [trainer for trainer in ended if trainer.store.ended() > common]):
        left += late
        ended = [trainer for trainer in ended if trainer not in late]
        common = _newest_common(left)
    for trainer in left:
        trainer.store.discard_after(common)
    for trainer in trainers:
        trainer.resume()


def _newest_common(trainers: Sequence[Trainer]) -> int:
    """The newest step that all have a checkpoint of; 0 where some have none at all."""
    saved = [{*trainer.store.steps()} for trainer in trainers]
    common = set[int].intersection(*saved) if saved else set[int]()
    if saved and all(saved) and not common:
        raise StoreError(f"the checkpoints of {len(saved)} seeds are of no common step: {saved}")
    return max(common, default=0)


def train_seeds(trainers: Sequence[GRPOTrainer], go_on: Callable[[int, StepMetrics], bool]) -> None:
    """Train several adapters of one base at once: what all of them sample is one batch, step by step.

    One whose step fails is ended by an alarm; the others go on.

    Args:
        trainers: see `collect_all`; all have come equally far, but for those that an alarm has ended.
        go_on: asked after each step of each, with its number among them, as `Trainer.train` does. Once it
            says False, all end after this step.

    Raises:
        TrainingError: two have one seed, which tells their episodes apart.
    """
    seeds = [trainer.collector.config.seed for trainer in trainers]
    if len({*seeds}) < len(seeds):
        raise TrainingError(f"adapters with the seeds {seeds} cannot be trained at once: give each its own")
    wanted = True
    while wanted and (left := [trainer for trainer in trainers if not trainer.is_done()]):
        played = collect_all([trainer.collector for trainer in left], left[0].step)
        learned: list[tuple[GRPOTrainer, StepMetrics]] = []
        failed: list[tuple[GRPOTrainer, str]] = []
        for trainer, own in zip(left, played, strict=True):
            try:
                learned.append((trainer, trainer.learn(own)))
            except TrainingError as error:
                failed.append((trainer, str(error)))
        wanted = all([go_on(trainers.index(trainer), metrics) for trainer, metrics in learned])
        for trainer, metrics in learned:
            trainer.note(metrics)
        ended = [trainer for trainer, _ in learned if trainer.alarm]
        # Without those that end, later batches are others. So whoever goes on has saved this step before an
        # end is on record: a run that is killed in between does it again with all of them.
        for trainer, _ in learned:
            if trainer not in ended and (ended or failed or trainer.is_due(wanted)):
                trainer.save()
        for trainer in ended:
            trainer.save()
        for trainer, reason in failed:
            trainer.stop(reason)
