"""The curriculum: picks tasks of medium difficulty, because only mixed groups have a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from envkit.errors import TrainingError
from envkit.types import Task

#: Decay of a first visit's weight with each later one: about the last fifty count.
_VISIT_DECAY = 0.98
#: Decay of a task's own results with each new visit.
_RESULT_DECAY = 0.5
#: Weight of the prior of a task's mean reward, in episodes.
_PRIOR_EPISODES = 4.0
#: Weight of a first visit in the regression, in episodes. Fewer than it has, because tasks differ more than
#: episodes of one task.
_VISIT_EPISODES = 4.0
#: Decay of an environment's results with each new visit: about the last twenty count.
_ENV_DECAY = 0.95
#: Prior results of an environment, in episodes: solved, and all.
_ENV_PRIOR = (4.0, 8.0)
#: The golden ratio's fraction: the offsets of the steps are spread evenly, however many there are.
_GOLDEN = 0.6180339887498949
#: Priors of the regression's weights, in log-odds of the mean reward, as (mean, standard deviation): of any
#: task, of a kind beside that, and of a length one standard deviation above the mean.
_ANY_TASK, _KIND, _LENGTH = (float(logit(1 / 3)), 2.0), (0.0, 1.0), (-0.5, 0.5)


@final
class Curriculum:
    """Estimates each task's mean reward and samples those near the middle. It needs no known answers.

    A task's mean reward is a Beta posterior: its own results, decaying with age, on a prior. The prior comes
    from the first visits to other tasks of its environment, by a logistic regression on kind and length.
    Later visits do not count in it, because they would also measure memorization.

    A task's sampling weight is (p (1 - p) / (1 + visits to its source)) squared. p (1 - p) is the variance of
    a reward of 0 or 1 with mean p, and so the expected size of the signal (arXiv:2502.12272). Of rewards in
    between, it is the largest variance that they may have. It is squared because nearly hopeless tasks are
    many, and together they would outweigh the useful ones. It is divided because tasks of a known source are
    soon solved from memory: in a run without this, revisits earned 0.85 while held-out functions gained 2
    points in 100. Every environment gets its share of each step's visits, so that the easiest does not get
    all. Picking is a function of (seed, step) and of the results so far.

    Args:
        tasks: the training tasks; ``metadata["environment"]`` names their environment if there are several,
            and ``metadata["operator"]`` their kind.
        seed: the run's seed.
        cooldown: steps after a visit in which its source is avoided.
        weights, worst_task_weight: what decides the shares of several environments; see
            `envkit.training.config.TrainConfig`.

    Raises:
        TrainingError: a weight belongs to no environment of the tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int,
        cooldown: int = 5,
        *,
        weights: Mapping[str, float] | None = None,
        worst_task_weight: float = 1.0,
    ) -> None:
        self._ids = [task.id for task in tasks]
        self._index = {task_id: i for i, task_id in enumerate(self._ids)}
        names = [str(task.metadata.get("environment", "")) for task in tasks]
        envs = [*dict.fromkeys(names)]
        #: For each environment, a mask of its tasks.
        self._env_masks = [np.array([name == env for name in names]) for env in envs]
        given = weights or {}
        if len(envs) > 1 and (strangers := given.keys() - {*names}):
            raise TrainingError(
                f"mix names {min(strangers)}, and there are no tasks of it; found {', '.join(envs)}"
            )
        self._weights = np.array([given.get(env, 1.0) for env in envs])
        self._worst_task_weight = worst_task_weight
        #: Episodes of each environment, solved and all; older visits count less.
        self._env_solved = np.full(len(envs), _ENV_PRIOR[0])
        self._env_tried = np.full(len(envs), _ENV_PRIOR[1])
        self._features = _features(tasks, self._env_masks)
        self._seed, self._cooldown = seed, cooldown
        #: First visits, in order: the task's index, and its mean reward then.
        self._visited: list[int] = []
        self._visited_rates: list[float] = []
        self._earned = np.zeros(len(tasks))
        self._tried = np.zeros(len(tasks))
        sources = {source: i for i, source in enumerate(dict.fromkeys(task.source for task in tasks))}
        self._source_of = np.array([sources[task.source] for task in tasks])
        self._visits = np.zeros(len(sources))
        self._last = np.full(len(sources), -(10**6))

    def rates(self) -> NDArray[np.float64]:
        """Estimated mean reward of every task, in task order, in [0, 1]."""
        visited, rates = np.array(self._visited, dtype=int), np.array(self._visited_rates)
        prior = np.empty(len(self._ids))
        for in_env in self._env_masks:  # another environment's results say nothing
            seen = in_env[visited]
            slopes = _regression(self._features[visited[seen]], rates[seen])
            prior[in_env] = expit(self._features[in_env] @ slopes)
        return (self._earned + _PRIOR_EPISODES * prior) / (self._tried + _PRIOR_EPISODES)

    def shares(self) -> NDArray[np.float64]:
        """Return each environment's share of the visits, in the order of the tasks; their sum is 1."""
        unsolved = 1 - self._env_solved / self._env_tried
        share = self._weights * self._worst_task_weight**unsolved
        return np.asarray(share / share.sum(), dtype=np.float64)

    def _pick_environments(self, step: int, count: int) -> list[int]:
        """Choose the environment of each of a step's visits: its share of ``count``, rounded up or down.

        The shares lie end to end, and equally spaced points fall on them, in each step with another offset.
        So rounding evens out over the steps.
        """
        offset = step * _GOLDEN % 1
        ends = np.cumsum(self.shares())
        points = (np.arange(count) + offset) / count
        return np.minimum(np.searchsorted(ends, points, side="right"), len(ends) - 1).tolist()

    def pick(self, step: int, count: int) -> list[str]:
        """Pick ``count`` distinct tasks for a step, of distinct sources if there are enough.

        A source that was visited lately rests: another visit waits until no other source is left. A second
        visit in the same step waits until no resting source is left either.
        """
        rate = self.rates()
        seen = 1 + self._visits[self._source_of]
        weight = np.maximum((rate * (1 - rate) / seen) ** 2, 1e-300)
        #: Of each source: 1 if it rests, and 2 for each visit in this step. The lowest come first.
        turn = (step - self._last <= self._cooldown).astype(int)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, step, 0xC0FFEE])))
        chosen: list[int] = []
        available = np.ones(len(self._ids), dtype=bool)
        for env in self._pick_environments(step, min(count, len(self._ids))):
            candidates = available & self._env_masks[env]
            if not candidates.any():  # this environment has no tasks left
                candidates = available
            turns = turn[self._source_of]
            candidates = candidates & (turns == turns[candidates].min())
            share = np.where(candidates, weight, 0.0)
            i = int(rng.choice(len(self._ids), p=share / share.sum()))
            chosen.append(i)
            turn[self._source_of[i]] += 2
            available[i] = False
        return [self._ids[i] for i in chosen]

    def record(self, step: int, task_id: str, solved: int, tried: int, earned: float | None = None) -> None:
        """Record one group's result.

        Args:
            step: of the visit.
            task_id: the task.
            solved: episodes that solved it, for the shares of the environments.
            tried: episodes that are not void.
            earned: sum of their rewards, each in [0, 1]; by default 1 for a solved one and 0 for any other.
        """
        earned = solved if earned is None else earned
        i = self._index[task_id]
        self._visits[self._source_of[i]] += 1
        self._last[self._source_of[i]] = step
        if not tried:
            return
        env = next(number for number, in_env in enumerate(self._env_masks) if in_env[i])
        self._env_solved[env] = _ENV_DECAY * self._env_solved[env] + solved
        self._env_tried[env] = _ENV_DECAY * self._env_tried[env] + tried
        if not self._tried[i]:
            self._visited.append(i)
            self._visited_rates.append(earned / tried)
        self._earned[i] = _RESULT_DECAY * self._earned[i] + earned
        self._tried[i] = _RESULT_DECAY * self._tried[i] + tried

    def state(self) -> dict[str, Any]:
        """The state as JSON data for `restore`; floats survive exactly."""
        return {
            "tasks": self._ids,
            "solved": self._earned.tolist(),
            "tried": self._tried.tolist(),
            "met": [*self._visited],
            "met_rates": [*self._visited_rates],
            "visits": self._visits.tolist(),
            "last": self._last.tolist(),
            "env_solved": self._env_solved.tolist(),
            "env_tried": self._env_tried.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the `state` of a curriculum over the same tasks.

        Raises:
            TrainingError: the tasks or their order differ.
        """
        if state["tasks"] != self._ids:
            raise TrainingError(f"the saved curriculum has other tasks than the {len(self._ids)} loaded ones")
        self._earned, self._tried = np.array(state["solved"]), np.array(state["tried"])
        self._visited, self._visited_rates = [*state.get("met", ())], [*state.get("met_rates", ())]
        self._visits, self._last = np.array(state["visits"]), np.array(state["last"])
        if "env_tried" in state:  # not in older runs, which had equal shares
            self._env_solved, self._env_tried = np.array(state["env_solved"]), np.array(state["env_tried"])


def _features(tasks: Sequence[Task], env_masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Describe every task by the numbers that `_regression` takes, as an array (tasks, 2 + kinds)."""
    kinds = [str(task.metadata.get("operator", "")) for task in tasks]
    length = np.log([task.chars + 1 for task in tasks])
    for in_env in env_masks:
        length[in_env] = (length[in_env] - length[in_env].mean()) / max(length[in_env].std(), 1e-9)
    is_kind = [[float(kind == other) for other in sorted(set(kinds))] for kind in kinds]
    return np.column_stack([np.ones(len(tasks)), length, np.array(is_kind)])


def _regression(features: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the log-odds of mean rewards as a weighted sum of features; returns the weights.

    A logistic regression, maximum a posteriori; without any task, the prior's weights.

    Args:
        features: of the visited tasks, oldest first: 1; the log length, standardized within the environment;
            and for each kind of task, 1 if the task is of it and 0 otherwise.
        rates: their mean rewards, in [0, 1].
    """
    priors = np.array([_ANY_TASK, _LENGTH, *[_KIND] * (features.shape[1] - 2)], dtype=np.float64)
    mean, precision = priors[:, 0], np.diag(priors[:, 1] ** -2)
    weight = _VISIT_EPISODES * _VISIT_DECAY ** np.arange(len(rates))[::-1]
    slopes = mean
    for _ in range(30):  # Newton's method; the problem is convex
        p: NDArray[np.float64] = expit(features @ slopes)
        gradient = features.T @ (weight * (rates - p)) - precision @ (slopes - mean)
        curvature = (features.T * (weight * p * (1 - p))) @ features + precision
        slopes = slopes + np.clip(np.linalg.solve(curvature, gradient), -1, 1)
    return slopes
