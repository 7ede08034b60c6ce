"""The curriculum: tasks of middling difficulty, since only mixed groups teach, of functions still new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from envkit.errors import TrainingError
from envkit.types import Task

#: Estimates that are not 0 are kept this far from 0 and 1, where log-odds end.
_LEAST = 1e-9
#: Weight of a source that rests, beside others: less than that of a task with a chance of one in a million.
_TIRED = 1e-12
#: How much of a first visit's say each later one leaves it: that of about the last fifty counts.
_FADES = 0.98
#: What a task's own results count for once it is visited again.
_AGES = 0.5
#: Episodes that a prior counts as, beside a task's own.
_PRIOR = 4.0
#: An operator of which nothing is known yet is solved one time in three, with the weight of so many episodes;
#: results fade with each visit to one of its tasks.
_KIND_RATE, _KIND_PRIOR, _KIND_FADES = 1 / 3, 8.0, 0.95


@final
class Curriculum:
    """Estimates each task's solve rate and samples those near the middle.

    A task's rate is a Beta posterior: its own results, fading with age, on a prior. The prior is an
    estimate made beforehand (see `envkit.training.difficulty`), moved by what first visits have shown since,
    or else what all tasks of its mutation operator have shown. For estimates age: those of 150
    tasks that a run had not visited in its 35 steps were 0.001 on average, and its chance had become 0.06.
    Unmoved, they sent it back to the few that it knew by heart.

    A task's weight is the square of p (1 - p), the variance of one reward and so the expected size of the
    signal (arXiv:2502.12272), over one more than the visits to tasks of its source. Squared, for the
    nearly hopeless are many, and in plain proportion all of them together would be picked more often than
    those that teach. Divided, for what was seen before is soon earned by recall: in a run that did not look
    at sources, revisits came to earn 0.85 while held-out functions gained 2 points in 100. Environments take
    turns, lest the one that is easier at first has all visits. Picking is a function of (seed, step) and of
    the results so far.

    Args:
        tasks: the training tasks; ``metadata["environment"]`` names whose they are, where there are several.
        seed: the run's seed.
        estimates: task id -> solve rate before training, in [0, 1], right in their order rather than as they
            stand; may leave tasks out. 0 is hopeless, and stays so until visited.
        rest: steps that a visited source is left alone.
    """

    def __init__(
        self, tasks: Sequence[Task], seed: int, estimates: Mapping[str, float] | None = None, rest: int = 5
    ) -> None:
        self._ids = [task.id for task in tasks]
        self._index = {task_id: i for i, task_id in enumerate(self._ids)}
        kinds = [str(task.metadata.get("operator", "")) for task in tasks]
        self._kinds = sorted(set(kinds))
        self._kind_of = np.array([self._kinds.index(kind) for kind in kinds])
        owners = [str(task.metadata.get("environment", "")) for task in tasks]
        self._lanes = [np.array([owner == lane for owner in owners]) for lane in dict.fromkeys(owners)]
        self._seed, self._rest = seed, rest
        self._estimates = np.array([(estimates or {}).get(task_id, np.nan) for task_id in self._ids])
        #: First visits to tasks that have an estimate, in order: which task, and its solve rate then.
        self._met: list[int] = []
        self._met_rates: list[float] = []
        self._solved = np.zeros(len(tasks))
        self._tried = np.zeros(len(tasks))
        sources = {source: i for i, source in enumerate(dict.fromkeys(task.source for task in tasks))}
        self._source_of = np.array([sources[task.source] for task in tasks])
        self._visits = np.zeros(len(sources))
        self._last = np.full(len(sources), -(10**6))
        self._kind_tried = np.full(len(self._kinds), _KIND_PRIOR)
        self._kind_solved = self._kind_tried * _KIND_RATE

    def rates(self) -> NDArray[np.float64]:
        """Estimated solve rate of every task, in task order, in [0, 1]."""
        shared = (self._kind_solved / self._kind_tried)[self._kind_of]
        prior = np.where(np.isnan(self._estimates), shared, self._moved())
        return (self._solved + _PRIOR * prior) / (self._tried + _PRIOR)

    def _moved(self) -> NDArray[np.float64]:
        """The estimates as first visits correct them; later visits also show what is known by heart."""
        near = np.clip(self._estimates, _LEAST, 1 - _LEAST)
        odds: NDArray[np.float64] = logit(np.where(self._estimates > 0, near, self._estimates))
        met, rates = np.array(self._met, dtype=int), np.array(self._met_rates)
        for lane in self._lanes:  # what one environment shows says nothing of another's estimates
            if (own := lane[met]).any():
                odds[lane] = _corrected(odds[lane], odds[met[own]], rates[own])
        return _chances(odds)

    def pick(self, step: int, count: int) -> list[str]:
        """``count`` distinct task ids for a step, of distinct sources as far as there are as many."""
        rate = self.rates()
        tired = np.where(step - self._last > self._rest, 1.0, _TIRED)[self._source_of]
        seen = 1 + self._visits[self._source_of]
        weight = tired * (rate * (1 - rate) / seen) ** 2
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, step, 0xC0FFEE])))
        chosen: list[int] = []
        left = np.ones(len(self._ids), dtype=bool)
        turn = step * count
        while len(chosen) < min(count, len(self._ids)):
            lane = left & self._lanes[turn % len(self._lanes)]
            turn += 1
            if not lane.any():  # that environment has no more
                continue
            share = np.where(lane, np.maximum(weight, 1e-300), 0.0)
            i = int(rng.choice(len(self._ids), p=share / share.sum()))
            chosen.append(i)
            weight[self._source_of == self._source_of[i]] *= _TIRED
            left[i] = False
        return [self._ids[i] for i in chosen]

    def record(self, step: int, task_id: str, solved: int, tried: int) -> None:
        """Take in one group's result; voids do not count in ``tried``, and a group of them says nothing."""
        i = self._index[task_id]
        k = self._kind_of[i]
        self._visits[self._source_of[i]] += 1
        self._last[self._source_of[i]] = step
        if not tried:
            return
        if not self._tried[i] and self._estimates[i] > 0:
            self._met.append(i)
            self._met_rates.append(solved / tried)
        self._solved[i] = _AGES * self._solved[i] + solved
        self._tried[i] = _AGES * self._tried[i] + tried
        self._kind_solved[k] = _KIND_FADES * self._kind_solved[k] + solved
        self._kind_tried[k] = _KIND_FADES * self._kind_tried[k] + tried

    def state(self) -> dict[str, Any]:
        """JSON data that `restore` takes; floats survive exactly."""
        return {
            "tasks": self._ids,
            "solved": self._solved.tolist(),
            "tried": self._tried.tolist(),
            "met": self._met,
            "met_rates": self._met_rates,
            "visits": self._visits.tolist(),
            "last": self._last.tolist(),
            "kind_solved": self._kind_solved.tolist(),
            "kind_tried": self._kind_tried.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state` of a curriculum over the same tasks.

        Raises:
            TrainingError: it is of other tasks, or of the same in another order.
        """
        if state["tasks"] != self._ids:
            raise TrainingError(f"the saved curriculum is of other tasks than the {len(self._ids)} loaded")
        self._solved, self._tried = np.array(state["solved"]), np.array(state["tried"])
        self._met, self._met_rates = [*state.get("met", ())], [*state.get("met_rates", ())]
        self._visits, self._last = np.array(state["visits"]), np.array(state["last"])
        self._kind_solved = np.array(state["kind_solved"])
        self._kind_tried = np.array(state["kind_tried"])


def _corrected(
    odds: NDArray[np.float64], met: NDArray[np.float64], rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Estimates as the tasks that were met correct them, all as log-odds; their order stays.

    A logistic regression of the rates on the estimates, the most probable one where beforehand no shift and a
    slope of 1 are so: a shift by 2 and a slope off by 0.3 are one standard deviation. A task weighs as four
    episodes, for tasks differ more than episodes of one do.

    Args:
        odds: the estimates.
        met: those of the tasks that were met, oldest first.
        rates: what was then found, in [0, 1].
    """
    weight = 4 * _FADES ** np.arange(len(met))[::-1]
    middle = float(np.average(met, weights=weight))
    features = np.stack([np.ones_like(met), met - middle])
    precision = np.diag([1 / 2**2, 1 / 0.3**2])
    change = np.zeros(2)
    for _ in range(30):  # Newton's steps; the problem is convex
        p = _chances(met + change @ features)
        gradient = features @ (weight * (rates - p)) - precision @ change
        curvature = (features * (weight * p * (1 - p))) @ features.T + precision
        change = change + np.clip(np.linalg.solve(curvature, gradient), -1, 1)
    shift, slope = float(change[0]), max(1 + float(change[1]), 0.1)
    return middle + shift + slope * (odds - middle)


def _chances(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """What log-odds stand for."""
    return expit(odds)
