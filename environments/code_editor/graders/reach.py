"""Find the edges that a trusted program answers, by calls in a sandbox that no candidate uses."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence

from envkit.environments.code_editor.graders.oracle import Program
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.edges import Edge, Examples, ReachedEdge, edge_call, edges_of
from envkit.errors import SandboxError
from envkit.sandbox import PYTHON_OPTIONS, Limits, SandboxBackend, StopReason, guest_source

#: Lines of Python, and seconds of CPU, that a call at an edge may take. A grade makes dozens of them.
MAX_STEPS, MAX_CPU_S = 8_000, 0.04
#: Longest answer, in characters of JSON.
MAX_ANSWER = 20_000
_LIMITS = Limits(cpu_s=10.0, wall_s=60.0, memory_bytes=512 * 2**20, processes=8, output_bytes=2**20)
#: Examples that an edge is tried from, and further tries with varied arguments.
_BASES, _VARIED = 2, 1


def reached_edges(
    backend: SandboxBackend, program: Program, examples: Examples, kinds: Collection[str] = ()
) -> list[ReachedEdge]:
    """The edges that a program answers within a small part of a grade's limits.

    A pure function of the program and its examples, except for calls into C that take about `MAX_CPU_S`.

    Args:
        backend: makes the sandbox.
        program: the trusted program. Only its module is used.
        examples: example calls, from which calls at edges are made.
        kinds: kinds of edges to try; all if empty.

    Raises:
        SandboxError: the sandbox could not be made, or the machine stalled.
    """
    ladders: dict[tuple[object, ...], list[list[tuple[Edge, int, Call]]]] = {}
    for edge in edges_of(examples):
        if kinds and edge.kind not in kinds:
            continue
        ladders.setdefault(edge.ladder, []).append(_tries(edge, examples))
    if not ladders:
        return []
    ends = iter(
        _ends(backend, program, [[[call for *_, call in rung] for rung in some] for some in ladders.values()])
    )
    found: list[ReachedEdge] = []
    for ladder in ladders.values():
        for rung in ladder:
            seen = [(edge, base, next(ends)) for edge, base, _ in rung]
            bases = dict.fromkeys(base for _, base, end in seen if end == "v")
            if bases and all(end in "vr" for *_, end in seen):
                found.append(ReachedEdge(seen[0][0], tuple(bases)))
    return found


def _tries(edge: Edge, examples: Examples) -> list[tuple[Edge, int, Call]]:
    """Calls at an edge, each with its base."""
    rng = random.Random(repr(("reach", edge)))
    found: list[tuple[Edge, int, Call]] = []
    order = rng.sample(range(len(examples.calls)), len(examples.calls))
    for base in order:
        if len(found) == _BASES:
            break
        if (call := edge_call(edge, base, examples, rng, vary=False)) is not None:
            found.append((edge, base, call))
    bases = [base for _, base, _ in found]
    for _ in range(_VARIED if bases else 0):
        base = rng.choice(bases)
        if (call := edge_call(edge, base, examples, rng, vary=True)) is not None:
            found.append((edge, base, call))
    return found


def _ends(backend: SandboxBackend, program: Program, ladders: Sequence[Sequence[Sequence[Call]]]) -> str:
    """How each call ended, in order; see `envkit.sandbox.programs.trial_worker`."""
    count = sum(len(rung) for ladder in ladders for rung in ladder)
    job = {
        "encoder": guest_source("envkit.sandbox.programs", "worker.py"),
        "reader": guest_source("envkit.sandbox.programs", "child_output.py"),
        "text": program.files[program.module].decode(),
        "function": program.function,
        "modules": program.modules,
        "steps": MAX_STEPS,
        "cpu_s": MAX_CPU_S,
        "memory_bytes": _LIMITS.memory_bytes // 2,
        "answer_chars": MAX_ANSWER,
        "ladders": [[[call.to_plain() for call in rung] for rung in ladder] for ladder in ladders],
    }
    with backend.create() as sandbox:
        argv = [
            sandbox.python,
            *PYTHON_OPTIONS,
            "-c",
            guest_source("envkit.sandbox.programs", "trial_worker.py"),
        ]
        result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=_LIMITS)
    if result.stop is StopReason.WALL:  # a call that waits is killed, so the machine has stalled
        raise SandboxError(f"{program.function} did not answer calls at its edges in {_LIMITS.wall_s:g} s")
    ends = result.stdout.decode(errors="replace").strip()
    # A program that breaks even this loses its edges, not its task: the other calls still grade it.
    return ends if result.ok and len(ends) == count else "c" * count
