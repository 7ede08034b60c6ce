"""Training several seeds at once: one adapter each on one base, all episodes sampled as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envkit.errors import StoreError, TrainingError
from envkit.training.grpo import GRPOTrainer, Trainer
from envkit.training.learner.heap import HeapLimit
from envkit.training.metrics import StepMetrics, joined
from envkit.training.rollouts import StepRollouts, collect_all


def _update_all(
    learners: Sequence[tuple[GRPOTrainer, StepRollouts]],
) -> tuple[list[tuple[GRPOTrainer, StepMetrics]], list[tuple[GRPOTrainer, str]]]:
    """Take every trainer's gradient steps on its rollouts; returns their metrics, and why others failed."""
    updates: dict[GRPOTrainer, list[StepMetrics]] = {trainer: [] for trainer, _ in learners}
    failed: dict[GRPOTrainer, str] = {}
    for trainer in updates:
        trainer.before_updates()
    for _ in range(learners[0][0].collector.config.num_iterations):
        # All gradients before the first update: a stop finds all adapters at the same step.
        gradients = [
            (trainer, trainer.backward(rollouts)) for trainer, rollouts in learners if trainer not in failed
        ]
        for trainer, gradient in gradients:
            try:
                updates[trainer].append(trainer.update(gradient))
            except TrainingError as error:
                failed[trainer] = str(error)
    return [(trainer, joined(made)) for trainer, made in updates.items() if trainer not in failed], [
        *failed.items()
    ]


def resume_seeds(trainers: Sequence[Trainer]) -> None:
    """Restore the newest step that all seeds have saved. A seed that an alarm ended stays ended.

    Later checkpoints of single seeds are discarded, and so are alarms of later steps. Those steps are taken
    again with every seed that took part in them.

    Raises:
        StoreError: every seed has checkpoints, but they have no step in common.
    """
    ended = [trainer for trainer in trainers if trainer.store.alarm()]
    active = [trainer for trainer in trainers if trainer not in ended]
    common = _newest_common_step(active)
    while active and (late := [trainer for trainer in ended if trainer.store.alarm_step() > common]):
        active += late
        ended = [trainer for trainer in ended if trainer not in late]
        common = _newest_common_step(active)
    for trainer in active:
        trainer.store.discard_after(common)
    for trainer in trainers:
        trainer.resume()


def _newest_common_step(trainers: Sequence[Trainer]) -> int:
    """The newest step that every trainer has saved; 0 if one of them has no checkpoint."""
    saved = [{*trainer.store.steps()} for trainer in trainers]
    common = set[int].intersection(*saved) if saved else set[int]()
    if saved and all(saved) and not common:
        raise StoreError(f"the checkpoints of {len(saved)} seeds have no step in common: {saved}")
    return max(common, default=0)


def train_seeds(trainers: Sequence[GRPOTrainer], on_step: Callable[[int, StepMetrics], bool]) -> None:
    """Train several adapters of one base, step by step; each step's episodes are sampled as one batch.

    A seed whose step fails ends with an alarm; the others continue.

    Args:
        trainers: see `collect_all`. All are at the same step, except those that an alarm has ended.
        on_step: called after each step with the trainer's index. If it returns False, all stop after this
            step.

    Raises:
        Stopped, EnvkitError: see `Trainer.train`.
        TrainingError: two trainers have the same seed. Their episodes are distinguished by the seed.
    """
    seeds = [trainer.collector.config.seed for trainer in trainers]
    if len({*seeds}) < len(seeds):
        raise TrainingError(f"seeds {seeds} are not distinct; give every adapter its own seed")
    wants_more, heap = True, HeapLimit()
    while wants_more and (active := [trainer for trainer in trainers if not trainer.is_done()]):
        try:
            rollouts = collect_all([trainer.collector for trainer in active], active[0].step)
            updated, failed = _update_all([*zip(active, rollouts, strict=True)])
        except Exception:  # also `Stopped`, and too little memory
            for trainer in active:
                trainer.drop_step()
            raise
        heap.after_step()
        # A list, not a generator: every seed's step is reported.
        wants_more = all([on_step(trainers.index(trainer), metrics) for trainer, metrics in updated])
        for trainer, metrics in updated:
            trainer.commit_step(metrics)
        ended = [trainer for trainer, _ in updated if trainer.alarm]
        # Without an ended seed, later batches differ. So the others save this step before an end is recorded:
        # a run that is killed in between repeats the step with all seeds.
        for trainer, _ in updated:
            if trainer not in ended and (ended or failed or trainer.is_save_due(wants_more)):
                trainer.save()
        for trainer in ended:
            trainer.save()
        for trainer, reason in failed:
            trainer.fail(reason)
