"""Running a checkout's suite on many variants of its code, in one sandboxed process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, cast

from envkit.errors import SandboxError
from envkit.grading import PYTEST, pytest_modules
from envkit.mining.suite.checkout import Checkout, is_test
from envkit.sandbox import PACKAGES, PYTHON_OPTIONS, Limits, SandboxBackend

#: For one process; each variant has a CPU limit of its own.
_LIMITS: Final = Limits(
    cpu_s=3600.0, wall_s=7200.0, memory_bytes=2**30, processes=64, output_bytes=2**28, disk_bytes=2**26
)


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """What a suite said of one variant.

    Args:
        outcomes: test id -> ``"passed"`` or another word; ``None`` where it did not run to its end.
        cpu_s: CPU seconds of the run.
        said: the end of what it wrote beside, for people.
    """

    outcomes: Mapping[str, str] | None
    cpu_s: float
    said: str


def with_pytest(backend: SandboxBackend, packages: Sequence[str] = ()) -> SandboxBackend:
    """A backend like another, whose sandboxes hold pytest and some packages as well.

    Args:
        backend: the other; it comes back as it is where it holds them.
        packages: further distributions, pure Python.

    Raises:
        ConfigError: sandboxes of this kind hold no packages.
    """
    wanted = (*PYTEST, *packages)
    if {*wanted} <= {*backend.packages}:
        return backend
    return backend.with_packages(wanted, pytest_modules())


def run_suite_variants(
    backend: SandboxBackend,
    checkout: Checkout,
    variants: Sequence[Mapping[str, str]],
    *,
    hash_seed: int,
    cpu_s: float,
) -> list[SuiteRun]:
    """Run the suite on each variant, each in a folder and process of its own.

    The variants are trusted: the checkout's own code and its mutants, never an agent's.

    Args:
        backend: makes a sandbox that holds pytest; see `with_pytest`.
        checkout: code and suite.
        variants: path -> text of what differs from the checkout.
        hash_seed: Python's hash seed, which decides the order of sets of strings.
        cpu_s: CPU seconds that one run may take, rounded up.

    Raises:
        SandboxError: the machinery failed.
    """
    job = {
        "runner": _source("envkit.grading", "suite_worker.py"),
        "reader": _source("envkit.mining", "run_variants_worker.py"),
        "packages": PACKAGES,
        "warm": pytest_modules(),
        "hash_seed": str(hash_seed),
        "cpu_s": math.ceil(cpu_s),
        # Less than all may take together: else one mutant that eats memory would end the whole batch.
        "memory_bytes": _LIMITS.memory_bytes // 2,
        "files": {**checkout.code, **checkout.tests},
        "tests": [path for path in checkout.tests if is_test(path)],
        "variants": [dict(one) for one in variants],
    }
    program = _source("envkit.mining.suite", "run_variants_worker.py")
    with backend.create() as sandbox:
        argv = [sandbox.python, *PYTHON_OPTIONS, "-c", program]
        result = sandbox.run(argv, stdin=json.dumps(job).encode(), limits=_LIMITS)
    lines = result.stdout.splitlines()
    if not result.ok or len(lines) != len(variants):
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise SandboxError(f"mining {checkout.name}: the batch ended by {result.stop} and said {last[:200]}")
    return [_ran(json.loads(line)) for line in lines]


def _ran(found: Mapping[str, Any]) -> SuiteRun:
    outcomes = found["outcomes"]
    if isinstance(outcomes, dict):
        outcomes = {str(test): str(word) for test, word in cast("dict[object, object]", outcomes).items()}
    else:
        outcomes = None
    return SuiteRun(outcomes, float(found["cpu_s"]), str(found["said"]))


def _source(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text()
