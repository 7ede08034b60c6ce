"""Turn the asserts of a test program into probes, whose values the host compares.

The program ``stack.push(3); assert stack.items == [3]`` runs in the sandbox as
``stack.push(3); __look__(0, stack.items)``. The expected ``[3]`` stays on the host. An assert without
a literal, such as ``assert a < b`` or ``assert f(x)``, only reports true or false. Such a probe is weak: the
candidate's code runs in the same process and could forge it. So are checks that the program makes itself,
such as catching an exception.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from envkit.env.compare import NumericPolicy, opaque
from envkit.environments.code_editor.formats.problems import PYTHON, LeftOut, statements
from envkit.sandbox.programs.worker import Unencodable, encode
from envkit.types import JSON

#: The `Grade.weakness` of grades with weak probes.
WEAKNESS = (
    "some tests say only true or false, or that something is raised, in one process with the candidate's "
    "code, which could forge that"
)
#: Largest unrolled table of cases, in syntax nodes.
_MAX_NODES = 20_000
#: Loops with these nodes are not unrolled, because they end early or read the loop's names later.
_PREVENTS_UNROLLING = ast.Break | ast.Continue | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Probe:
    """A place in a test program that reports a value.

    Args:
        source: the expression.
        value: its expected value, encoded as by `envkit.sandbox.programs.worker.encode`.
        numbers: decides if two numbers are equal.
        weak: True if the value only says that a condition was true inside the sandbox.
    """

    source: str
    value: JSON
    numbers: NumericPolicy = PYTHON
    weak: bool = False


@dataclass(frozen=True, slots=True)
class ProbedTests:
    """A test program with probes in place of its asserts.

    Args:
        program: the source that runs in the sandbox.
        places: the probes in order.
        weak: True if a probe is weak, or the program checks something itself, for instance with ``try``.
    """

    program: str
    places: Sequence[Probe]
    weak: bool


def probe_tests(tests: str, program: str = "") -> ProbedTests:
    r"""Replace the asserts of a test program by probes.

    Args:
        tests: the test program; it runs in the namespace of the tested program.
        program: the tested program, whose names the tests may set.

    >>> found = probe_tests("want = [1]\nassert f(2) == want\nassert not f(3)")
    >>> print(found.program)
    pass
    __look__(0, f(2))
    __look__(1, not f(3))
    >>> [place.value for place in found.places]
    [[1], True]

    Raises:
        LeftOut: the test program is not Python, or has no assert.
    """
    tree = ast.Module([*statements(tests)], [])
    taken = _names(statements(program))
    tables = {name: table for name, table in _tables(tree).items() if name not in taken}
    tree = _Unrolled(tables).visit(tree)
    reader = _Reader({node: value for node, value in _answers(tree).items() if node.id not in taken})
    tree = reader.visit(tree)
    if not reader.places:
        raise LeftOut("without an assert")
    removable = ({node.id for node in reader.answers} | tables.keys()) - _names(tree.body, ast.Load)
    tree = ast.fix_missing_locations(_Without(removable).visit(tree))
    weak = any(place.weak for place in reader.places) or any(map(_checks_itself, ast.walk(tree)))
    return ProbedTests(ast.unparse(tree), reader.places, weak)


def _checks_itself(node: ast.AST) -> bool:
    """True if the program itself checks something here. The candidate's code could forge that."""
    match node:
        case ast.Attribute(attr=name):  # methods of unittest and pytest
            return name == "fail" or name.startswith(("assert", "raises"))
        case ast.Assert(test=ast.Constant(value=value)):
            return not value
        case _:
            return isinstance(node, ast.Raise | ast.Try | ast.TryStar)


def _names(body: Sequence[ast.stmt], context: type[ast.expr_context] = ast.expr_context) -> set[str]:
    nodes = (node for statement in body for node in ast.walk(statement))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


