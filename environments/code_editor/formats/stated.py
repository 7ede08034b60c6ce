"""Stated problems as tasks: a file, its right form, what it is asked, and calls that are known."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from envkit import syntax
from envkit.env import ImportedTasks
from envkit.environments.code_editor.actions import Replace, parse, whole_text
from envkit.grading import Leniency, NumericPolicy
from envkit.inputs.call import Call
from envkit.inputs.doctests import calls_in, docstring_calls, modules_of
from envkit.mining.build import SOLUTION
from envkit.types import JSON, Task

Item = TypeVar("Item")

#: Integers and floats as Python's ``==`` has them, and the rounding that tests commonly allow.
PYTHON = NumericPolicy(rel_tol=1e-6, abs_tol=1e-6, int_as_float=True)
#: Calls drawn anew at each visit, beside the known ones.
FRESH_CALLS = 160
_MAX_SHOWN, _MAX_EXAMPLE = 3, 200
_UNIQUE = frozenset({"set", "frozenset"})
_UNORDERED = _UNIQUE | {"sorted", "Counter"}
_FORMS = _UNORDERED | {"list", "tuple"}
_ANY_ORDER = re.compile(
    r"\bin any order\b|\bany order\b|\border (?:of|does|do)[^.]*not matter", re.IGNORECASE
)
# "Return any of them": what one program answers says little of another's.
_SEVERAL = re.compile(
    r"\b(?:return|print|output)\b[^.\n]{0,60}\bany (?:of (?:them|the)\b|one of\b"
    r"|(?:valid |such |possible |correct |suitable )?"
    r"(?:answer|solution|result|array|string|list|permutation|ordering|arrangement|sequence)\b)"
    r"|\breturn any\s*[.,\n]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Example:
    """A call that is known, with what it should give as source; ``None`` where that is not said."""

    call: Call
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Stated:
    """A problem that a benchmark states.

    Args:
        id: unique within the benchmark.
        said: what it says in words; may be empty.
        ask: what is to be done with the file, such as ``Fix the bug``.
        wrong: the file as the agent meets it; need not be Python.
        right: a right form of it.
        function: what is called; ``Class.method`` for a method.
        examples: known calls.
        source: the statistical cluster.
        operator: kind of bug.
        metadata: further public facts.
        numbers: when two numbers are equal.
        json: whether answers are compared as JSON, which has no tuples.
        forms: what the benchmark's tests make of each answer before they compare it; see `forms`.
    """

    id: str
    said: str
    ask: str
    wrong: str
    right: str
    function: str
    examples: Sequence[Example]
    source: str
    operator: str
    metadata: Mapping[str, JSON]
    numbers: NumericPolicy = PYTHON
    json: bool = False
    forms: frozenset[str] = frozenset()

    def task(self, benchmark: str) -> Task:
        """See `Problem`."""
        return _task(benchmark, self)


class LeftOut(Exception):
    """An item that calls and answers cannot grade; the message says why, the same for all alike."""


class Problem(Protocol):
    """What a reader makes of an item."""

    def task(self, benchmark: str) -> Task:
        """The item as a task of a benchmark.

        Raises:
            LeftOut: calls and answers cannot grade it.
        """
        ...


class Collection:
    """What becomes of a benchmark's items, one after the other.

    Args:
        benchmark: name of the format; it opens every task's id.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._tasks: dict[str, Task] = {}
        self._left_out: Counter[str] = Counter()

    def add(self, problem: Problem) -> Task:
        """Make a task of it.

        Raises:
            LeftOut: it cannot be graded, or is there already.
        """
        task = problem.task(self._benchmark)
        if task.id in self._tasks:
            raise LeftOut("with an id that an earlier one has")
        self._tasks[task.id] = task
        return task

    def leave_out(self, reason: LeftOut) -> None:
        self._left_out[str(reason)] += 1

    def imported(self, recorded: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None) -> ImportedTasks:
        return ImportedTasks(tuple(self._tasks.values()), recorded or {}, dict(self._left_out))


def collected(benchmark: str, items: Iterable[Item], problem_of: Callable[[Item], Problem]) -> ImportedTasks:
    """What becomes of a benchmark's items, where each is one problem and nothing was recorded."""
    found = Collection(benchmark)
    for item in items:
        try:
            found.add(problem_of(item))
        except LeftOut as reason:
            found.leave_out(reason)
    return found.imported()


