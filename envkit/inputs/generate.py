"""Fresh calls that keep to what all example calls show: their shapes, and the rules between arguments."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Sequence

from envkit.inputs.call import Call, literal
from envkit.inputs.rules.infer import infer_rules
from envkit.inputs.rules.rule import ArgKey, Arguments, Rule, keeps
from envkit.inputs.shapes import Shape, sample, shape_of, vary
from envkit.syntax import parse_expression

#: Tries per call that is wanted; arguments that cannot be mended are dropped.
_TRIES = 12
#: Shares of near, short, middling and long ones.
_SHARES = (0.4, 0.2, 0.25, 0.15)


def generated_calls(
    examples: Sequence[Call], seed: int, count: int, said: str = "", names: Sequence[str] = ()
) -> list[Call]:
    """Up to ``count`` distinct calls that the examples' author could have written, none an example itself.

    `envkit.inputs.perturb.perturbed_calls` stays near the examples. This one goes further and is more
    careful, for functions of a problem statement: those demand what a docstring's seldom do, such as distinct
    items or two lists of one length. What all examples show is kept. Each call is a pure function of the
    arguments and its number. Near ones come first, long ones last.

    Args:
        examples: calls; those whose arguments are not all literals are left out of account.
        seed: decides every draw.
        count: how many are wanted; fewer come back where the examples leave no room.
        said: what the task says in words.
        names: of the positional parameters, where they are known; some names tell what is meant.

    >>> calls = generated_calls([Call(("[2, 5, 9]", "3")), Call(("[1, 4]", "2"))], seed=0, count=20)
    >>> len(calls), all(int(call.args[1]) == call.args[0].count(",") + 1 for call in calls)
    (20, True)
    """
    read = [(len(call.args), arguments) for call in examples if (arguments := _arguments(call, names))]
    if not read:
        return []
    positional, first = read[0]
    # In one order, for a call's first arguments are given by place.
    known = [{place: each[place] for place in first} for _, each in read if each.keys() == first.keys()]
    shapes = {place: shape_of([arguments[place] for arguments in known]) for place in known[0]}
    rules = infer_rules(known, said)
    seen = {_call(arguments, positional).source("") for arguments in known}
    found: list[Call] = []
    for phase in range(len(_SHARES)):
        # What one phase finds no room for, the next ones may.
        wanted = min(count, round(count * sum(_SHARES[: phase + 1])))
        for index in range(_TRIES * max(0, wanted - len(found))):
            if len(found) >= wanted:
                break
            rng = random.Random(repr((seed, phase, index)))
            arguments = _fresh(known[index % len(known)], shapes, rng, phase)
            call = _call(arguments, positional) if _mended(arguments, rules, rng) else None
            if call is not None and call.source("") not in seen:
                seen.add(call.source(""))
                found.append(call)
    return found


def _arguments(call: Call, names: Sequence[str]) -> Arguments | None:
    """The values by name, or by place where the name is not known; ``None`` where one is no literal."""
    named = dict(enumerate(names))
    sources = {named.get(index, index): source for index, source in enumerate(call.args)} | dict(call.kwargs)
    try:
        return {place: ast.literal_eval(parse_expression(source)) for place, source in sources.items()}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(arguments: Arguments, positional: int) -> Call:
    sources = [(str(place), literal(value)) for place, value in arguments.items()]
    return Call(tuple(source for _, source in sources[:positional]), dict(sources[positional:]))


def _fresh(base: Arguments, shapes: dict[ArgKey, Shape], rng: random.Random, phase: int) -> Arguments:
    """Arguments near the base in the first phase, then new ones, larger from phase to phase."""
    if phase > 0:
        return {place: sample(shape, rng, phase - 1) for place, shape in shapes.items()}
    arguments = copy.deepcopy(base)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice(list(shapes))
        arguments[place] = vary(shapes[place], arguments[place], rng)
    return arguments


def _mended(arguments: Arguments, rules: Sequence[Rule], rng: random.Random) -> bool:
    """Make the rules hold, as far as can be; returns whether they do."""
    for _ in range(3):
        if all(keeps(rule, arguments) for rule in rules):
            return True
        for rule in rules:
            if rule.mend is not None and not keeps(rule, arguments):
                try:
                    rule.mend(arguments, rng)
                except (TypeError, ValueError, IndexError, KeyError):
                    return False
    return all(keeps(rule, arguments) for rule in rules)
