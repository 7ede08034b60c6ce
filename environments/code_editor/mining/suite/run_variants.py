"""Run a checkout's suite on many variants of its code, in one sandboxed process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from envkit.environments.code_editor.graders.suite import PYTEST_MODULES, is_test_file
from envkit.environments.code_editor.mining.suite.checkout import Checkout
from envkit.errors import SandboxError
from envkit.sandbox import PACKAGES, PYTHON_OPTIONS, Limits, SandboxBackend, guest_source

#: For the whole process; each variant has its own CPU limit.
_LIMITS: Final = Limits(
    cpu_s=3600.0, wall_s=7200.0, memory_bytes=2**30, processes=64, output_bytes=2**28, disk_bytes=2**26
)


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """Result of the suite on one variant.

    Args:
        outcomes: test id -> ``"passed"`` or another word; ``None`` if the suite did not run to its end.
        cpu_s: CPU seconds of the run.
        stderr: end of its error output, for people.
    """

    outcomes: Mapping[str, str] | None
    cpu_s: float
    stderr: str


def importable(backend: SandboxBackend) -> set[str]:
    """Names of the modules that the packages of a backend's sandboxes hold.

    Raises:
        SandboxError: the machinery failed.
    """
    program = (
        f"import json, pkgutil; print(json.dumps([m.name for m in pkgutil.iter_modules([{PACKAGES!r}])]))"
    )
    with backend.create() as sandbox:
        result = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", program])
    if not result.ok:
        raise SandboxError(f"cannot list a sandbox's packages: {result.stderr[-300:]!r}")
    return {*json.loads(result.stdout)}


def run_suite_variants(
    backend: SandboxBackend,
    checkout: Checkout,
    variants: Sequence[Mapping[str, str]],
    *,
    hash_seed: int,
    cpu_s: float,
) -> list[SuiteRun]:
    """Run the suite on each variant, each in its own folder and process.

    Variants are trusted code: the checkout's own and its mutants, never an agent's.

    Args:
        backend: makes a sandbox that holds pytest; see `with_pytest` of the graders' module `suite`.
        checkout: code and suite.
        variants: path -> text of what differs from the checkout.
        hash_seed: Python's hash seed, which decides the order of sets of strings.
        cpu_s: CPU seconds that one run may take, rounded up.

    Raises:
        SandboxError: the machinery failed.
    """
    job = {
        "runner": guest_source("envkit.sandbox.programs", "suite_worker.py"),
        "reader": guest_source("envkit.sandbox.programs", "child_output.py"),
        "packages": PACKAGES,
        "warm": PYTEST_MODULES,
        "hash_seed": str(hash_seed),
        "cpu_s": math.ceil(cpu_s),
        # Below the limit for the whole process, so that a mutant that eats memory does not end the others.
        "memory_bytes": _LIMITS.memory_bytes // 2,
        "files": {**checkout.code, **checkout.tests},
        "tests": [path for path in checkout.tests if is_test_file(path)],
        "variants": [dict(one) for one in variants],
    }
    program = guest_source("envkit.environments.code_editor.mining.suite", "run_variants_worker.py")
    with backend.create() as sandbox:
        argv = [sandbox.python, *PYTHON_OPTIONS, "-c", program]
        result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=_LIMITS)
    lines = result.stdout.splitlines()
    if not result.ok or len(lines) != len(variants):
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise SandboxError(f"mining {checkout.name}: ended by {result.stop}; last line: {last[:200]}")
    return [_ran(json.loads(line)) for line in lines]


def _ran(found: Mapping[str, Any]) -> SuiteRun:
    outcomes = found["outcomes"]
    if isinstance(outcomes, dict):
        outcomes = {str(test): str(word) for test, word in cast("dict[object, object]", outcomes).items()}
    else:
        outcomes = None
    return SuiteRun(outcomes, float(found["cpu_s"]), str(found["stderr"]))
