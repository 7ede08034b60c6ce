"""Damaged run folders: every reader works, or fails with one line that names the file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stops import stop_after

from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.errors import StoreError, UsageError
from envkit.measure.report.page import load_reports
from envkit.measure.spec import AgentSpec, BenchSpec, EnvironmentSpec
from envkit.measure.viewer.episode_index import EpisodeIndex
from envkit.runs.before_after.run import BeforeAfter
from envkit.runs.before_after.setup import prepare, start
from envkit.runs.benchmark import bench
from envkit.runs.benchmark import setup as bench_setup
from envkit.runs.benchmark.rescore import rescore
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.runtime.store import RunFolder
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_probe")]  # runs that are resumed many times

TASKS = starter_tasks()
NAN = float("nan")
#: Longest time of one reader. Only a read that never ends takes longer.
HANGS_S = 120
CONTENTS = st.one_of(
    st.sampled_from([b"", b"\n", b"[]", b"{}", b"null", b'{"schema":1}\n', b"[" * 100_000, b"\xff\xfe\n"]),
    st.binary(max_size=40),
)
VALUES = st.sampled_from(
    [None, True, "", "x", "../..", "\0", [], [None], {}, {"a": 1}, -1, 0, 3, 2**53, 10**400, 0.5, 1e308, NAN]
)
#: What happens to a file, with the values it needs.
DAMAGES = st.one_of(
    st.tuples(st.sampled_from(["removed", "a folder", "a pipe"])),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flipped"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("overwritten"), CONTENTS),
    st.tuples(st.sampled_from(["a value", "a key"]), st.floats(0, 1, exclude_max=True), VALUES),
)
#: Which file is damaged, as a share of the sorted files.
PLACES = st.floats(0, 1, exclude_max=True)
few = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would run for an hour
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model")).path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path, backend: SandboxBackend) -> Path:
    """The folder of a finished training run that has every kind of file."""
    config = TrainConfig(
        model=str(model),
        lora_r=2,
        sft_examples=4,
        sft_batch_size=2,
        max_steps=2,
        groups_per_step=2,
        num_generations=2,
        max_completion_length=4,
        save_steps=1,
    )
    tasks = {
        split: {CodeEditorEnv: [replace(task, split=split) for task in found]}
        for split, found in (("train", TASKS[:4]), ("heldout", TASKS[4:6]))
    }
    planned = prepare(config, None, *tasks.values(), backend=backend, display=Silent(), command="train")
    run = start(tmp_path_factory.mktemp("trained"), planned)
    BeforeAfter(run, [CodeEditorEnv], backend, Silent(), never).run()
    return run.path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model: Path, backend: SandboxBackend) -> Path:
    """The folder of a finished bench."""
    folder = tmp_path_factory.mktemp("compared")
    write_tasks(folder / "tasks.jsonl", [replace(task, split="heldout") for task in TASKS[:2]], seed=0)
    rows = (AgentSpec("oracle", script="oracle"), AgentSpec("tiny", model=str(model)))
    spec = BenchSpec(
        (EnvironmentSpec("code-editor", str(folder / "tasks.jsonl")),),
        rows,
        samples=1,
        max_completion_length=4,
    )
    run = bench_setup.start(folder, spec, backend=backend, display=Silent(), command="bench")
    bench.Bench(run, backend, Silent(), never).run()
    return run.path


def files_of(run: Path) -> list[Path]:
    return sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(document: Any, where: float, what: str, value: Any) -> Any:
    """The document with one value replaced or one key removed. It loses its digest, as if it were old."""
    found = [*places(document)]
    path = found[int(where * len(found))]
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if what == "a key":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    if isinstance(document, dict):
        document.pop("manifest_digest", None)
    return document


def damage(file: Path, what: str, *values: Any) -> None:
    content = file.read_bytes()
    match what:
        case "removed":
            file.unlink()
        case "a folder":
            file.unlink()
            file.mkdir()
        case "a pipe":
            file.unlink()
            os.mkfifo(file)
        case "cut":
            file.write_bytes(content[: int(values[0] * len(content))])
        case "flipped":
            at = int(values[0] * len(content))
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "overwritten":
            file.write_bytes(values[0])
        case _ if file.suffix == ".json":
            document = changed(json.loads(content), values[0], what, values[1])
            file.write_text(json.dumps(document))
        case _ if file.suffix == ".jsonl":
            lines = content.decode().splitlines()
            at = int(values[0] * len(lines))
            lines[at] = json.dumps(changed(json.loads(lines[at]), values[0] * 31 % 1, what, values[1]))
            file.write_text("".join(f"{line}\n" for line in lines))
        case _:
            file.write_bytes(content * 2)


@contextlib.contextmanager
def no_hang() -> Generator[None]:
    def fail(signum: int, frame: object) -> None:
        raise AssertionError("this reader hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resume_training(backend: SandboxBackend, run: Path) -> None:
    BeforeAfter(RunFolder.open(run), [CodeEditorEnv], backend, Silent(), stop_after(0)).run()


def finish_training(backend: SandboxBackend, run: Path) -> None:
    BeforeAfter(RunFolder.open(run), [CodeEditorEnv], backend, Silent(), never).run()


def resume_bench(backend: SandboxBackend, run: Path) -> None:
    bench.Bench(RunFolder.open(run), backend, Silent(), stop_after(0)).run()


def grade_again(backend: SandboxBackend, run: Path) -> None:
    rescore(RunFolder.open(run), run.parent / "again", backend, Silent(), never, "rescore")


def read_reports(backend: SandboxBackend, run: Path) -> None:
    load_reports(run)


def view(backend: SandboxBackend, run: Path) -> None:
    """Read every episode, as the viewer does."""
    index = EpisodeIndex(RunFolder.open(run))
    for entry in index.refresh():
        index.load(entry.journal, entry.line)


#: What reads a run, by the fixture that makes one.
READERS: dict[str, list[Callable[[SandboxBackend, Path], object]]] = {
    "trained": [read_reports, view, resume_training, finish_training],
    "compared": [read_reports, view, resume_bench, grade_again],
}
Try = Callable[[float, tuple[Any, ...]], None]


@pytest.fixture(params=READERS)
def damage_and_read(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: SandboxBackend
) -> Try:
    """Damage one file of a copy of a run; every reader must work, or refuse the run in one line."""
    whole: Path = request.getfixturevalue(request.param)
    files = files_of(whole)

    def attempt(where: float, harm: tuple[Any, ...]) -> None:
        folder = tmp_path_factory.mktemp("damaged")
        run = folder / whole.name
        shutil.copytree(whole, run)
        damage(run / files[int(where * len(files))], *harm)
        for reader in READERS[request.param]:
            message = ""
            try:
                with no_hang():
                    reader(backend, run)
            except (StoreError, UsageError, OSError) as error:
                message = str(error)
                assert message
            assert "\n" not in message
            assert len(message) < 1000
        shutil.rmtree(folder)

    return attempt


@given(where=PLACES, harm=DAMAGES)
@settings(few, max_examples=8)
def test_a_damaged_run_is_read_or_refused_in_one_line(
    damage_and_read: Try, where: float, harm: tuple[Any, ...]
) -> None:
    damage_and_read(where, harm)


@pytest.mark.nightly
@given(where=PLACES, harm=DAMAGES)
@settings(few, max_examples=300)
def test_hundreds_of_damaged_runs_are_read_or_refused(
    damage_and_read: Try, where: float, harm: tuple[Any, ...]
) -> None:
    damage_and_read(where, harm)
