"""Turn a benchmark's problems into tasks that are graded by calls."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from envkit.env.authored import ImportedTasks
from envkit.env.compare import Leniency, NumericPolicy
from envkit.env.hidden import to_json
from envkit.environments.code_editor.actions import Replace, parse, replace_text_message
from envkit.environments.code_editor.graders.contract import promises_any_order
from envkit.environments.code_editor.hidden import ProblemHidden
from envkit.environments.code_editor.inputs.call import Call
from envkit.environments.code_editor.inputs.doctests import calls_in, docstring_calls, modules_of, name_called
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.runtime import syntax
from envkit.types import JSON, Task

Item = TypeVar("Item")

#: Integers equal floats, as in Python's ``==``, with the rounding that tests commonly allow.
PYTHON = NumericPolicy(rel_tol=1e-6, abs_tol=1e-6, int_as_float=True)
#: Calls drawn at each visit, in addition to the known ones.
FRESH_CALLS = 160
_MAX_SHOWN, _MAX_EXAMPLE_CHARS = 2, 200
_UNIQUE = frozenset({"set", "frozenset"})
_UNORDERED = _UNIQUE | {"sorted", "Counter"}
_FORMS = _UNORDERED | {"list", "tuple"}
# "Return any of them": the answers of two correct programs may differ.
_SEVERAL = re.compile(
    r"\b(?:return|print|output)\b[^.\n]{0,60}\bany (?:of (?:them|the)\b|one of\b"
    r"|(?:valid |such |possible |correct |suitable )?"
    r"(?:answer|solution|result|array|string|list|permutation|ordering|arrangement|sequence)\b)"
    r"|\breturn any\s*[.,\n]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A known call and its expected value as source; ``None`` if the benchmark does not state it."""

    call: Call
    value: str | None = None


@dataclass(frozen=True, slots=True)
class CallProblem:
    """A benchmark problem that is graded by calls of one function.

    Args:
        id: unique within the benchmark.
        prompt: its description; may be empty.
        ask: what to do with the file, such as ``Fix the bug``.
        broken: the file that the agent gets; may have syntax errors.
        reference: a correct version of the file.
        function: the called function; ``Class.method`` for a method.
        examples: known calls.
        source: the statistical cluster; see `envkit.types.Task.source`.
        operator: kind of bug.
        metadata: further public facts.
        numbers: decides if two numbers are equal.
        json: True if answers are compared as JSON, which has no tuples.
        normalizers: types that the benchmark's tests apply to an answer; see `applied_normalizers`.
    """

    id: str
    prompt: str
    ask: str
    broken: str
    reference: str
    function: str
    examples: Sequence[KnownCall]
    source: str
    operator: str
    metadata: Mapping[str, JSON]
    numbers: NumericPolicy = PYTHON
    json: bool = False
    normalizers: frozenset[str] = frozenset()

    def task(self, benchmark: str) -> Task:
        """See `Problem`."""
        return _task(benchmark, self)


class LeftOut(Exception):
    """An item that cannot be graded here. The message is the reason that reports count."""


class Problem(Protocol):
    """An item that a format's reader has parsed."""

    def task(self, benchmark: str) -> Task:
        """Return the item as a task of a benchmark.

        Raises:
            LeftOut: calls and answers cannot grade it.
        """
        ...


class TaskCollector:
    """Collects a benchmark's tasks, and counts the items left out by reason.

    Args:
        benchmark: name of the format, and prefix of every task's id.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._tasks: dict[str, Task] = {}
        self._left_out: Counter[str] = Counter()

    def add(self, problem: Problem) -> Task:
        """Add a problem, and return its task.

        Raises:
            LeftOut: it cannot be graded, or has the id of an earlier one.
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


def collect(benchmark: str, items: Iterable[Item], to_problem: Callable[[Item], Problem]) -> ImportedTasks:
    """Turn items into tasks, one problem each, for a benchmark without recorded outputs."""
    found = TaskCollector(benchmark)
    for item in items:
        try:
            found.add(to_problem(item))
        except LeftOut as reason:
            found.leave_out(reason)
    return found.imported()


