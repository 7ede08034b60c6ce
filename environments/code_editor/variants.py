"""Solutions of a mined task that are known to be right or wrong, to measure wrong verdicts.

**Wrong at an edge only.** A wrapper answers as the original, except if an argument is at an edge, such as a
list of more than 20 items. There it spoils the answer, or computes it from an argument that is pulled back
from the edge, such as the first 20 items. A program counts only if it gives the original's answers to all
stored calls, and another answer to one of this file's own edge inputs, which the original answers.

**Another mutation.** A mutation of the original by the miner's operators, other than the task's bug. It
counts if it gives another answer to one of 300 inputs, drawn with a seed of their own, or to an edge input.

**Right in another shape.** The original, rewritten without a change of meaning: renamed variables, swapped
branches, turned comparisons, a generator for a list, a helper function. All count.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast, final

from envkit.env.authored import Variant
from envkit.env.hidden import read_hidden
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.graders.oracle import (
    GRADING_LIMITS,
    Answer,
    Program,
    answerable,
    answers,
    same,
)
from envkit.environments.code_editor.hidden import solution_of
from envkit.environments.code_editor.inputs.call import Call, exact_type, literal
from envkit.environments.code_editor.inputs.edges import Signature, places_of, signature_of
from envkit.environments.code_editor.inputs.perturb import literals_in, perturbed_calls
from envkit.environments.code_editor.mining.build import SOLUTION
from envkit.environments.code_editor.mining.hidden import RepairHidden
from envkit.environments.code_editor.mining.mutations.mutate import mutations, spread
from envkit.sandbox import SandboxBackend
from envkit.types import Task

#: Mutations of a task in an audit.
MUTATIONS: Final = 4
#: Inputs drawn to tell a mutation from the original.
SAMPLE: Final = 300
_LIMITS = replace(GRADING_LIMITS, cpu_s=0.5)

#: Condition -> source of a test of one value, and if it looks inside lists and other collections.
CONDITIONS: Final = {
    "empty": ("sized(x) and len(x) == 0", False),
    "length 1": ("sized(x) and len(x) == 1", False),
    "two equal": ("type(x) in (str, list, tuple) and len(x) == 2 and x[0] == x[1]", False),
    "longer than 20": ("sized(x) and len(x) > 20", False),
    "longer than 50": ("sized(x) and len(x) > 50", False),
    "zero": ("type(x) in (int, float) and x == 0", True),
    "negative": ("type(x) in (int, float) and x < 0", True),
    "integer > 100": ("type(x) is int and x > 100", True),
    "integer > 2**31": ("type(x) is int and x > 2**31", True),
    "integer > 2**64": ("type(x) is int and x > 2**64", True),
    "non-ASCII": ("type(x) is str and not x.isascii()", True),
    "tuple for list": ("type(x) is tuple", False),
    "deeper nesting": ("type(x) in (list, tuple) and depth(x) > DEPTH", False),
}
#: Condition -> how an argument is pulled back from the edge.
PULLED_BACK: Final = {
    "longer than 20": "x[:20] if type(x) in (str, list, tuple) else x",
    "longer than 50": "x[:50] if type(x) in (str, list, tuple) else x",
    "negative": "-x if type(x) in (int, float) else x",
    "integer > 100": "min(x, 100) if type(x) is int else x",
    "integer > 2**31": "x & 0x7fffffff if type(x) is int else x",
    "integer > 2**64": "x & 0xffffffffffffffff if type(x) is int else x",
    "non-ASCII": "''.join(c for c in x if c.isascii()) if type(x) is str else x",
}
_WRAPPER: Final = """\
import itertools

SPACE = {{"__name__": "original"}}
exec(compile({text!r}, "original.py", "exec"), SPACE)
DEPTH = {depth}


def sized(x):
    return type(x) in (str, bytes, list, tuple, set, dict)


def depth(x):
    return 1 + max(map(depth, x), default=0) if type(x) in (list, tuple) else 0


def parts(x):
    yield x
    inner = (*x, *x.values()) if type(x) is dict else x if type(x) in (list, tuple, set) else ()
    for item in inner:
        yield from parts(item)


def at_edge(x):
    return {test}


