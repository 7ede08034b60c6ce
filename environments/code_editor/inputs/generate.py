"""Generate calls from the shapes of example arguments and the rules that these follow."""

from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Sequence
from typing import final

from envkit.environments.code_editor.inputs.call import Call, literal
from envkit.environments.code_editor.inputs.rules.infer import infer_rules
from envkit.environments.code_editor.inputs.rules.rule import ArgKey, Arguments, Rule, follows
from envkit.environments.code_editor.inputs.shapes import Shape, sample, shape_of, vary
from envkit.runtime.syntax import parse_expression

#: Most draws per wanted call. Arguments that cannot be made to follow the rules are dropped.
_TRIES = 12
#: Shares of calls near the examples, with short, medium and long arguments.
_SHARES = (0.4, 0.2, 0.25, 0.15)
#: Words of a description, and the part of a rule's name that they lift.
_LIFTED = (
    (re.compile(r"\bnon-?negative\b|\bgreater than or equal to 0\b|>= 0", re.IGNORECASE), ">= 1"),
    (
        re.compile(r"\b(?:may|can) be empty\b|\bpossibly empty\b|\bif [^.]*\bempty\b", re.IGNORECASE),
        "not empty: ",
    ),
)


def generated_calls(
    examples: Sequence[Call], seed: int, count: int, statement: str = "", names: Sequence[str] = ()
) -> list[Call]:
    """Generate up to ``count`` distinct calls that are valid for a stated problem; no example is repeated.

    `perturbed_calls` makes small changes to examples. This function also makes larger inputs, and it infers
    the preconditions that problem statements typically have, such as distinct items or two lists of equal
    length. The result is a pure function of the arguments. Calls near the examples come
    first, long ones last.

    Args:
        examples: known calls. Those with arguments that are not literals are ignored.
        seed: decides every draw.
        count: calls wanted. Fewer come back if the rules leave no room.
        statement: the problem in words.
        names: names of the positional parameters, if known; some names imply a rule, such as ``low``.

    >>> calls = generated_calls([Call(("[2, 5, 9]", "3")), Call(("[1, 4]", "2"))], seed=0, count=20)
    >>> len(calls), all(int(call.args[1]) == call.args[0].count(",") + 1 for call in calls)
    (20, True)
    """
    read = [(len(call.args), arguments) for call in examples if (arguments := _arguments(call, names))]
    if not read:
        return []
    positional, first = read[0]
    # All in the order of the first example, because the first arguments are passed by position.
    known = [{key: each[key] for key in first} for _, each in read if each.keys() == first.keys()]
    shapes = {key: shape_of([arguments[key] for arguments in known]) for key in known[0]}
    rules = infer_rules(known, statement)
    seen = {_call(arguments, positional).source("") for arguments in known}
    found: list[Call] = []
    for phase in range(len(_SHARES)):
        # A later phase supplies the calls that an earlier one could not find.
        wanted = min(count, round(count * sum(_SHARES[: phase + 1])))
        for index in range(_TRIES * max(0, wanted - len(found))):
            if len(found) >= wanted:
                break
            rng = random.Random(repr((seed, phase, index)))
            arguments = _draw(known[index % len(known)], shapes, rng, phase)
            call = _call(arguments, positional) if _fix_arguments(arguments, rules, rng) else None
            if call is not None and call.source("") not in seen:
                seen.add(call.source(""))
                found.append(call)
    return found


def _arguments(call: Call, names: Sequence[str]) -> Arguments | None:
    """Argument values by name, or by index if the name is unknown; ``None`` if one is not a literal."""
    named = dict(enumerate(names))
    sources = {named.get(index, index): source for index, source in enumerate(call.args)} | dict(call.kwargs)
    try:
        return {key: ast.literal_eval(parse_expression(source)) for key, source in sources.items()}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(arguments: Arguments, positional: int) -> Call:
    sources = [(str(key), literal(value)) for key, value in arguments.items()]
    return Call(tuple(source for _, source in sources[:positional]), dict(sources[positional:]))


def _draw(base: Arguments, shapes: dict[ArgKey, Shape], rng: random.Random, phase: int) -> Arguments:
    """Vary the base in the first phase; draw new arguments, larger with each phase, in the others."""
    if phase > 0:
        return {key: sample(shape, rng, phase - 1) for key, shape in shapes.items()}
    arguments = copy.deepcopy(base)
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(list(shapes))
        arguments[key] = vary(shapes[key], arguments[key], rng)
    return arguments


def _fix_arguments(arguments: Arguments, rules: Sequence[Rule], rng: random.Random) -> bool:
    """Change arguments in place until they follow the rules; returns False if they still do not."""
    for _ in range(3):
        if all(follows(rule, arguments) for rule in rules):
            return True
        for rule in rules:
            if rule.fix is not None and not follows(rule, arguments):
                try:
                    rule.fix(arguments, rng)
                except (TypeError, ValueError, IndexError, KeyError):
                    return False
    return all(follows(rule, arguments) for rule in rules)


@final
class StatedRules:
    """The rules that the example calls of a stated problem follow.

    Args:
        examples, statement, names: see `generated_calls`.
        description: further words, such as a docstring, that may lift a rule. ``nonnegative`` allows 0, even
            if no example has it.
    """

    def __init__(
        self, examples: Sequence[Call], statement: str, names: Sequence[str], description: str = ""
    ) -> None:
        read = [arguments for call in examples if (arguments := _arguments(call, names))]
        self._names = names
        self._known = [each for each in read if each.keys() == read[0].keys()]
        lifted = [ending for word, ending in _LIFTED if word.search(f"{statement}\n{description}")]
        rules = infer_rules(self._known, statement) if self._known else []
        self._rules = [rule for rule in rules if not any(ending in rule.name for ending in lifted)]

    def fitted(self, call: Call, seed: int) -> Call | None:
        """The call, changed so that it follows the rules; ``None`` if it cannot."""
        arguments = _arguments(call, self._names)
        if not self._known or arguments is None or arguments.keys() != self._known[0].keys():
            return None
        if not _fix_arguments(arguments, self._rules, random.Random(repr((seed, call.source(""))))):
            return None
        return _call(arguments, len(call.args))