def _task(benchmark: str, problem: CallProblem) -> Task:
    if _SEVERAL.search(problem.prompt):
        raise LeftOut("with several right answers")
    calls = [example.call for example in problem.examples]
    if not calls:
        raise LeftOut("without a call whose arguments are literals")
    if problem.broken == problem.reference:
        raise LeftOut("without a difference between wrong and right")
    parameters = parameters_of(problem.reference, problem.function)
    leniency = Leniency(
        any_order=int(promises_any_order(problem.prompt) or not _UNORDERED.isdisjoint(problem.normalizers)),
        repeats=_UNIQUE.isdisjoint(problem.normalizers),
        sequences=problem.json or bool(problem.normalizers),
        mappings=True,
        arguments=False,  # a judge that compares return values ignores the arguments
    )
    return Task(
        id=f"{benchmark}/{problem.id}",
        split="heldout",
        prompt=problem.prompt.strip(),
        files={SOLUTION: problem.broken},
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
        hidden=to_json(
            ProblemHidden(
                reference=problem.reference,
                function=problem.function,
                parameters=tuple(parameters),
                modules=modules_of(calls),
                examples=tuple(calls),
                killers=tuple(calls),
                fresh=FRESH_CALLS,
                policy=problem.numbers,
                leniency=leniency,
            )
        ),
    )


def _shown(problem: CallProblem) -> list[JSON]:
    """Return a few examples for the agent; long ones only if there is no short one."""
    known = [
        {"call": example.call.source(problem.function), "value": example.value}
        for example in problem.examples
        if example.value is not None
    ]
    short = [item for item in known if len(f"{item['call']}{item['value']}") <= _MAX_EXAMPLE_CHARS]
    return [*(short or known[:1])[:_MAX_SHOWN]]


def parameters_of(source: str, function: str) -> list[str]:
    """Return the names of a function's positional parameters, without ``self`` for a method.

    Raises:
        LeftOut: the source is not Python, or does not define the function.
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


def edit_message(old: str, new: str) -> str:
    """Return the message that replaces ``old`` by ``new``, both whole lines of a file."""
    message = replace_text_message(old, new)
    wanted = Replace(tuple(old.rstrip("\n").split("\n")), tuple(new.rstrip("\n").split("\n")))
    return message if parse(message) == [wanted] else f"```python\n{new}\n```"


def known_calls(statements: Sequence[ast.stmt], function: str) -> list[KnownCall]:
    """Return a function's calls with literal arguments in test code, with their expected values."""
    values = dict(_compared(statements))
    return [KnownCall(call, values.get(call.source(function))) for call in calls_in(statements, function)]


def applied_normalizers(statements: Sequence[ast.stmt], function: str) -> frozenset[str]:
    r"""Return the types that test code applies to every answer of a function, such as ``set``.

    Empty if it compares some answer directly.

    >>> tests = "assert set(f(1)) == {1}\nassert sorted(f(2)) == [1, 2]"
    >>> sorted(applied_normalizers(ast.parse(tests).body, "f"))
    ['set', 'sorted']
    """
    nodes = [node for statement in statements for node in ast.walk(statement)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    asked = {call for call in calls if name_called(call) == function}
    made = [name_called(call) for call in calls if len(call.args) == 1 and call.args[0] in asked]
    return frozenset(made) if len(made) == len(asked) and _FORMS.issuperset(made) else frozenset()


def _compared(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield both sides of every ``==`` and ``assertEqual``, as source."""
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            yield ast.unparse(node.left), ast.unparse(node.comparators[0])
        match node:
            case ast.Call(func=ast.Attribute(attr="assertEqual"), args=[given, wanted, *_]):
                yield ast.unparse(given), ast.unparse(wanted)
            case _:
                pass


def with_docstring_calls(known: Sequence[KnownCall], docstring: str, function: str) -> list[KnownCall]:
    """Return the known calls, and those of a docstring that are not among them."""
    sources = {example.call.source("") for example in known}
    more = [call for call in docstring_calls(docstring, function) if call.source("") not in sources]
    return [*known, *map(KnownCall, more)]


def statements(source: str) -> Sequence[ast.stmt]:
    """Parse code into statements.

    Raises:
        LeftOut: it is not Python.
    """
    try:
        return syntax.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LeftOut("with a file that is not Python") from None


def without_body(source: str, function: str) -> str:
    r"""Return the imports, and the function with its docstring but without its body.

    >>> print(without_body("import re\ndef f(a):\n    return a\n", "f"))
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