def _task(benchmark: str, problem: Stated) -> Task:
    if _SEVERAL.search(problem.said):
        raise LeftOut("with several right answers")
    calls = [example.call for example in problem.examples]
    if not calls:
        raise LeftOut("without a call whose arguments are literals")
    if problem.wrong == problem.right:
        raise LeftOut("without a difference between wrong and right")
    parameters = parameters_of(problem.right, problem.function)
    leniency = Leniency(
        any_order=1 if _ANY_ORDER.search(problem.said) or not _UNORDERED.isdisjoint(problem.forms) else 0,
        repeats=_UNIQUE.isdisjoint(problem.forms),
        sequences=problem.json or bool(problem.forms),
        mappings=True,
        arguments=False,  # a judge that compares what a call gives never looks at them
    )
    return Task(
        id=f"{benchmark}/{problem.id}",
        split="heldout",
        prompt=problem.said.strip(),
        files={SOLUTION: problem.wrong},
        metadata={
            "benchmark": benchmark,
            "evaluation_only": True,
            "function": problem.function,
            "operator": problem.operator,
            "source": f"{benchmark}:{problem.source}",
            "ask": problem.ask,
            "examples": _shown(problem),
            **problem.metadata,
        },
        hidden={
            "reference": problem.right,
            "function": problem.function,
            "parameters": parameters,
            "modules": list(modules_of(calls)),
            "examples": [call.to_plain() for call in calls],
            "killers": [call.to_plain() for call in calls],
            "fresh": FRESH_CALLS,
            "policy": asdict(problem.numbers),
            "leniency": asdict(leniency),
        },
    )


def _shown(problem: Stated) -> list[JSON]:
    """A few examples, short ones first."""
    known = [
        {"call": example.call.source(problem.function), "value": example.value}
        for example in problem.examples
        if example.value is not None
    ]
    lengths = [len(f"{one['call']}{one['value']}") for one in known]
    fit = [one for one, length in zip(known, lengths, strict=True) if length <= _MAX_EXAMPLE]
    return [*(fit or known[:1])[:_MAX_SHOWN]]


def parameters_of(source: str, function: str) -> list[str]:
    """The names of a function's positional parameters; those of a method without the first.

    Raises:
        LeftOut: the source is not Python, or does not define it.
    """
    body = statements(source)
    owner, _, method = function.partition(".")
    if method:
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == owner]
        body = classes[-1].body if classes else []
    wanted = method or function
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == wanted]
    if not found:
        raise LeftOut("whose right form does not define what is asked")
    args = found[-1].args
    return [arg.arg for arg in [*args.posonlyargs, *args.args]][1 if method else 0 :]


def said_so(old: str, new: str) -> str:
    """The one message that puts ``new`` in the place of ``old``, whole lines of a file."""
    message = whole_text(old, new)
    wanted = Replace(tuple(old.rstrip("\n").split("\n")), tuple(new.rstrip("\n").split("\n")))
    return message if parse(message) == [wanted] else f"```python\n{new}\n```"


def asserted(statements: Sequence[ast.stmt], function: str) -> list[Example]:
    """The calls of a function in test code whose arguments are literals, with what they should give."""
    values = dict(_compared(statements))
    return [Example(call, values.get(call.source(function))) for call in calls_in(statements, function)]


def forms(statements: Sequence[ast.stmt], function: str) -> frozenset[str]:
    r"""What test code makes of a function's answers, such as ``set``; empty where it takes one as it is.

    >>> sorted(forms(ast.parse("assert set(f(1)) == {1}\nassert sorted(f(2)) == [1, 2]").body, "f"))
    ['set', 'sorted']
    """
    nodes = [node for statement in statements for node in ast.walk(statement)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    asked = {call for call in calls if _called(call) == function}
    made = [_called(call) for call in calls if len(call.args) == 1 and call.args[0] in asked]
    return frozenset(made) if len(made) == len(asked) and _FORMS.issuperset(made) else frozenset()


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _compared(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Both sides of every ``==``, and both first arguments of every ``assertEqual``, as source."""
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            yield ast.unparse(node.left), ast.unparse(node.comparators[0])
        match node:
            case ast.Call(func=ast.Attribute(attr="assertEqual"), args=[given, wanted, *_]):
                yield ast.unparse(given), ast.unparse(wanted)
            case _:
                pass


def with_docstring_calls(known: Sequence[Example], docstring: str, function: str) -> list[Example]:
    """The known calls, and those in a docstring that are not among them."""
    sources = {example.call.source("") for example in known}
    more = [call for call in docstring_calls(docstring, function) if call.source("") not in sources]
    return [*known, *map(Example, more)]


def statements(source: str) -> Sequence[ast.stmt]:
    """What code consists of.

    Raises:
        LeftOut: it is not Python.
    """
    try:
        return syntax.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LeftOut("with a file that is not Python") from None


def unwritten(source: str, function: str) -> str:
    r"""Code with the imports, and the function without its body; a docstring stays.

    >>> print(unwritten("import re\ndef f(a):\n    return a\n", "f"))
    import re
    <BLANKLINE>
    def f(a):
        raise NotImplementedError
    <BLANKLINE>
    """
    body = statements(source)
    kept = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    [wanted] = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function][-1:]
    docstring = wanted.body[:1] if ast.get_docstring(wanted) is not None else []
    wanted.body = [*docstring, *ast.parse("raise NotImplementedError").body]
    head = "\n".join(kept)
    return f"{head}\n\n{ast.unparse(wanted)}\n" if head else f"{ast.unparse(wanted)}\n"
