"""Search without a model: the first mutation of a broken function that gives what its examples say."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.mining.build import shown_answer
from envkit.environments.code_editor.mining.mutations.mutate import mutations
from envkit.environments.code_editor.mining.mutations.run_variants import VariantBatch, variant_answers
from envkit.runtime.syntax import parse_expression
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Most text of mutants that one sandbox is given, in characters.
_MAX_CHARS = 2**21


@dataclass(frozen=True, slots=True)
class Example:
    """An example that the agent sees: a call, its text, and its expected value as text."""

    call: Call
    text: str
    value: str

    def holds(self, answer: Answer | None) -> bool:
        """True if an answer is the expected one."""
        if answer is None or answer.raises is not None:
            return False
        shown = shown_answer(self.call, answer)
        return shown in (self.value, _as_shown(self.value)) or _are_equal(shown, self.value)


def examples_of(task: Task) -> list[Example]:
    """The examples in a task's prompt whose call can be read; see ``Task.metadata["examples"]``."""
    listed = cast("Sequence[Mapping[str, str]]", task.metadata.get("examples", ()))
    read = ((_call_of(item["call"]), item) for item in listed)
    return [Example(call, item["call"], item["value"]) for call, item in read if call is not None]


def function_called(task: Task) -> str:
    """The function that a task's examples call, ``Class.method`` for a method; empty if there is none."""
    names: set[str] = set()
    for example in examples_of(task):
        node = parse_expression(example.text)
        match node.func if isinstance(node, ast.Call) else None:
            case ast.Name(id=name):
                names.add(name)
            case ast.Attribute(value=ast.Call(func=ast.Name(id=owner)), attr=name):
                names.add(f"{owner}.{name}")
            case _:
                pass
    return names.pop() if len(names) == 1 else ""


def mutants_of(source: str, function: str) -> list[str]:
    """Texts of all single mutations of a function; none if the source is broken or does not define it."""
    try:
        return [one.apply(source) for one in mutations(source, function)]
    except ValueError:
        return []


def fitting_mutants(
    backend: SandboxBackend, searched: Sequence[tuple[str, str, Sequence[Example]]]
) -> list[str | None]:
    """Search for repairs of broken functions: one mutation each, in the order of `mutations`.

    Args:
        backend: makes the sandbox in which the mutants run.
        searched: of each function, the module's text, the function's name and the examples.

    Returns:
        For each, the module's text with the first mutation for which all examples hold; ``None`` if there is
        no such mutation, or no example.

    Raises:
        SandboxError: the machinery failed.
    """
    found: list[str | None] = []
    batches: list[VariantBatch] = []
    size = 0
    for source, function, examples in searched:
        made = mutants_of(source, function) if examples else []
        batches.append(VariantBatch(function, made, [one.call for one in examples], all_calls=True))
        size += sum(map(len, made))
        if size > _MAX_CHARS:
            found += _fitting(backend, batches, searched[len(found) :])
            batches, size = [], 0
    return found + _fitting(backend, batches, searched[len(found) :])


def _fitting(
    backend: SandboxBackend,
    batches: Sequence[VariantBatch],
    searched: Sequence[tuple[str, str, Sequence[Example]]],
) -> list[str | None]:
    """The first fitting mutant of each batch; ``searched`` begins with those of the batches."""
    if not any(batch.variants for batch in batches):
        return [None] * len(batches)
    found: list[str | None] = []
    for batch, rows, (_, _, examples) in zip(
        batches, variant_answers(backend, batches, 1), searched, strict=False
    ):
        fitting = (
            text
            for text, row in zip(batch.variants, rows, strict=True)
            if all(example.holds(answer) for example, answer in zip(examples, row, strict=True))
        )
        found.append(next(fitting, None))
    return found


def _are_equal(one: str, other: str) -> bool:
    """True for literals of equal type and value: dictionaries and sets may be written in any order."""
    try:
        values = ast.literal_eval(parse_expression(one)), ast.literal_eval(parse_expression(other))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return type(values[0]) is type(values[1]) and isinstance(values[0], dict | set) and values[0] == values[1]


def _as_shown(value: str) -> str:
    """A literal as envkit writes it, because published examples have quotes and spaces of their own."""
    try:
        return repr(ast.literal_eval(parse_expression(value)))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return value


def _call_of(source: str) -> Call | None:
    """Read the text of a call; ``None`` if it is not one, or unpacks arguments."""
    try:
        node = parse_expression(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.Call):
        return None
    words = {word.arg: ast.get_source_segment(source, word.value) or "" for word in node.keywords}
    if None in words or any(isinstance(arg, ast.Starred) for arg in node.args):
        return None
    args = tuple(ast.get_source_segment(source, arg) or "" for arg in node.args)
    return Call(args, cast("dict[str, str]", words))