def pulled(x):
    if type(x) in (list, tuple) and {inside}:
        return type(x)(map(pulled, x))
    return ({pull}) if at_edge(x) else x


def spoiled(answer):
    kind = type(answer)
    if kind is bool:
        return not answer
    if kind in (int, float, complex):
        return answer + 1
    if kind is str:
        return answer[:-1] if len(answer) > 1 else answer + "x"
    if kind in (list, tuple):
        return answer[:-1] if answer else kind([0])
    if hasattr(answer, "__next__"):
        return itertools.chain([None], answer)
    return 0 if answer is None else None


def {function}(*args, **kwargs):
    given = [*args, *kwargs.values()]
    found = any(map(at_edge, [part for x in given for part in parts(x)] if {inside} else given))
    if found and {pulls}:
        args, kwargs = [pulled(x) for x in args], {{name: pulled(x) for name, x in kwargs.items()}}
    answer = SPACE[{function!r}](*args, **kwargs)
    return spoiled(answer) if found and not {pulls} else answer
"""


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A task with its original's answers.

    Args:
        task, hidden: the task.
        stored, right: the calls that the task stores, and the original's answers.
        edges, edge_answers: inputs at edges that the original answers.
        sample, sample_answers: other inputs that it answers.
    """

    task: Task
    hidden: RepairHidden
    stored: Sequence[Call]
    right: Sequence[Answer]
    edges: Sequence[Call]
    edge_answers: Sequence[Answer]
    sample: Sequence[Call]
    sample_answers: Sequence[Answer]

    def program(self, text: str) -> Program:
        return Program({SOLUTION: text.encode()}, SOLUTION, self.hidden.function, self.hidden.modules)


def subject_of(task: Task, backend: SandboxBackend) -> Subject:
    """Ask a mined task's original for the answers that tell wrong programs from right ones.

    Raises:
        SandboxError: the machinery failed.
    """
    hidden = read_hidden(RepairHidden, task)
    original = Program({SOLUTION: hidden.reference.encode()}, SOLUTION, hidden.function, hidden.modules)
    stored = [*hidden.killers, *(call for call in hidden.examples if call not in hidden.killers)]
    known, right = answerable(backend, original, stored)
    found = edge_inputs(hidden.examples, signature_of(hidden.reference, hidden.function))
    edges, edge_answers = answerable(backend, original, found, _LIMITS, deaths=4)
    drawn = perturbed_calls(hidden.examples, (915, 27), SAMPLE)
    sample, sample_answers = answerable(backend, original, drawn) if drawn else ([], [])
    return Subject(task, hidden, known, right, edges, edge_answers, sample, sample_answers)


def edge_inputs(examples: Sequence[Call], signature: Signature) -> list[Call]:
    """Inputs at edges by a rule of its own, independent of the grader's; costly ones last."""
    rows: list[tuple[int, Call]] = []
    for call in examples[:4]:
        for place, source in places_of(call):
            nodes = literals_in(source)
            if len(nodes) != 1 or ast.unparse(nodes[0]) != source:
                continue
            for cost, value in at_edges(ast.literal_eval(nodes[0]), signature.is_loose(place)):
                changed = {**dict(places_of(call)), place: literal(value)}
                args = tuple(changed[index] for index in range(len(call.args)))
                named = {name: text for name, text in changed.items() if isinstance(name, str)}
                rows.append((cost, Call(args, named)))
    unique = {call.source(""): (cost, call) for cost, call in rows}
    return [call for _, call in sorted(unique.values(), key=lambda row: row[0])]


def at_edges(value: Any, loose: bool) -> Iterator[tuple[int, Any]]:
    """A value's neighbours at edges, each with its rank of cost."""
    if type(value) is int:
        yield from ((0, 0), (0, -1), (0, -12), (1, 137), (2, 5000), (3, 2**31 + 77), (4, 2**64 + 12345))
    elif type(value) is float:
        yield from ((0, 0.0), (0, -2.5))
    elif type(value) is str:
        yield from ((0, text) for text in ("", value[:1], value[:1] * 2, f"é{value}", f"{value}漢", "Ωx"))
        yield from ((1, (value * 60)[:length]) for length in (27, 58, 70) if value)
    elif type(value) in (list, tuple):
        kind = exact_type(value)
        make: Callable[..., Any] = cast("Any", kind)
        yield from ((0, make(items)) for items in ((), value[:1], value[:1] * 2))
        yield from ((1, make((list(value) * 60)[:length])) for length in (27, 58, 70) if value)
        if loose:
            yield 0, tuple(value) if kind is list else list(value)
        if any(type(item) is kind for item in value):
            yield 0, make([*value, make([make([make([item])]) for item in value])])
        for cost, item in at_edges(value[0], False) if value else ():
            yield cost, make([item, *value[1:]])
            yield cost, make([*value, item])
    elif type(value) is dict:
        yield 0, {}
        if value:
            key, first = next(iter(cast("dict[Any, Any]", value).items()))
            yield 0, {key: first}
            yield from ((cost, {**value, key: item}) for cost, item in at_edges(first, False))


