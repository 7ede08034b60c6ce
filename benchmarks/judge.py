"""Compare the code editor's grading with an online judge on DebugBench's recorded fixes.

    python benchmarks/judge.py PATH [development | reported]

``PATH`` is DebugBench's Python file, whose ``recorded`` fixes carry ``judge_pass``. Every fix is replayed in
the environment and graded twice: on the examples of the problem statement alone, and as for a reward. The
rate of false accepts is the share of fixes that envkit accepts among those that the judge rejects; the rate
of false rejects is the share that it rejects among those that the judge accepts. Problems are split into two
halves by a hash of their name; grading was developed with the first half only. Intervals are Wilson's. They
assume independent fixes, which fixes of the same problem are not quite.

Writes ``runs/bench/judge-HALF.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from envkit.agents.recorded import RecordedAgent
from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor import CodeEditorEnv
from envkit.rollout import Rollouts
from envkit.sandbox.choice import sandbox_backend
from envkit.types import EpisodeKey, Outcome, Task, Trajectory

ROOT = Path(__file__).parents[1]
HALVES = ("development", "reported")
#: Episodes open at the same time; each has a sandbox.
CHUNK = 32
SEED = 0
#: Bars on the reported half: least agreement, most false accepts and most false rejects.
AGREEMENT_BAR, ACCEPT_BAR, REJECT_BAR = 0.99, 0.013, 0.005


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95 % Wilson interval."""

    count: int
    total: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count}/{self.total} = {self.share:.2%} [{self.low:.2%}, {self.high:.2%}]"


@dataclass(frozen=True)
class Fidelity:
    """Agreement of one way of grading with the judge's verdicts."""

    agreement: Share
    false_accepts: Share
    false_rejects: Share
    seconds: float


def share(count: int, total: int) -> Share:
    if total == 0:
        return Share(0, 0, math.nan, 0.0, 1.0)
    z, part = 1.959964, count / total
    middle = (part + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(part * (1 - part) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Share(count, total, part, max(0.0, middle - half), min(1.0, middle + half))


def half_of(slug: str) -> str:
    return HALVES[int(hashlib.sha256(slug.encode()).hexdigest(), 16) % 2]


def slug_of(task: Task) -> str:
    return task.source.partition(":")[2]


def read_verdicts(path: Path) -> dict[str, dict[str, bool]]:
    """Return model -> task id -> True if the judge accepted the model's fix."""
    found: dict[str, dict[str, bool]] = {}
    numbers = Counter[str]()
    for line in path.read_text().splitlines():
        item = json.loads(line)
        numbers[item["slug"]] += 1
        for model, fix in item["recorded"].items():
            task = f"debugbench/{item['slug']}/{numbers[item['slug']]}"
            found.setdefault(model, {})[task] = fix["judge_pass"]
    return found


def replay_fixes(tasks: Sequence[Task], imported: ImportedTasks) -> Iterator[tuple[str, Trajectory]]:
    """Replay every recorded fix of these tasks and yield model and graded episode."""
    backend = sandbox_backend()
    for at in range(0, len(tasks), CHUNK):
        some = tasks[at : at + CHUNK]
        with Rollouts(lambda some=some: CodeEditorEnv(tasks=some, sandbox=backend), workers=2) as rollouts:
            for model, answers in imported.recorded.items():
                agent = RecordedAgent(model, answers, idle=CodeEditorEnv.noop_action)
                keys = [EpisodeKey(SEED, 0, at + index, 0, task.id) for index, task in enumerate(some)]
                for episode in rollouts.play(agent, keys):
                    yield model, episode


def measure(
    tasks: Sequence[Task], imported: ImportedTasks, verdicts: Mapping[str, Mapping[str, bool]]
) -> tuple[Fidelity, list[str]]:
    """Return the agreement and a line for every disagreement."""
    started = time.perf_counter()
    counts, lines = Counter[tuple[bool, bool]](), list[str]()
    for model, episode in replay_fixes(tasks, imported):
        if episode.outcome is Outcome.VOID:
            raise SystemExit(f"{episode.key.task}: void, {episode.info}")
        judge = verdicts[model][episode.key.task]
        counts[judge, episode.solved] += 1
        if judge != episode.solved:
            evidence = "" if episode.solved else f": {episode.info.get('evidence')}"
            kind = "false accept" if episode.solved else "false reject"
            lines.append(f"{kind} {episode.key.task} {model}{evidence}")
    fidelity = Fidelity(
        share(counts[True, True] + counts[False, False], counts.total()),
        share(counts[False, True], counts[False, True] + counts[False, False]),
        share(counts[True, False], counts[True, False] + counts[True, True]),
        round(time.perf_counter() - started, 1),
    )
    return fidelity, lines


def main() -> None:
    if len(sys.argv) not in (2, 3) or (sys.argv[2:] and sys.argv[2] not in HALVES):
        raise SystemExit(f"usage: {sys.argv[0]} PATH [{' | '.join(HALVES)}]")
    path, half = Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "reported"
    imported, verdicts = CodeEditorEnv.import_tasks("debugbench", path), read_verdicts(path)
    tasks = [task for task in imported.tasks if half_of(slug_of(task)) == half]
    examples_only = [replace(task, hidden={**task.hidden, "fresh": 0}) for task in tasks]
    problems = len({slug_of(task) for task in tasks})
    print(f"{half} half: {len(tasks)} items of {problems} problems; left out of both: {imported.left_out}")

    results: dict[str, object] = {}
    for name, some in (("examples alone", examples_only), ("as rewarded", tasks)):
        fidelity, lines = measure(some, imported, verdicts)
        results[name] = {**asdict(fidelity), "disagreements": lines}
        print(f"\n{name} ({fidelity.seconds} s)")
        print(f"  agreement      {fidelity.agreement}")
        print(f"  false accepts  {fidelity.false_accepts}")
        print(f"  false rejects  {fidelity.false_rejects}")
        if some is tasks:
            print("\n".join(f"    {line}" for line in lines))
            met = (
                fidelity.agreement.share >= AGREEMENT_BAR
                and fidelity.false_accepts.share <= ACCEPT_BAR
                and fidelity.false_rejects.share <= REJECT_BAR
            )
            print(
                f"  bars {AGREEMENT_BAR:.1%}, {ACCEPT_BAR:.1%}, {REJECT_BAR:.1%}: "
                + ("met" if met else "missed")
            )

    target = ROOT / "runs" / "bench" / f"judge-{half}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"half": half, "items": len(tasks), "problems": problems, "left_out": dict(imported.left_out)}
    target.write_text(json.dumps({**facts, **results}, indent=2) + "\n")
    print(f"written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