@final
class _Without(ast.NodeTransformer):
    """Removes the assignments of some names."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        match node.targets:
            case [ast.Name(id=name)] if name in self._names:
                return ast.copy_location(ast.Pass(), node)
            case _:
                return node


@final
class _Reader(ast.NodeTransformer):
    """Replaces every assert by a probe.

    Args:
        answers: names in asserts -> the literals that they stand for.
    """

    def __init__(self, answers: Mapping[ast.Name, ast.expr]) -> None:
        self.answers = answers
        self.places: list[Probe] = []

    def visit_Assert(self, node: ast.Assert) -> ast.stmt | list[ast.stmt]:
        if isinstance(node.test, ast.Constant):  # ``assert False`` marks code that must not be reached
            return node
        return [self._probe(part) for part in _parts(node.test)]

    def _probe(self, test: ast.expr) -> ast.stmt:
        seen, place = self._place(test)
        number = ast.Constant(len(self.places))
        self.places.append(place)
        call = ast.Call(ast.Name("__look__", ast.Load()), [number, seen], [])
        return ast.copy_location(ast.Expr(call), test)

    def _place(self, test: ast.expr) -> tuple[ast.expr, Probe]:
        for seen, other, numbers in _compared(test):
            node = self.answers.get(other, other) if isinstance(other, ast.Name) else other
            value = _literal(node, number=numbers is not PYTHON)
            if value is not None:
                return seen, Probe(ast.unparse(seen), value[0], numbers, weak=_is_condition(seen))
        # ``not not``, because a program may define its own `bool`.
        negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        truth = test if negated else ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), test))
        return truth, Probe(ast.unparse(test), True, weak=True)


def _is_condition(node: ast.expr) -> bool:
    """True for an expression whose truth a candidate's classes may decide, as `__eq__` does."""
    match node:
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp(ast.Not()):
            return True
        case ast.Call(ast.Name("isinstance" | "issubclass" | "all" | "any" | "bool")):
            return True
        case _:
            return False


def _parts(test: ast.expr) -> Iterator[ast.expr]:
    """Split ``a and b`` into its conditions."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for value in test.values:
            yield from _parts(value)
    else:
        yield test


def _compared(test: ast.expr) -> Iterator[tuple[ast.expr, ast.expr, NumericPolicy]]:
    """Yield both sides of a comparison, in both orders, with its numeric tolerance."""
    pair, numbers = None, PYTHON
    match test:
        case ast.Compare(left, [ast.Eq() | ast.Is()], [right]):
            pair = left, right
        case ast.Compare(
            ast.Call(ast.Name("abs"), [ast.BinOp(left, ast.Sub(), right)], []),
            [ast.Lt() | ast.LtE()],
            [ast.Constant(int() | float() as tolerance)],
        ):
            pair, numbers = (left, right), NumericPolicy(0.0, float(tolerance), int_as_float=True)
        case ast.Call(
            ast.Name("isclose") | ast.Attribute(ast.Name("math"), "isclose"), [left, right], keywords
        ):
            known = {word.arg: word.value.value for word in keywords if isinstance(word.value, ast.Constant)}
            if len(known) == len(keywords) and known.keys() <= {"rel_tol", "abs_tol"}:
                rel, near = known.get("rel_tol", 1e-9), known.get("abs_tol", 0.0)
                if isinstance(rel, int | float) and isinstance(near, int | float):
                    pair, numbers = (left, right), NumericPolicy(float(rel), float(near), int_as_float=True)
        case _:
            pass
    if pair is not None:
        yield pair[0], pair[1], numbers
        yield pair[1], pair[0], numbers


def _literal(node: ast.expr, *, number: bool = False) -> tuple[JSON] | None:
    """Return a literal's encoded value in a tuple; ``None`` if it is no literal or cannot be compared.

    Args:
        node: the expression.
        number: True to convert to a float, because two integers would be compared exactly.
    """
    try:
        found: object = ast.literal_eval(node)
        value: JSON = encode(float(cast("float", found)) if number else found)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError, Unencodable):
        return None
    return None if opaque(value) else (value,)


# Names of expected values. If a name has no other use, the host substitutes its value.


def _answers(tree: ast.Module) -> dict[ast.Name, ast.expr]:
    """Return the names in asserts that are only ever bound to a literal, with the literal."""
    bound, used = dict[str, list[_Bound]](), dict[str, list[_Bound]]()
    known, elsewhere = set[ast.AST](), set[str]()
    blocks = [*_blocks(tree)]
    for block, position, statement in blocks:
        match statement:
            case ast.Assign([ast.Name(id=name) as target], value) if _literal(value) is not None:
                bound.setdefault(name, []).append(_Bound(block, position, target, value))
                known.add(target)
            case _:
                pass
    for block, position, statement in blocks:
        for part in _parts(statement.test) if isinstance(statement, ast.Assert) else ():
            wanted = (other for _, other, _ in _compared(part) if isinstance(other, ast.Name))
            name = next((other for other in wanted if other.id in bound), None)
            if name is not None:
                used.setdefault(name.id, []).append(_Bound(block, position, name, name))
                known.add(name)
    messages = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and node.msg is not None
        for inner in ast.walk(node.msg)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node not in known and node not in messages:
            elsewhere.add(node.id)
        elsewhere |= set(_declared(node))
    found: dict[ast.Name, ast.expr] = {}
    for name in bound.keys() & used.keys() - elsewhere:
        values = {use.name: _value_at(use, bound[name]) for use in used[name]}
        if None not in values.values():
            found |= {node: value for node, value in values.items() if value is not None}
    return found


@dataclass(frozen=True, slots=True)
class _Bound:
    """A name in a statement: path of blocks to it, the statement's number in the file, and a value."""

    block: tuple[int, ...]
    position: int
    name: ast.Name
    value: ast.expr