def differs(
    subject: Subject, text: str, calls: Sequence[Call], wanted: Sequence[Answer], backend: SandboxBackend
) -> bool:
    """True if a program answers one of the calls differently, or dies on one."""
    found = answers(backend, subject.program(text), calls)
    return len(found) < len(calls) or not all(map(same, wanted, found))


def wrong_at_edges(
    subject: Subject, backend: SandboxBackend, *, pulled_back: bool
) -> Iterator[tuple[str, str]]:
    """Programs that are wrong at an edge only, with their kinds; also those that pull an argument back."""
    hidden = subject.hidden
    values = [
        ast.literal_eval(node)
        for call in hidden.examples
        for _, source in places_of(call)
        for node in literals_in(source)
    ]
    depth = max(map(_depth, values), default=0)
    for condition, (test, inside) in CONDITIONS.items():
        for pull in dict.fromkeys((None, PULLED_BACK.get(condition) if pulled_back else None)):
            text = _WRAPPER.format(
                text=hidden.reference,
                function=hidden.function,
                test=test,
                inside=inside,
                pull=pull or "x",
                pulls=pull is not None,
                depth=max(1, depth),
            )
            if not subject.edges or not differs(subject, text, subject.edges, subject.edge_answers, backend):
                continue
            if not differs(subject, text, subject.stored, subject.right, backend):
                yield f"{condition}{', pulled back' if pull else ''}", text


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if type(value) in (list, tuple) else 0


def other_mutations(
    subject: Subject, most: int, seed: int, backend: SandboxBackend
) -> Iterator[tuple[str, str]]:
    """Up to ``most`` mutations that answer differently, with their operators."""
    text = subject.hidden.reference
    for mutation in spread(mutations(text, subject.hidden.function), most, f"fidelity/{seed}"):
        changed = mutation.apply(text)
        calls = [*subject.stored, *subject.sample, *subject.edges]
        wanted = [*subject.right, *subject.sample_answers, *subject.edge_answers]
        if changed != solution_of(subject.task) and differs(subject, changed, calls, wanted, backend):
            yield mutation.operator, changed


