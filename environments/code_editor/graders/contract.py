"""Infer what a function promises of its answers: a tolerance, or items in any order."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from envkit.env.compare import Leniency, NumericPolicy
from envkit.environments.code_editor.inputs.call import Call
from envkit.runtime.syntax import parse, parse_expression
from envkit.types import JSON

_ANY_ORDER = re.compile(
    r"\bin any order\b|\bany order\b|\border (?:of|does|do)[^.]*not matter|\bno particular order\b"
    r"|\b(?:arbitrary|unspecified|undefined) order\b|\border is not (?:guaranteed|preserved|specified)",
    re.IGNORECASE,
)
#: Words of a sentence about the order of what is given.
_OF_INPUT = re.compile(
    r"\b(?:given|inputs?|arguments?|parameters?|comes?|coming|arrives?|takes?|accepts?|letters|characters)\b",
    re.IGNORECASE,
)
_OF_OUTPUT = re.compile(r"\b(?:returns?|yields?|results?|outputs?|answers?)\b", re.IGNORECASE)
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
        default: source of that argument's default.
    """

    policy: NumericPolicy
    leniency: Leniency
    tolerance: tuple[int, str] | None = None
    default: str = ""

    def within(self, call: Call) -> float | None:
        """Distance between two right answers to a call: both may be off by its tolerance.

        Returns:
            0 if there is none; ``None`` if the call's tolerance is no small positive float.
        """
        if self.tolerance is None:
            return 0.0
        index, name = self.tolerance
        source = call.kwargs.get(name) or (call.args[index] if index < len(call.args) else self.default)
        if not source:
            return 0.0
        value = _number(source)
        # An integer is a number of digits or of steps.
        return 2 * value if type(value) is float and 0 < value <= _WIDEST else None


def contract_of(
    statement: str,
    parameters: Sequence[str],
    source: str,
    function: str,
    policy: NumericPolicy,
    leniency: Leniency,
    defaults: Mapping[str, str] | None = None,
) -> Contract:
    """Infer a contract from a function's description, parameters and code.

    Args:
        statement: the description.
        parameters: names of the positional parameters.
        source: text of the original module.
        function: name of the function.
        policy, leniency: what is accepted anyway; the contract accepts at least as much.
        defaults: parameter -> source of its default.
    """
    any_order = leniency.any_order
    if promises_any_order(statement) or _returns_listed_set(source, function):
        any_order = max(any_order, 1)
    if _SUBSETS.search(f"{function.replace('_', ' ')} {statement}"):
        any_order = max(any_order, 2)
    if _APPROXIMATE.search(statement):
        rel_tol, abs_tol = max(policy.rel_tol, _ROUGH.rel_tol), max(policy.abs_tol, _ROUGH.abs_tol)
        policy = replace(policy, rel_tol=rel_tol, abs_tol=abs_tol)
    named = [(index, name) for index, name in enumerate(parameters) if _TOLERANCE.fullmatch(name)]
    tolerance = named[0] if named else None
    default = (defaults or {}).get(tolerance[1], "") if tolerance else ""
    return Contract(policy, replace(leniency, any_order=any_order), tolerance, default)


def promises_any_order(statement: str) -> bool:
    """True if a sentence says that an order is free, and does not mean that of the input alone."""
    sentences = re.split(r"[.;\n]\s", statement)
    return any(
        _ANY_ORDER.search(each) and (_OF_OUTPUT.search(each) or not _OF_INPUT.search(each))
        for each in sentences
    )


def order_counts(values: Sequence[JSON]) -> bool:
    """True if right answers show that their order counts, whatever a description says.

    Either all are tuples of one length, so that each position has a meaning; or all lists are sorted, and
    three of them have three or more different items.

    Args:
        values: answers, encoded by `envkit.sandbox.programs.worker.encode`.
    """
    tuples = [
        cast("list[JSON]", value["v"])
        for value in values
        if isinstance(value, Mapping) and value.get("t") == "tuple"
    ]
    if len(tuples) == len(values) >= 3 and len({*map(len, tuples)}) == 1:
        return True
    lists = [cast("list[Any]", value) for value in values if isinstance(value, list)]
    plain = [items for items in lists if {*map(type, items)} in ({int}, {str})]
    telling = [items for items in plain if len({*items}) >= 3]
    in_order = all(items in (sorted(items), sorted(items, reverse=True)) for items in plain)
    return len(plain) == len([items for items in lists if items]) and len(telling) >= 3 and in_order


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
