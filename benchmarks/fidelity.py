"""Measure how often grading by calls is wrong, by kind of program.

    make bench SECTION=fidelity
    python benchmarks/fidelity.py [TASKS [SEED]]

``TASKS`` (60) held-out tasks, in the order of their recipe. For each task, programs that are wrong at an edge
only, other mutations, and right programs in other shapes are made of the original, as
`envkit.environments.code_editor.variants` says, and graded as for a reward.

Intervals are Wilson's, as if programs were independent. Writes ``runs/bench/fidelity.json``. Exits 1 if a bar
is missed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from judge import Share, share

from envkit.environments.code_editor.env import FRESH_CALLS
from envkit.environments.code_editor.graders.calls import CallGrader
from envkit.environments.code_editor.tasksets import standard_tasks
from envkit.environments.code_editor.variants import (
    Subject,
    other_mutations,
    rewritten,
    subject_of,
    wrong_at_edges,
)
from envkit.runtime.display import Silent
from envkit.sandbox import SandboxBackend
from envkit.sandbox.choice import sandbox_backend
from envkit.types import Verdict

ROOT: Final = Path(__file__).parents[1]
TASKS: Final = 60
MUTATIONS: Final = 14
#: Bars: most wrong programs accepted, by kind; most right programs rejected.
EDGE_BAR, MUTATION_BAR, SHAPE_BAR = 0.10, 0.005, 0.01


def measured(
    subject: Subject, programs: Sequence[tuple[str, str]], seed: int, backend: SandboxBackend
) -> Iterator[tuple[str, bool, str]]:
    """Grade programs: kind, accepted, evidence."""
    for index, (kind, text) in enumerate(programs):
        # A seed of its own for each, as visits have.
        grader = CallGrader(subject.task, subject.hidden)
        found = grader.grade(text.encode(), backend, FRESH_CALLS, seed * 1000 + index)
        if found.verdict is Verdict.INFRA:
            raise SystemExit(f"{subject.task.id}: {found.evidence}")
        yield kind, found.verdict is Verdict.PASS, found.evidence


def main() -> None:
    wanted, seed = [*map(int, sys.argv[1:]), *(TASKS, 1)[len(sys.argv) - 1 :]]
    backend = sandbox_backend()
    tasks = standard_tasks("heldout", backend, Silent())[:wanted]
    counts: dict[str, dict[str, Counter[bool]]] = defaultdict(lambda: defaultdict(Counter))
    lines: list[str] = []
    started = time.perf_counter()
    for number, task in enumerate(tasks):
        subject = subject_of(task, backend)
        programs: dict[str, Sequence[tuple[str, str]]] = {
            "wrong at an edge only": [*wrong_at_edges(subject, backend, pulled_back=True)],
            "another mutation": [*other_mutations(subject, MUTATIONS, seed, backend)],
            "right in another shape": [*rewritten(subject.hidden.reference, subject.hidden.function)],
        }
        for section, made in programs.items():
            right = section.startswith("right")
            for kind, accepted, evidence in measured(subject, made, seed + number, backend):
                counts[section][kind][accepted == right] += 1
                if accepted != right:
                    lines.append(f"{section}: {kind}: {task.id}: {evidence[:160]}")
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{len(tasks)} tasks", end="", file=sys.stderr)
    seconds = time.perf_counter() - started

    bars = {
        "wrong at an edge only": ("accepted", EDGE_BAR),
        "another mutation": ("accepted", MUTATION_BAR),
        "right in another shape": ("rejected", SHAPE_BAR),
    }
    results: dict[str, object] = {
        "tasks": len(tasks),
        "seed": seed,
        "seconds": round(seconds, 1),
        "misjudged": lines,
    }
    met = True
    print(f"{len(tasks)} held-out tasks, seed {seed}, {seconds:.0f} s")
    for section, (verb, bar) in bars.items():
        rows: dict[str, Share] = {}
        for kind, found in sorted(counts[section].items()):
            rows[kind] = share(found[False], found.total())
        whole = sum(counts[section].values(), Counter[bool]())
        rows["all"] = share(whole[False], whole.total())
        fits = whole.total() > 0 and rows["all"].share <= bar
        met = met and fits
        print(f"\n{section}: {verb} (bar {bar:.1%}: {'met' if fits else 'missed'})")
        for kind, row in rows.items():
            print(f"  {kind:32} {row}")
        results[section] = {kind: asdict(row) for kind, row in rows.items()}
    print("\n" + "\n".join(lines))
    target = ROOT / "runs" / "bench" / "fidelity.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written: {target.relative_to(ROOT)}")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
