"""Build a task from a function, a mutation and the original's answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from envkit.env.compare import STRICT, opaque, show
from envkit.env.hidden import to_json
from envkit.environments.code_editor.graders.oracle import Answer
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.doctests import modules_of
from envkit.environments.code_editor.inputs.perturb import perturbed_calls
from envkit.environments.code_editor.mining.bugs import WRITE, Bug
from envkit.environments.code_editor.mining.docstrings import description
from envkit.environments.code_editor.mining.hidden import Edit, RepairHidden, RepairSite
from envkit.environments.code_editor.mining.package_functions import PackageFunction
from envkit.types import JSON, Task

#: Path of the module in a task's workspace.
SOLUTION = "solution.py"
#: Calls generated per function, besides its examples.
GENERATED = 24
_MAX_KNOWN = 12
#: Most killing calls that a task stores.
MAX_KILLERS = 4
#: Examples in a prompt. More help little with a repair and make every prompt longer; a function that must be
#: written is known by them alone.
_SHOWN, _SHOWN_OF_WRITE = 2, 3
#: Longest call and value together, in characters; longer parts are cut to `_MAX_SOURCE`.
_MAX_EXAMPLE, _MAX_SOURCE = 180, 400


def known_calls(package_function: PackageFunction) -> list[Call]:
    """The examples, then calls of the shipped tests, a limited number of each."""
    return [*package_function.examples[:_MAX_KNOWN], *package_function.tests[:_MAX_KNOWN]]


def calls_of(package_function: PackageFunction, seed: int) -> list[Call]:
    """The calls that mining makes: known calls first, then generated ones."""
    known = known_calls(package_function)
    return known + perturbed_calls(known, (seed, int(_digest(package_function.source), 16)), GENERATED)


def build_task(
    package_function: PackageFunction,
    split: str,
    bug: Bug,
    killers: Sequence[int],
    calls: Sequence[Call],
    original: Sequence[Answer | None],
) -> Task:
    """Make the task to repair a function, or to write it.

    Args:
        package_function: the function.
        split: ``"train"``, ``"heldout"`` or ``"test"``.
        bug: what was changed.
        killers: indices of the calls that the changed function and the original answer differently.
        calls: the result of `calls_of`.
        original: the original's answers to at least the examples.
    """
    reference = package_function.slice.text
    writes = bug.operator == WRITE
    # Calls start with the public examples and end with generated ones; store some of both.
    pinned = sorted({*killers[: MAX_KILLERS // 2], *killers[-MAX_KILLERS // 2 :]})
    known = len(package_function.examples[:_MAX_KNOWN])
    module, _, function = package_function.qualname.rpartition(".")
    return Task(
        id=f"{package_function.package}/{package_function.qualname}/{bug.id}",
        split=split,
        prompt=description(package_function.slice.docstring) if writes else "",
        files={SOLUTION: bug.text},
        metadata={
            "package": package_function.package,
            "version": package_function.version,
            "module": module,
            "function": function,
            "qualname": package_function.qualname,
            "operator": bug.operator,
            "source": package_function.source,
            "examples": _shown(
                function, calls[:known], original, pinned, _SHOWN_OF_WRITE if writes else _SHOWN
            ),
            **({"ask": "Write the function"} if writes else {}),
        },
        hidden=to_json(
            RepairHidden(
                reference=reference,
                function=function,
                modules=modules_of([*package_function.examples, *package_function.tests]),
                examples=(*package_function.examples, *package_function.tests),
                killers=tuple(calls[index] for index in pinned),
                policy=STRICT,
                edit=edit_between(bug.text, reference),
                site=RepairSite(
                    (bug.start_byte, bug.end_byte), bug.line, tuple(pinned), package_function.fitting
                ),
            )
        ),
    )


def _shown(
    function: str,
    examples: Sequence[Call],
    original: Sequence[Answer | None],
    killers: Sequence[int],
    count: int,
) -> list[JSON]:
    """A few short examples with the original's answers; those that the bug changes come first."""
    fit: list[tuple[bool, bool, int, JSON]] = []
    for index, (call, answer) in enumerate(zip(examples, original, strict=False)):
        if answer is None or answer.raises or opaque(answer.value):
            continue
        source, value = call.source(function), shown_answer(call, answer)
        long = len(source) + len(value) > _MAX_EXAMPLE
        fit.append((long, index not in killers, index, {"call": source, "value": value}))
    # A long example is better than none.
    short = [one for one in fit if not one[0]] or sorted(fit, key=lambda one: len(str(one[3])))[:1]
    return [one[3] for one in sorted(short, key=lambda one: one[:3])[:count]]


def shown_answer(call: Call, answer: Answer) -> str:
    """The value as source, or the changed argument if the call returns ``None``.

    >>> shown_answer(Call(("[2, 1]",), {"also": "[3]"}), Answer(None, [[1, 2], [3]]))
    'None, and the argument becomes [1, 2]'
    """
    after = answer.after if isinstance(answer.after, Sequence) else ()
    given = (*call.args, *call.kwargs.values())
    changed = [text for item in after if (text := show(item, _MAX_SOURCE)) not in given]
    if answer.value is None and changed:
        return f"None, and the argument becomes {', '.join(changed)}"
    return show(answer.value, _MAX_SOURCE)


def edit_between(mutant: str, reference: str) -> Edit:
    r"""The smallest whole-line edit that turns mutant into reference and whose search text is unique.

    >>> edit_between("a\nb\nc\n", "a\nx\nc\n")
    Edit(search='b', replace='x')
    """
    old, new = mutant.split("\n"), reference.split("\n")
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    tail = 0
    while tail < min(len(old), len(new)) - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    before, after = start, tail
    while True:
        search = "\n".join(old[before : len(old) - after])
        if search.strip() and mutant.count(search) == 1:
            return Edit(search, "\n".join(new[before : len(new) - after]))
        # Context above first, then below, alternately.
        if before and start - before <= tail - after:
            before -= 1
        elif after:
            after -= 1
        else:
            before -= 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
