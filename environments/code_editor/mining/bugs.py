"""Bugs: one mutation of a function, several at once, or its body removed."""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envkit.environments.code_editor.mining.mutations.mutate import Mutation, is_python, possible_mutations
from envkit.environments.code_editor.mining.mutations.slips import NAME, SYNTAX, slips
from envkit.runtime.syntax import parse

#: Operator of a task whose function must be written.
WRITE = "write"
#: Joins the names of mutations that are made together.
_JOINER = "+"
_UNWRITTEN = "raise NotImplementedError"


@dataclass(frozen=True, slots=True)
class Bug:
    """A change of a module that a task asks to undo.

    Args:
        id: stable name within its function: operators and digests of location and text.
        operator: one of `OPERATORS` of mutations, a slip's, ``"2 bugs"``, ``"3 bugs"`` or `WRITE`.
        text: the module with the bug.
        start_byte: offset of the first change in the UTF-8 original.
        end_byte: end of the last changed part of the original, exclusive.
        line: 1-based line of the first change.
    """

    id: str
    operator: str
    text: str
    start_byte: int
    end_byte: int
    line: int


def bug_of(made: Sequence[Mutation], source: str) -> Bug:
    """Make mutations of one source together; they must not overlap."""
    ordered = sorted(made, key=lambda one: one.start_byte)
    text = source
    for mutation in reversed(ordered):  # from the end, so that earlier offsets stay right
        text = mutation.apply(text)
    first = ordered[0]
    operator = first.operator if len(ordered) == 1 else f"{len(ordered)} bugs"
    name = _JOINER.join(map(mutation_id, ordered))
    return Bug(name, operator, text, first.start_byte, max(one.end_byte for one in ordered), first.line)


def several_bugs(made: Sequence[Mutation], source: str, count: int, seed: str) -> list[Bug]:
    """Combine mutations: two and three at a time, in turn, each on a line of its own.

    Args:
        made: mutations of ``source``.
        source: the module.
        count: most bugs to return; they differ in text.
        seed: decides the choice.
    """
    rng = random.Random(seed)
    found: dict[str, Bug] = {}
    for attempt in range(8 * count):
        size = 2 + attempt % 2
        if len(made) < size or len(found) == count:
            break
        chosen = rng.sample(list(made), size)
        if len({one.line for one in chosen}) == size and _are_apart(chosen):
            bug = bug_of(chosen, source)
            if bug.text != source and is_python(bug.text):
                found.setdefault(bug.text, bug)
    return list(found.values())


def slipped_bugs(
    slips: Sequence[Mutation], others: Sequence[Mutation], source: str, count: int, seed: str
) -> list[Bug]:
    """Make slips, in turn alone, beside one other mutation, and beside one and another slip.

    Args:
        slips: of ``source``; syntax errors and unknown names take turns.
        others: mutations of ``source``.
        source: the module.
        count: most bugs to return; they differ in text.
        seed: decides the choice.
    """
    rng = random.Random(seed)
    kinds = [[one for one in slips if one.operator == kind] for kind in (SYNTAX, NAME)]
    shuffled = [rng.sample(some, len(some)) for some in rng.sample(kinds, len(kinds))]
    found: dict[str, Bug] = {}
    for slip in itertools.chain.from_iterable(itertools.zip_longest(*shuffled)):
        if len(found) == count:
            break
        if slip is None:
            continue
        chosen = [slip]
        for pool in (others, slips)[: len(found) % 3]:
            apart = [one for one in pool if all(one.line != made.line for made in chosen)]
            chosen += rng.sample(apart, min(1, len(apart)))
        if _are_apart(chosen):
            bug = bug_of(chosen, source)
            found.setdefault(bug.text, bug)
    return list(found.values())


def unwritten(source: str, function: str) -> Bug | None:
    """Replace a module-level function's body, but for its docstring, by a line that raises.

    Returns:
        ``None`` if its body is on the ``def`` line.

    Raises:
        ValueError: ``source`` has no such function.
    """
    node = next(
        (one for one in parse(source).body if isinstance(one, ast.FunctionDef) and one.name == function), None
    )
    if node is None:
        raise ValueError(f"no module-level function {function!r} in the source")
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    first, last = body[0], body[-1]
    if first.lineno == node.lineno or last.end_lineno is None or last.end_col_offset is None:
        return None
    lines = source.encode().splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    decorators: list[ast.expr] = getattr(first, "decorator_list", [])
    top = min(one.lineno for one in (first, *decorators))
    start, end = starts[top - 1] + first.col_offset, starts[last.end_lineno - 1] + last.end_col_offset
    raw = source.encode()
    text = (raw[:start] + _UNWRITTEN.encode() + raw[end:]).decode()
    return Bug(f"{WRITE}-{_digest(function)}", WRITE, text, start, end, top)


def bugs_by_id(source: str, function: str, names: Iterable[str]) -> dict[str, Bug]:
    """Make the bugs of these names again; names of bugs that cannot be made are left out."""
    names = list(names)
    known = {mutation_id(one): one for one in possible_mutations(source, function)}
    if any(part.startswith((f"{SYNTAX}-", f"{NAME}-")) for name in names for part in name.split(_JOINER)):
        known |= {mutation_id(one): one for one in slips(source, function)}
    whole = unwritten(source, function)
    found: dict[str, Bug] = {}
    for name in names:
        parts = name.split(_JOINER)
        if whole is not None and name == whole.id:
            found[name] = whole
        elif all(part in known for part in parts):
            found[name] = bug_of([known[part] for part in parts], source)
    return found


def mutation_id(mutation: Mutation) -> str:
    """Stable name of a mutation within its function: operator and digest of its location and text."""
    site = f"{mutation.start_byte}:{mutation.end_byte}:{mutation.replacement}"
    return f"{mutation.operator}-{_digest(site)}"


def _are_apart(made: Iterable[Mutation]) -> bool:
    """True if no two mutations change the same bytes."""
    ordered = sorted(made, key=lambda one: one.start_byte)
    return all(one.end_byte <= other.start_byte for one, other in itertools.pairwise(ordered))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