def _value_at(use: _Bound, bound: Sequence[_Bound]) -> ast.expr | None:
    """Return the literal that a name is bound to at a place; ``None`` if that is uncertain."""
    before = [found for found in bound if found.position < use.position]
    if not before:
        return None
    last = before[-1]
    alone = len(bound) == 1 and use.block[: len(last.block)] == last.block
    return last.value if last.block == use.block or alone else None


def _blocks(
    node: ast.AST, block: tuple[int, ...] = (), count: list[int] | None = None
) -> Iterator[tuple[tuple[int, ...], int, ast.stmt]]:
    """Yield all statements in order, each with the path of blocks to it and its number."""
    count = [0] if count is None else count
    for _, value in ast.iter_fields(node):
        listed = cast("list[object]", value) if isinstance(value, list) else []
        children = [item for item in listed if isinstance(item, ast.AST)]
        here = (*block, count[0]) if any(isinstance(child, ast.stmt) for child in children) else block
        for child in children:
            count[0] += 1
            if isinstance(child, ast.stmt):
                yield here, count[0], child
            yield from _blocks(child, here, count)


def _declared(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds or declares without an `ast.Name`."""
    match node:
        case ast.Global(names) | ast.Nonlocal(names):
            yield from names
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
            yield name
        case ast.arg(name):
            yield name
        case ast.alias(name, asname):
            yield asname or name
        case ast.ExceptHandler(name=str() as name):
            yield name
        case _:
            pass


# Tables of cases: ``for given, want in [(1, 2), (3, 4)]: assert f(given) == want``.


def _tables(tree: ast.Module) -> dict[str, ast.expr]:
    """Return names that are assigned one literal and only used to iterate over it."""
    iterated = Counter(
        node.iter.id
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Name)
    )
    uses = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(target := node.targets[0], ast.Name)
        and isinstance(node.value, ast.List | ast.Tuple)
        and iterated[target.id]  # else it may be a class attribute
        and uses[target.id] == iterated[target.id] + 1
    }


@final
class _Unrolled(ast.NodeTransformer):
    """Unrolls loops over literal tables that assert something of each row."""

    def __init__(self, tables: Mapping[str, ast.expr]) -> None:
        self._tables = tables

    def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        table = self._tables.get(node.iter.id) if isinstance(node.iter, ast.Name) else node.iter
        inner = [child for statement in node.body for child in ast.walk(statement)]
        if not isinstance(table, ast.List | ast.Tuple) or not table.elts or node.orelse:
            return node
        if len(table.elts) * len(inner) > _MAX_NODES:
            return node
        if not any(isinstance(child, ast.Assert) for child in inner):
            return node
        if any(isinstance(child, _PREVENTS_UNROLLING) for child in inner):
            return node
        rows = [_assigned(node.target, row) for row in table.elts]
        if not all(rows):
            return node
        return [made for row in rows for made in (*row, *copy.deepcopy(node.body))]


def _assigned(target: ast.expr, row: ast.expr) -> list[ast.stmt]:
    """Return the assignments that bind a row's values; empty if the names do not match them one to one."""
    match target, row:
        case ast.Name(), _:
            pairs = [(target, row)]
        case ast.Tuple(names), ast.Tuple(values) | ast.List(values) if len(names) == len(values):
            pairs = list(zip(names, values, strict=True))
        case _:
            return []
    if not all(isinstance(name, ast.Name) and _literal(value) is not None for name, value in pairs):
        return []
    return [
        ast.copy_location(ast.Assign([copy.deepcopy(name)], copy.deepcopy(value)), row)
        for name, value in pairs
    ]
