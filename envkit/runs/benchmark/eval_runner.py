"""Evaluate agents inside a run folder: the same episodes for every agent, resumable."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, final

from envkit.agent import Agent
from envkit.errors import ContractError, SandboxError
from envkit.measure.evaluation import EPISODES_AT_ONCE, complete_chunks, episode_keys, evaluate, task_results
from envkit.measure.report.data import Origin, Row
from envkit.measure.spec import EVALUATION_SEED
from envkit.rollout import Rollouts, raised
from envkit.runs.folder.run_records import EpisodeTime
from envkit.runs.folder.timing import Stopwatch
from envkit.runtime.display import Display
from envkit.runtime.store import RunFolder
from envkit.types import EpisodeKey, Outcome, Task, Trajectory

#: Largest share of an agent's episodes that may be void because the sandbox broke.
_MAX_VOID_SHARE: Final = 0.1
#: Largest share of an agent's episodes in which the environment may raise. A model may cause that with one
#: action, which must not end a run, so it takes nearly all of them.
_MAX_RAISED_SHARE: Final = 0.9


@final
class EvalRunner:
    """Plays the rows of a run and reads their recorded episodes. Methods take a row's name.

    Args:
        run: the folder; a row's episodes go to ``eval-<row>.jsonl``.
        tasks: held-out tasks, the same for every row.
        display: live view.
        chunk: episodes played at once; the same whenever the run is continued.
    """

    def __init__(
        self, run: RunFolder, tasks: Sequence[Task], display: Display, chunk: int = EPISODES_AT_ONCE
    ) -> None:
        self._run, self._tasks, self._display, self._chunk = run, tasks, display, chunk

    def finished(self, row: str, samples: int) -> bool:
        """True if every episode of the row is recorded and graded."""
        graded = [t for t in self.played(row) if t.outcome is not Outcome.VOID]
        return len(graded) == len(self._tasks) * samples

    def played(self, row: str) -> list[Trajectory]:
        """Recorded episodes of a row. If one was played again, only the last attempt."""
        return list({t.key: t for t in self._run.trajectories(f"eval-{row}")}.values())

    def copy_shared_results(self, other: EvalRunner, row: str) -> None:
        """Copy a row's episodes from another run, unless this run has played some of them."""
        if not self._run.records(f"eval-{row}"):
            with self._run.journal(f"eval-{row}") as journal:
                for record in other._run.records(f"eval-{row}"):
                    journal.append(record)

    def play(self, rollouts: Rollouts, agent: Agent, row: str, samples: int) -> None:
        """Play the row's missing episodes. Shows the number of void ones, and the first reason.

        Raises:
            Stopped: see `Rollouts.play`; finished episodes are recorded.
            SandboxError: more than a tenth of the episodes are void because the environment's sandboxes
                broke. They are played again when the run is resumed.
            ContractError: the environment raised in nearly all episodes, so it has a bug.
        """
        if self.finished(row, samples):
            self.report_raised(row)
            return
        keys = self._keys(samples)
        done = [t for t in self.played(row) if t.outcome is not Outcome.VOID]
        self._display.phase(f"evaluate {row}", len(keys))
        started = time.monotonic()
        with Stopwatch(self._run, f"evaluate {row}") as watch, self._run.journal(f"eval-{row}") as journal:

            def progress(count: int, total: int, solved: int) -> None:
                watch.lap()
                speed = (count - len(done)) / (time.monotonic() - started)
                self._display.advance(count, f"solved {solved / count:.1%}, {speed:.1f} episodes/s")

            played = evaluate(rollouts, agent, keys, journal, done, progress, self._chunk)
        self.report_raised(row)
        self._report_voids(agent, row, played)

    def _report_voids(self, agent: Agent, row: str, played: Sequence[Trajectory]) -> None:
        voids = [str(t.info.get("error", "")) for t in played if t.outcome is Outcome.VOID]
        if not voids:
            return
        line = f"{row}: {len(voids)} of {len(played)} episodes are void and in no rate, such as: {voids[0]}"
        self._display.say(line)
        # A provider that does not answer is no broken sandbox. Its agent's name begins the reason.
        broken = [reason for reason in voids if not reason.startswith(f"agent {agent.name}: ")]
        if len(broken) > _MAX_VOID_SHARE * len(played):
            raise SandboxError(
                f"{row}: {len(broken)} of {len(played)} episodes broke: {broken[0]}; mend that and resume"
            )

    def report_raised(self, row: str) -> None:
        """Show the number of recorded episodes in which the environment raised, and where.

        To be called for finished rows too: a resumed run must not pass over a bug in the environment.

        Raises:
            ContractError: it raised in nearly all of them.
        """
        played = self.played(row)
        traces = [str(t.info["trace"]) for t in played if raised(t)]
        if not traces:
            return
        last = traces[0].rpartition("\n")[2]
        fault = f"{row}: the environment raised in {len(traces)} of {len(played)} episodes, first: {last}"
        advice = f"info.trace in {self._run.path / f'eval-{row}.jsonl'} says where"
        self._display.say(f"{fault}; {advice}")
        if len(traces) > _MAX_RAISED_SHARE * len(played):
            raise ContractError(f"{fault}; fix the environment and start again: {advice}")

    def counted(self, row: str, samples: int) -> list[Trajectory]:
        """Recorded episodes that count in rates; see `complete_chunks`."""
        return complete_chunks(self.played(row), self._keys(samples), self._chunk)

    def report_row(
        self,
        name: str,
        description: str,
        counted: Sequence[Trajectory],
        expected: float | None = None,
        origin: Origin = Origin(),
    ) -> Row | None:
        """Build the report's row from its `counted` episodes; ``None`` if there are none."""
        if not counted:
            return None
        seconds = seconds_of(self._run, f"eval-{name}")
        return Row(name, description, task_results(counted, self._tasks, seconds), expected, origin)

    def _keys(self, samples: int) -> list[EpisodeKey]:
        return episode_keys(self._tasks, samples, EVALUATION_SEED)


def seconds_of(run: RunFolder, journal: str) -> Mapping[EpisodeKey, float]:
    """Sum the seconds of each episode in a journal. Void attempts that were repeated count too."""
    seconds: defaultdict[EpisodeKey, float] = defaultdict(float)
    for record in run.read(journal, EpisodeTime):
        seconds[record.key] += record.seconds
    return seconds
