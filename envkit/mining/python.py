"""Python, as the miners know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, final

from envkit.grading import Answer
from envkit.mining.batch import Batch, batch_answers
from envkit.mining.checkout import Checkout, read_checkout, require_imports
from envkit.mining.functions import Function, functions
from envkit.mining.language import Grammar, Language, Runner
from envkit.mining.mutations import Mutation, mutations
from envkit.mining.subjects import Subject, subjects
from envkit.mining.suite_batch import Ran, suite_runs, with_pytest
from envkit.sandbox import SandboxBackend


@final
class PythonGrammar(Grammar):
    """Python's own parser finds functions, tree-sitter's the places to change."""

    def subjects(self, package: str, max_chars: int) -> Iterable[Subject]:
        return subjects(package, max_chars)

    def checkout(self, root: Path) -> Checkout:
        return read_checkout(root)

    def functions(self, source: str) -> list[Function]:
        try:
            return functions(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []

    def mutations(self, source: str, function: str) -> list[Mutation]:
        return mutations(source, function)


@final
class PythonRunner(Runner):
    """Functions answer calls; checkouts run pytest."""

    def answers(
        self, backend: SandboxBackend, batches: Sequence[Batch], hash_seed: int
    ) -> list[list[list[Answer | None]]]:
        return batch_answers(backend, batches, hash_seed)

    def fitted(self, backend: SandboxBackend, checkout: Checkout, packages: Sequence[str]) -> SandboxBackend:
        require_imports(checkout, packages)
        return with_pytest(backend, packages)

    def runs(
        self,
        backend: SandboxBackend,
        checkout: Checkout,
        variants: Sequence[Mapping[str, str]],
        *,
        hash_seed: int,
        cpu_s: float,
    ) -> list[Ran]:
        return suite_runs(backend, checkout, variants, hash_seed=hash_seed, cpu_s=cpu_s)


PYTHON: Final = Language("python", PythonGrammar(), PythonRunner())
