"""Infer what a function promises of its answers: a tolerance, or items in any order."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from envkit.grading.compare import Leniency, NumericPolicy
from envkit.inputs.call import Call
from envkit.syntax import parse, parse_expression

_ANY_ORDER = re.compile(
    r"\bin any order\b|\bany order\b|\border (?:of|does|do)[^.]*not matter|\bno particular order\b"
    r"|\b(?:arbitrary|unspecified|undefined) order\b|\border is not (?:guaranteed|preserved|specified)",
    re.IGNORECASE,
)
#: A set of sets has no order in either.
_SUBSETS = re.compile(
    r"\bpower ?set\b|\b(?:all|every|each|different|distinct)\b[^.\n]{0,30}\bsubsets?\b", re.IGNORECASE
)
_APPROXIMATE = re.compile(
    r"\bapproximat|\bnumerical(?:ly)? (?:solve|integrat|comput|method)|\bnewton-raphson\b"
    r"|\bup to a tolerance\b|\bwithin (?:a |the )?(?:given )?(?:tolerance|epsilon|accuracy)\b",
    re.IGNORECASE,
)
#: Names of parameters that tell how far an answer may be off.
_TOLERANCE = re.compile(r"eps|epsilon|tol|tolerance|abs_tol|accuracy|max_error", re.IGNORECASE)
#: A tolerance beyond this is no tolerance.
_WIDEST = 1.0
#: Rounding that a method of approximation may leave.
_ROUGH = NumericPolicy(rel_tol=1e-6, abs_tol=1e-6)


@dataclass(frozen=True, slots=True)
class Contract:
    """The comparison that a function's answers are held to.

    Args:
        policy: decides if two numbers are equal.
        leniency: differences that are accepted, apart from numbers.
        tolerance: index and name of the argument that tells how far an answer may be off, if there is one.
    """

    policy: NumericPolicy
    leniency: Leniency
    tolerance: tuple[int, str] | None = None

    def within(self, call: Call) -> float | None:
        """Distance between two right answers to a call: both may be off by its tolerance.

        Returns:
            0 without a tolerance; ``None`` if the call's tolerance is no small positive number.
        """
        if self.tolerance is None:
            return 0.0
        index, name = self.tolerance
        source = call.kwargs.get(name) or (call.args[index] if index < len(call.args) else None)
        if source is None:  # the default
            return 0.0
        value = _number(source)
        return 2 * float(value) if value is not None and 0 < value <= _WIDEST else None


def contract_of(
    statement: str,
    parameters: Sequence[str],
    source: str,
    function: str,
    policy: NumericPolicy,
    leniency: Leniency,
) -> Contract:
    """Infer a contract from a function's description, parameters and code.

    Args:
        statement: the description.
        parameters: names of the positional parameters.
        source: text of the original module.
        function: name of the function.
        policy, leniency: what is accepted anyway; the contract accepts at least as much.
    """
    any_order = leniency.any_order
    if _ANY_ORDER.search(statement) or _returns_listed_set(source, function):
        any_order = max(any_order, 1)
    if _SUBSETS.search(f"{function.replace('_', ' ')} {statement}"):
        any_order = max(any_order, 2)
    if _APPROXIMATE.search(statement):
        rel_tol, abs_tol = max(policy.rel_tol, _ROUGH.rel_tol), max(policy.abs_tol, _ROUGH.abs_tol)
        policy = replace(policy, rel_tol=rel_tol, abs_tol=abs_tol)
    named = [(index, name) for index, name in enumerate(parameters) if _TOLERANCE.fullmatch(name)]
    return Contract(policy, replace(leniency, any_order=any_order), named[0] if named else None)


def _returns_listed_set(source: str, function: str) -> bool:
    """True if every value returned is ``list(set(...))`` or the like, whose order is an accident."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    name = function.rpartition(".")[2]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    returned = [node.value for one in found for node in ast.walk(one) if isinstance(node, ast.Return)]
    return bool(returned) and all(value is not None and _is_listed_set(value) for value in returned)


def _is_listed_set(value: ast.expr) -> bool:
    match value:
        case (
            ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner])
            | ast.List(elts=[ast.Starred(value=inner)])
        ):
            pass
        case _:
            return False
    match inner:
        case ast.Call(func=ast.Name(id="set" | "frozenset")) | ast.Set() | ast.SetComp():
            return True
        case ast.BinOp(left=ast.Call(func=ast.Name(id="set")), op=ast.BitAnd() | ast.BitOr() | ast.Sub()):
            return True
        case _:
            return False


def description_of(source: str, function: str) -> str:
    """Return the text about a function: its docstring, and strings that stand alone in the module."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    name = function.rpartition(".")[2]
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    for node in tree.body:
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                found.append(text)
            case _:
                pass
    return "\n".join(found)


def is_below(call: Call, examples: Sequence[Call]) -> bool:
    """True if a positional number is smaller than in all examples.

    An approximation may promise nothing there: a square root within 0.1 of that of 0.001 has no right digit.
    """
    for index, source in enumerate(call.args):
        number = _number(source)
        known = [_number(example.args[index]) for example in examples if index < len(example.args)]
        numbers = [each for each in known if each is not None]
        if number is not None and numbers and number < min(numbers):
            return True
    return False


def _number(source: str) -> float | None:
    try:
        value = ast.literal_eval(parse_expression(source))
    except (ValueError, TypeError, SyntaxError):
        return None
    return value if type(value) in (int, float) else None
