"""What the miners must know of a programming language: a grammar and a runner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from envkit.grading import Answer
from envkit.mining.batch import Batch
from envkit.mining.checkout import Checkout
from envkit.mining.functions import Function
from envkit.mining.mutations import Mutation
from envkit.mining.subjects import Subject
from envkit.mining.suite_batch import Ran
from envkit.sandbox import SandboxBackend


class Grammar(Protocol):
    """What there is to mutate, and how. Nothing of it runs what it reads."""

    def subjects(self, package: str, max_chars: int) -> Iterable[Subject]:
        """Functions of an installed package that stand alone, with calls that are known for them.

        Raises:
            UsageError: the package is not installed.
        """
        ...

    def checkout(self, root: Path) -> Checkout:
        """The code and the suite of a folder.

        Raises:
            UsageError: it holds none.
        """
        ...

    def functions(self, source: str) -> list[Function]:
        """Functions and methods of a module's text; none of text that cannot be read."""
        ...

    def mutations(self, source: str, function: str) -> list[Mutation]:
        """All single-site mutations of one of them."""
        ...


class Runner(Protocol):
    """How originals and variants are made to show what they do, each in a sandbox."""

    def answers(
        self, backend: SandboxBackend, batches: Sequence[Batch], hash_seed: int
    ) -> list[list[list[Answer | None]]]:
        """What each variant of each batch says to each call; see `envkit.mining.batch.batch_answers`."""
        ...

    def fitted(self, backend: SandboxBackend, checkout: Checkout, packages: Sequence[str]) -> SandboxBackend:
        """A backend whose sandboxes hold what the suite imports.

        Raises:
            UsageError: one of them cannot be had; the message says which, and what to do.
        """
        ...

    def runs(
        self,
        backend: SandboxBackend,
        checkout: Checkout,
        variants: Sequence[Mapping[str, str]],
        *,
        hash_seed: int,
        cpu_s: float,
    ) -> list[Ran]:
        """What the suite says of each variant; see `envkit.mining.suite_batch.suite_runs`."""
        ...


@dataclass(frozen=True, slots=True)
class Language:
    """A programming language to mine.

    Args:
        name: as tasks of a checkout say it.
        grammar: what there is to mutate.
        runner: what tells a mutant from its original.
    """

    name: str
    grammar: Grammar
    runner: Runner