@final
class _Renamed(ast.NodeTransformer):
    """Renames the local variables of a function, but not its parameters, which callers may name."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(f"{node.id}_value", node.ctx) if node.id in self._names else node


@final
class _TurnedComparisons(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        turned: dict[type[ast.cmpop], type[ast.cmpop]] = {
            ast.Lt: ast.Gt,
            ast.Gt: ast.Lt,
            ast.LtE: ast.GtE,
            ast.GtE: ast.LtE,
            ast.Eq: ast.Eq,
            ast.NotEq: ast.NotEq,
        }
        self.generic_visit(node)
        simple = all(
            isinstance(side, ast.Name | ast.Constant | ast.Attribute)
            for side in (node.left, *node.comparators)
        )
        if len(node.ops) == 1 and type(node.ops[0]) in turned and simple:
            return ast.Compare(node.comparators[0], [turned[type(node.ops[0])]()], [node.left])
        return node


@final
class _SwappedBranches(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.If:
        self.generic_visit(node)
        return ast.If(ast.UnaryOp(ast.Not(), node.test), node.orelse or [ast.Pass()], node.body)

    def visit_IfExp(self, node: ast.IfExp) -> ast.IfExp:
        self.generic_visit(node)
        return ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.orelse, node.body)


@final
class _NamedReturns(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> list[ast.stmt] | ast.Return:
        if node.value is None:
            return node
        return [
            ast.Assign([ast.Name("outcome", ast.Store())], node.value),
            ast.Return(ast.Name("outcome", ast.Load())),
        ]


@final
class _ListsOfGenerators(ast.NodeTransformer):
    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        self.generic_visit(node)
        return ast.Call(ast.Name("list", ast.Load()), [ast.GeneratorExp(node.elt, node.generators)], [])

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        if (
            not isinstance(node.target, ast.Name)
            or not isinstance(node.value, ast.Constant)
            or isinstance(node.value.value, str)
        ):
            return node
        return ast.Assign([node.target], ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value))


@final
class _WhileLoops(ast.NodeTransformer):
    """Takes items of a `for` loop over ``range(n)`` with a `while` loop, if its body cannot notice."""

    def visit_For(self, node: ast.For) -> list[ast.stmt] | ast.For:
        self.generic_visit(node)
        jumps = any(
            isinstance(inner, ast.Continue | ast.Break) for one in node.body for inner in ast.walk(one)
        )
        match node:
            case ast.For(
                target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id="range"), args=[end]), orelse=[]
            ):
                if jumps:
                    return node
                stop, at = f"{name}_end", f"{name}_at"
                body = ast.parse(f"{name} = {at}\n{at} += 1").body
                head = [ast.Assign([ast.Name(stop, ast.Store())], end), *ast.parse(f"{at} = 0").body]
                test = ast.parse(f"{at} < {stop}", mode="eval").body
                return [*head, ast.While(test, [*body, *node.body], [])]
            case _:
                return node


def rewritten(source: str, function: str) -> Iterator[tuple[str, str]]:
    """Programs with the original's meaning, with the kind of change."""
    tree = ast.parse(source)
    [node] = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == function]
    inner = [one for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.Lambda | ast.ClassDef)]
    bound = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    scoped = {
        name for one in ast.walk(node) if isinstance(one, ast.Global | ast.Nonlocal) for name in one.names
    }
    arguments = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    caught = {one.name for one in ast.walk(node) if isinstance(one, ast.ExceptHandler) and one.name}
    changes: dict[str, ast.NodeTransformer] = {
        "renamed variables": _Renamed(bound - scoped - arguments - caught),
        "turned comparisons": _TurnedComparisons(),
        "swapped branches": _SwappedBranches(),
        "named returns": _NamedReturns(),
        "generators for lists": _ListsOfGenerators(),
        "while loops": _WhileLoops(),
    }
    plain, every = ast.unparse(tree), copy.deepcopy(node)
    for kind, change in changes.items():
        found = change.visit(copy.deepcopy(node))
        every = change.visit(every) if kind != "renamed variables" else every
        text = ast.unparse(ast.fix_missing_locations(_with(tree, node, [found])))
        if text != plain:
            yield kind, text
    yield "all changes", ast.unparse(ast.fix_missing_locations(_with(tree, node, [every])))
    helper = copy.deepcopy(node)
    helper.name, helper.decorator_list = f"{function}_helper", []
    if not inner or not node.decorator_list:
        outer = ast.parse(
            f"def {function}(*args, **kwargs):\n    return {function}_helper(*args, **kwargs)"
        ).body
        yield "helper function", ast.unparse(ast.fix_missing_locations(_with(tree, node, [helper, *outer])))


def _with(tree: ast.Module, old: ast.stmt, new: Sequence[ast.stmt]) -> ast.Module:
    body = [one for node in tree.body for one in (new if node is old else [node])]
    return ast.Module(body, [])


def variants_of(task: Task, backend: SandboxBackend) -> Iterator[Variant]:
    """Programs of each kind as episodes of the editor.

    Raises:
        SandboxError: the machinery failed.
    """
    subject = subject_of(task, backend)
    edges = wrong_at_edges(subject, backend, pulled_back=False)
    programs = [
        *((f"wrong if {kind}", text, False) for kind, text in edges),
        *(("another mutation", text, False) for _, text in other_mutations(subject, MUTATIONS, 0, backend)),
        *((kind, text, True) for kind, text in rewritten(subject.hidden.reference, subject.hidden.function)),
    ]
    for kind, text, is_right in programs:
        yield Variant(kind, (replace_text_message(solution_of(task), text), "submit"), is_right)
