"""Measure cells of the studies' grid: play with an adapter, and let others answer the same tasks."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envkit.errors import StoreError, UsageError
from envkit.runs.bench_runs import LIMITS
from envkit.studies.grid.make_arms import ArmMaker, adapter_of, runs_of

if TYPE_CHECKING:
    from envkit.measure.report.data import Conditions, ReportData, Row
    from envkit.runtime.display import Display
    from envkit.sandbox import SandboxBackend
    from envkit.studies.grid.budget import EpisodePlan, StudyBudget
    from envkit.studies.grid.cells import CellFolder
    from envkit.studies.grid.grid import Grid
    from envkit.types import Task


@dataclass(frozen=True, slots=True)
class CellMeasurer:
    """Measure the cells of a grid.

    Args:
        grid: the cells of all arms, of which some are made.
        sizes: of the grid.
        benchmark: tasks that other models have answered, ``FORMAT:PATH``; for ``"frontier"`` alone.
        sandbox: a backend or its registered name.
        display: live view.
    """

    grid: Grid
    sizes: StudyBudget
    benchmark: str
    sandbox: SandboxBackend | str
    display: Display

    def measure(self, cell: CellFolder, part: str) -> signal.Signals | None:
        """Measure a part of a cell, after making its adapter if it has none; returns what stopped it.

        Args:
            cell: the cell.
            part: one that is not measured yet; see `envkit.studies.grid.measurements`.

        Raises:
            EnvkitError: it cannot be measured.
        """
        from envkit.studies.grid.arms import ROUTED
        from envkit.studies.grid.measurements import DISTANCE, FRONTIER, MULTIPLEX, answered_part

        if part == MULTIPLEX:
            self._multiplex(cell)
            return None
        tasks = self.benchmark if FRONTIER in (part, answered_part(part)) else ""
        if (played := answered_part(part)) is not None:
            return self._play_others(cell, played, tasks)
        if cell.arm.kind == ROUTED:
            self._route(cell)
            return None
        if stopped := ArmMaker(self.grid, self.sizes, self.sandbox, self.display).make(cell):
            return stopped
        if part == DISTANCE:
            self._measure_distance(cell)
            return None
        return self._play(cell, part, tasks)

    def _play(self, cell: CellFolder, part: str, tasks: str) -> signal.Signals | None:
        """Play a cell's held-out episodes."""
        from envkit.studies.grid.measurements import Measured, searched_message

        system = "" if cell.prompt is None else cell.prompt.system
        report, stopped = self._evaluated(
            cell.work / part,
            self.sizes.play_of(part),
            f"envkit study: {cell.name}, {part}",
            tasks,
            model=self.sizes.model,
            adapter=adapter_of(cell),
            shots=cell.arm.shots,
            system=system,
        )
        if report is None:
            return stopped
        assert report.conditions is not None  # only reports of earlier versions lack them
        [row] = [row for row in report.rows if row.expected is None]
        if system:  # seeds that found the same message are still several
            row = replace(row, origin=replace(row.origin, system=searched_message(system, cell.seed)))
        row = replace(row, name=cell.name, description=cell.arm.meaning)
        cell.write_measured(part, Measured(row, report.conditions, report.machine, report.commit))
        return None

    def _play_others(self, cell: CellFolder, part: str, tasks: str) -> signal.Signals | None:
        """Let the environment's baselines play the tasks of a part, and grade answers that came with them."""
        from envkit.env import registry
        from envkit.runs.folder.provenance import commit
        from envkit.studies.grid.measurements import Others, others_part

        play, work = self.sizes.play_of(part), cell.work / others_part(part)
        rows: list[Row] = []
        conditions: Conditions | None = None
        if play.recorded:  # baselines play beside them
            report, stopped = self._evaluated(work, play, f"envkit study: {part}", tasks, others=True)
            if report is None:
                return stopped
            rows += [row for row in report.rows if row.expected is None]
            conditions = report.conditions
        else:
            for baseline in registry.environment(play.environment).baselines:
                report, stopped = self._evaluated(
                    work / baseline.name,
                    play if baseline.is_random else replace(play, samples=1),
                    f"envkit study: {baseline.name}",
                    agent=baseline.name,
                )
                if report is None:
                    return stopped
                rows += [row for row in report.rows if row.name == baseline.name]
                conditions = report.conditions
        cell.write_others(part, Others(tuple(rows), conditions, commit()))
        return None

    def _evaluated(
        self,
        folder: Path,
        play: EpisodePlan,
        command: str,
        tasks: str = "",
        *,
        others: bool = False,
        agent: str = "model",
        **model: Any,
    ) -> tuple[ReportData | None, signal.Signals | None]:
        """Evaluate an agent, or others' answers; goes on with an evaluation that was stopped.

        Returns:
            Its report, or what stopped it.
        """
        from envkit.measure.report.page import load_reports
        from envkit.runs.measuring import bench, bench_spec, evaluate, resume_bench

        common: dict[str, Any] = {
            "tasks": tasks,
            "limit": play.tasks,
            "split": play.split,
            "max_task_chars": play.max_task_chars,
            "max_turns": play.config.max_turns or None,
        }
        running: dict[str, Any] = {"sandbox": self.sandbox, "display": self.display}
        starting: dict[str, Any] = {**running, "root": folder, "command": command}
        if began := runs_of(folder):
            result = resume_bench(began[-1], **running)
        elif others:
            spec = bench_spec(recorded=play.recorded, environment=play.environment, samples=1, **common)
            result = bench(spec, **starting)
        else:
            if agent == "model":  # the same limits with an adapter and without, whatever it was trained with
                limits = {name: getattr(play.config, name) for name in LIMITS if name != "max_turns"}
                model |= {**limits, "temperature": play.temperature, "device": play.config.device}
            result = evaluate(
                play.environment, agent=agent, samples=play.samples, **common, **starting, **model
            )
        if result.stopped_by:
            return None, result.stopped_by
        [report] = load_reports(result.run)
        return report, None

    def _route(self, cell: CellFolder) -> None:
        """Train a router on the specialists' train tasks, and ask it who answers the held-out ones."""
        from envkit.env import registry
        from envkit.models import resolve
        from envkit.runs.common import isolated_backend, load_train_tasks
        from envkit.runs.folder.machine import resolve_dtype, use_threads
        from envkit.runs.folder.provenance import commit
        from envkit.serving.decoding.router import write_router
        from envkit.studies.grid.arms import BASE, SPECIALISTS
        from envkit.studies.grid.measurements import ON, RoutedTasks
        from envkit.studies.specialists.call import DEFAULT_PROMPTS, DEFAULT_TOKENS
        from envkit.studies.specialists.router import Posed, train_on_tasks
        from envkit.training.config import TrainConfig

        use_threads()
        ref = resolve(self.sizes.model, self.display)
        dtype = resolve_dtype(TrainConfig(), self.display.say).dtype
        backend = isolated_backend(self.sandbox, self.display)
        [base] = self.grid.cells(BASE)
        train_tasks: dict[str, Posed] = {}
        held_out: dict[str, Posed] = {}
        for environment, arm in SPECIALISTS.items():
            kind, part = registry.environment(environment), ON[environment]
            turns = self.sizes.config_of(arm).turns
            short = load_train_tasks(kind, None, self.sizes.max_task_chars_of(arm), backend, self.display)
            drawn = random.Random(cell.seed).sample(short, min(DEFAULT_PROMPTS, len(short)))
            train_tasks[arm.name] = Posed(kind, drawn, turns)
            held_out[part] = Posed(kind, _played_tasks(base, part, environment), turns)
        router, facts, answering = train_on_tasks(
            ref,
            dtype,
            train_tasks,
            held_out,
            backend,
            tokens=DEFAULT_TOKENS,
            seed=cell.seed,
            display=self.display,
        )
        cell.work.mkdir(parents=True, exist_ok=True)
        file = cell.work / "router.safetensors"
        write_router(router, file)
        base_bytes = sum(weights.stat().st_size for weights in ref.path.glob("*.safetensors"))
        for sent, (part, posed) in zip(facts.sent, held_out.items(), strict=True):  # both by environment
            assert sent.unknown is not None  # there are several specialists
            arms = {task.id: arm or BASE for task, arm in zip(posed.tasks, answering[part], strict=True)}
            found = RoutedTasks(
                arms=arms,
                learned=facts.learned,
                read_ms=facts.read_ms,
                size_bytes=file.stat().st_size,
                base_bytes=base_bytes,
                unknown=sent.unknown.estimate,
                commit=commit(),
            )
            cell.write_chosen(part, found)

    def _measure_distance(self, cell: CellFolder) -> None:
        """Measure how far a cell's adapter has moved from its base."""
        from envkit.runs.folder.provenance import commit
        from envkit.studies.forgetting.call import forgetting
        from envkit.studies.grid.measurements import Distance

        adapter, made = adapter_of(cell), cell.made
        assert adapter is not None
        assert made is not None
        found = forgetting(
            adapter,
            environment=self.sizes.environment,
            model=self.sizes.model,
            config=self.sizes.config_of(cell.arm),
            device=self.sizes.config_of(cell.arm).device,
            max_task_chars=self.sizes.max_task_chars,
            limit=self.sizes.passages,
            sandbox=self.sandbox,
            display=self.display,
        )
        if found.task is None:
            raise UsageError(f"all episodes of {cell.name} are void; read why in a run of `envkit bench`")
        text = found.text
        cell.write_distance(Distance(made.digest, text.sources, text.rises, found.task.kl, commit()))

    def _multiplex(self, cell: CellFolder) -> None:
        """Measure what decoding with many adapters costs."""
        from envkit.models import resolve
        from envkit.runs.folder.machine import machine, resolve_dtype, use_threads
        from envkit.runs.folder.provenance import commit
        from envkit.studies.grid.measurements import Multiplexed
        from envkit.studies.multiplexing.claim import RANK, counts_of
        from envkit.studies.multiplexing.measure import ManyAdapters
        from envkit.training.config import from_mapping
        from envkit.training.policy import find_device

        threads = use_threads()
        config = resolve_dtype(from_mapping(self.sizes.training, "training"), self.display.say)
        ref, dtype, device = resolve(self.sizes.model, self.display), config.dtype, config.device
        find_device(device)
        together, one_by_one = counts_of(self.sizes.rows)
        most = max(together)
        speeds = ManyAdapters(ref, dtype, most, RANK, self.sizes.rows, self.sizes.ticks, device).speeds(
            together, one_by_one, self.sizes.rounds
        )
        exact = ManyAdapters(
            ref, "float32", most, RANK, self.sizes.rows, self.sizes.ticks, device
        ).largest_difference(most)
        found = {way: tuple(each) for way, each in speeds.items()}
        here = machine(threads, dtype, device)
        cell.write_multiplexed(Multiplexed(RANK, self.sizes.rows, found, exact, here, commit()))


def _played_tasks(cell: CellFolder, part: str, environment: str) -> list[Task]:
    """Tasks that a cell has played; no test task is opened anew.

    Raises:
        StoreError: its run is gone.
    """
    from envkit.env.taskfile import read_tasks
    from envkit.runs.benchmark.setup import TASKS_FILE
    from envkit.runtime.store import folder_name

    if not (runs := runs_of(cell.work / part)):
        raise StoreError(
            f"{cell.work / part} is gone, whose tasks a router is asked about; {cell.again(part)}"
        )
    return read_tasks(runs[-1] / folder_name(environment) / TASKS_FILE)
