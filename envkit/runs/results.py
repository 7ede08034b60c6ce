"""Results of the Python interface: paths, headline numbers with their intervals, and how a run ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envkit.errors import UsageError

if TYPE_CHECKING:
    from envkit.measure.report.summary import Summary
    from envkit.measure.stats import Interval
    from envkit.runs.benchmark.rescore import Change
    from envkit.runs.folder.claim import ClaimCheck
    from envkit.runs.tools.prompt_search import PromptFound
    from envkit.runs.tools.support import Support


@dataclass(frozen=True, slots=True)
class Report:
    """The report of one environment.

    Args:
        environment: its name.
        page: the HTML file; ``report.md`` and ``report.json`` lie beside it.
        headline: first sentences of the report.
        summary: every number of the report.
    """

    environment: str
    page: Path
    headline: tuple[str, ...]
    summary: Summary

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the agents that were measured, controls included."""
        return tuple(row.name for row in self.summary.rows)

    def solve_rate(self, row: str) -> Interval:
        """Share of episodes that a row solved (pass@1), with its 95 % interval over sources of tasks.

        Raises:
            UsageError: no such row, or none of its episodes was graded.
        """
        rates = {summary.name: summary.solve_rate.interval for summary in self.summary.rows}
        if (rate := rates.get(row)) is None:
            raise UsageError(f"no solve rate for row {row!r}; the report has: {', '.join(rates) or 'none'}")
        return rate

    def difference(self, row: str, against: str) -> Interval:
        """Paired difference of two rows' solve rates, ``row`` minus ``against``, with its 95 % interval.

        Raises:
            UsageError: the report does not compare them.
        """
        pairs = {
            (entry.pair.row, entry.pair.against): entry.interval
            for entry in self.summary.differences
            if not entry.pair.unsolved_by  # on some of the tasks
        }
        if (interval := pairs.get((row, against))) is None:
            listed = ", ".join(f"{first} against {second}" for first, second in pairs) or "none"
            raise UsageError(f"the report does not compare {row!r} with {against!r}; it has: {listed}")
        return interval


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A training run.

    Args:
        run: its folder.
        adapters: the newest checkpoint of every seed, in the order of the seeds, each a PEFT adapter folder;
            without a checkpoint, the adapter of the warm start, if it was saved.
        reports: one per seed and environment; empty only if the run was ended before it could report.
        stopped_by: the signal that stopped it early; ``None`` if it came to its end.
    """

    run: Path
    adapters: tuple[Path, ...]
    reports: tuple[Report, ...]
    stopped_by: signal.Signals | None = None

    @property
    def adapter(self) -> Path:
        """The trained adapter of a run with one seed.

        Raises:
            UsageError: the run has none yet, or several.
        """
        if len(self.adapters) != 1:
            raise UsageError(f"{self.run} has {len(self.adapters)} adapters; expected one: see .adapters")
        return self.adapters[0]

    @property
    def report(self) -> Report:
        """The report of a run with one seed and one environment.

        Raises:
            UsageError: the run has several.
        """
        return _only_report(self.run, self.reports)


@dataclass(frozen=True, slots=True)
class SFTResult:
    """A supervised warm start.

    Args:
        adapter: the PEFT adapter folder; ``None`` if it was stopped early, when nothing is written.
        losses: one per step taken.
        stopped_by: the signal that stopped it early.
    """

    adapter: Path | None
    losses: tuple[float, ...]
    stopped_by: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A comparison of agents.

    Args:
        run: its folder.
        reports: one per environment.
        leaderboard: the HTML page of all rows.
        stopped_by: the signal that stopped it early.
        refused: why a row is missing or incomplete: a provider refused it, or the budget is used up.
    """

    run: Path
    reports: tuple[Report, ...]
    leaderboard: Path
    stopped_by: signal.Signals | None = None
    refused: UsageError | None = None

    @property
    def report(self) -> Report:
        """The report of a comparison on one environment.

        Raises:
            UsageError: there are several.
        """
        return _only_report(self.run, self.reports)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One agent on the held-out tasks of one environment.

    Args:
        run: its folder.
        report: its report.
        row: the agent's name in the report.
        stopped_by: the signal that stopped it early.
    """

    run: Path
    report: Report
    row: str
    stopped_by: signal.Signals | None = None

    @property
    def solve_rate(self) -> Interval:
        """Share of episodes that were solved (pass@1), with its 95 % interval over sources of tasks.

        Raises:
            UsageError: no episode was graded.
        """
        return self.report.solve_rate(self.row)

    def pass_at(self, k: int) -> Interval | None:
        """Chance that one of ``k`` episodes of a task is solved, with its 95 % interval.

        ``None`` if the run did not measure it.
        """
        for row in self.report.summary.rows:
            for rate in (row.solve_rate, *row.rates) if row.name == self.row else ():
                if rate.k == k:
                    return rate.interval
        return None


@dataclass(frozen=True, slots=True)
class RescoreResult:
    """Stored episodes, graded again.

    Args:
        run: the new run folder.
        leaderboard: its HTML page.
        episodes: how many were graded again.
        changed: those whose outcome or reward changed.
        stopped_by: the signal that stopped it early.
    """

    run: Path
    leaderboard: Path
    episodes: int
    changed: tuple[Change, ...]
    stopped_by: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class SupportResult:
    """The result of `envkit.support`.

    Args:
        run: its folder, with every episode.
        found: what the groups have shown; ``None`` if it was stopped before there were enough.
        stopped_by: the signal that stopped it early.
    """

    run: Path
    found: Support | None
    stopped_by: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The result of `envkit.search_prompt`.

    Args:
        run: its folder, with every episode, and the message in ``prompt.txt``.
        found: the message and what it took; ``None`` if the search was stopped.
        stopped_by: the signal that stopped it early.
    """

    run: Path
    found: PromptFound | None
    stopped_by: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of `envkit.push_adapter`.

    Args:
        adapter: the adapter's folder.
        url: where the adapter is on the hub; empty after a dry run.
        files: size in bytes of each published file, by name.
    """

    adapter: Path
    url: str
    files: Mapping[str, int]


def read_report(page: Path) -> Report:
    """Read the report whose HTML page this is."""
    from envkit.measure.report.page import load_report
    from envkit.measure.report.summary import summarise
    from envkit.measure.report.text import headline

    data = load_report(page.parent)
    summary = summarise(data)
    return Report(data.environment, page, tuple(headline(data, summary)), summary)


def _only_report(run: Path, reports: tuple[Report, ...]) -> Report:
    if len(reports) != 1:
        raise UsageError(f"{run} has {len(reports)} reports; expected one: see .reports")
    return reports[0]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of `envkit.verify`.

    Args:
        adapter: the adapter's folder.
        findings: one per check, in order. Nothing is replayed if an earlier check fails.
    """

    adapter: Path
    findings: tuple[ClaimCheck, ...]

    @property
    def reproduced(self) -> bool:
        """True if every check found what the adapter claims."""
        return all(finding.ok for finding in self.findings)
