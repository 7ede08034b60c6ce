"""The curriculum: picks tasks of medium difficulty, because only mixed groups have a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from envkit.errors import TrainingError
from envkit.types import Task

#: Estimates above 0 are kept this far from 0 and 1, where log-odds are infinite.
_MARGIN = 1e-9
#: Sampling weight during a source's cooldown: lower than that of a task solved once in a million.
_COOLDOWN_WEIGHT = 1e-12
#: Decay of a first visit's weight with each later one: about the last fifty count.
_VISIT_DECAY = 0.98
#: Decay of a task's own results with each new visit.
_RESULT_DECAY = 0.5
#: Weight of the prior, in episodes.
_PRIOR = 4.0
#: Prior of a mutation operator: its solve rate, the prior's weight in episodes, and the decay of results with
#: each visit to one of its tasks.
_KIND_RATE, _KIND_PRIOR, _KIND_DECAY = 1 / 3, 8.0, 0.95


@final
class Curriculum:
    """Estimates each task's solve rate and samples those near the middle.

    A task's solve rate is a Beta posterior: its own results, decaying with age, on a prior. The prior is the
    estimate made before training (see `envkit.training.solve_rates`), corrected by the results of first
    visits. A task without an estimate gets the rate of its mutation operator. Estimates must be corrected
    because they age: in one run, 150 unvisited tasks were estimated at 0.001 on average after 35 steps, while
    the policy solved them at 0.06. Uncorrected, they sent the policy back to the tasks that it had memorized.

    A task's sampling weight is (p (1 - p) / (1 + visits to its source)) squared. p (1 - p) is the variance of
    one reward, and so the expected size of the signal (arXiv:2502.12272). It is squared because nearly
    hopeless tasks are many, and together they would outweigh the useful ones. It is divided because tasks of
    a known source are soon solved from memory: in a run without this, revisits earned 0.85 while held-out
    functions gained 2 points in 100. Environments take turns, so that the easiest does not get all visits.
    Picking is a function of (seed, step) and of the results so far.

    Args:
        tasks: the training tasks; ``metadata["environment"]`` names their environment if there are several.
        seed: the run's seed.
        estimates: task id -> solve rate before training, in [0, 1]. Only their order needs to be right. Tasks
            may be missing. 0 means hopeless until visited.
        cooldown: steps after a visit in which its source is avoided.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int,
        estimates: Mapping[str, float] | None = None,
        cooldown: int = 5,
    ) -> None:
        self._ids = [task.id for task in tasks]
        self._index = {task_id: i for i, task_id in enumerate(self._ids)}
        kinds = [str(task.metadata.get("operator", "")) for task in tasks]
        self._kinds = sorted(set(kinds))
        self._kind_of = np.array([self._kinds.index(kind) for kind in kinds])
        names = [str(task.metadata.get("environment", "")) for task in tasks]
        #: For each environment, a mask of its tasks.
        self._env_masks = [np.array([name == env for name in names]) for env in dict.fromkeys(names)]
        self._seed, self._cooldown = seed, cooldown
        self._estimates = np.array([(estimates or {}).get(task_id, np.nan) for task_id in self._ids])
        #: First visits to tasks with an estimate, in order: the task's index, and its solve rate then.
        self._visited: list[int] = []
        self._visited_rates: list[float] = []
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
        prior = np.where(np.isnan(self._estimates), shared, self._corrected_estimates())
        return (self._solved + _PRIOR * prior) / (self._tried + _PRIOR)

    def _corrected_estimates(self) -> NDArray[np.float64]:
        """The estimates, corrected by first visits. Later visits would also measure memorization."""
        near = np.clip(self._estimates, _MARGIN, 1 - _MARGIN)
        odds: NDArray[np.float64] = logit(np.where(self._estimates > 0, near, self._estimates))
        visited, rates = np.array(self._visited, dtype=int), np.array(self._visited_rates)
        for in_env in self._env_masks:  # each environment's estimates are corrected by its own visits
            if (visits := in_env[visited]).any():
                odds[in_env] = _corrected(odds[in_env], odds[visited[visits]], rates[visits])
        return expit(odds)

    def pick(self, step: int, count: int) -> list[str]:
        """Pick ``count`` distinct tasks for a step, of distinct sources if there are enough."""
        rate = self.rates()
        cooldown = np.where(step - self._last > self._cooldown, 1.0, _COOLDOWN_WEIGHT)[self._source_of]
        seen = 1 + self._visits[self._source_of]
        weight = cooldown * (rate * (1 - rate) / seen) ** 2
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, step, 0xC0FFEE])))
        chosen: list[int] = []
        available = np.ones(len(self._ids), dtype=bool)
        turn = step * count
        while len(chosen) < min(count, len(self._ids)):
            candidates = available & self._env_masks[turn % len(self._env_masks)]
            turn += 1
            if not candidates.any():  # this environment has no tasks left
                continue
            share = np.where(candidates, np.maximum(weight, 1e-300), 0.0)
            i = int(rng.choice(len(self._ids), p=share / share.sum()))
            chosen.append(i)
            weight[self._source_of == self._source_of[i]] *= _COOLDOWN_WEIGHT
            available[i] = False
        return [self._ids[i] for i in chosen]

    def record(self, step: int, task_id: str, solved: int, tried: int) -> None:
        """Record one group's result. Void episodes do not count in ``tried``."""
        i = self._index[task_id]
        k = self._kind_of[i]
        self._visits[self._source_of[i]] += 1
        self._last[self._source_of[i]] = step
        if not tried:
            return
        if not self._tried[i] and self._estimates[i] > 0:
            self._visited.append(i)
            self._visited_rates.append(solved / tried)
        self._solved[i] = _RESULT_DECAY * self._solved[i] + solved
        self._tried[i] = _RESULT_DECAY * self._tried[i] + tried
        self._kind_solved[k] = _KIND_DECAY * self._kind_solved[k] + solved
        self._kind_tried[k] = _KIND_DECAY * self._kind_tried[k] + tried

    def state(self) -> dict[str, Any]:
        """The state as JSON data for `restore`; floats survive exactly."""
        return {
            "tasks": self._ids,
            "solved": self._solved.tolist(),
            "tried": self._tried.tolist(),
            "met": [*self._visited],
            "met_rates": [*self._visited_rates],
            "visits": self._visits.tolist(),
            "last": self._last.tolist(),
            "kind_solved": self._kind_solved.tolist(),
            "kind_tried": self._kind_tried.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the `state` of a curriculum over the same tasks.

        Raises:
            TrainingError: the tasks or their order differ.
        """
        if state["tasks"] != self._ids:
            raise TrainingError(f"the saved curriculum has other tasks than the {len(self._ids)} loaded ones")
        self._solved, self._tried = np.array(state["solved"]), np.array(state["tried"])
        self._visited, self._visited_rates = [*state.get("met", ())], [*state.get("met_rates", ())]
        self._visits, self._last = np.array(state["visits"]), np.array(state["last"])
        self._kind_solved = np.array(state["kind_solved"])
        self._kind_tried = np.array(state["kind_tried"])


def _corrected(
    odds: NDArray[np.float64], visited: NDArray[np.float64], rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correct estimates by the results of visited tasks, all as log-odds. Their order is preserved.

    A maximum a posteriori logistic regression of the rates on the estimates. The prior is shift 0 +- 2 and
    slope 1 +- 0.3 (one standard deviation). A task weighs as much as four episodes, because tasks differ more
    than episodes of one task.

    Args:
        odds: the estimates.
        visited: estimates of the visited tasks, oldest first.
        rates: their solve rates, in [0, 1].
    """
    weight = 4 * _VISIT_DECAY ** np.arange(len(visited))[::-1]
    middle = float(np.average(visited, weights=weight))
    features = np.stack([np.ones_like(visited), visited - middle])
    precision = np.diag([1 / 2**2, 1 / 0.3**2])
    change = np.zeros(2)
    for _ in range(30):  # Newton's method; the problem is convex
        p: NDArray[np.float64] = expit(visited + change @ features)
        gradient = features @ (weight * (rates - p)) - precision @ change
        curvature = (features * (weight * p * (1 - p))) @ features.T + precision
        change = change + np.clip(np.linalg.solve(curvature, gradient), -1, 1)
    shift, slope = float(change[0]), max(1 + float(change[1]), 0.1)
    return middle + shift + slope * (odds - middle)
