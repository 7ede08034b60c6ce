"""What holds for the arguments of every example call, and how to make it hold for other arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envkit.inputs.rules.between import rules_between
from envkit.inputs.rules.lists import list_rules, number_rules, same_items
from envkit.inputs.rules.rule import Arguments, Rule, cells, is_list, keeps
from envkit.inputs.rules.tables import table_rules
from envkit.inputs.rules.texts import text_rules


def infer_rules(examples: Sequence[Arguments], said: str = "") -> list[Rule]:
    """The rules that all examples keep to, in the order in which they should be mended.

    Rules are few of a kind that problem statements state, and examples show: better one too many, which
    costs some inputs, than one too few, which blames a program for an input that it need not take.

    Args:
        examples: at least one; each has the same arguments.
        said: what the task says in words; some rules are believed only where it hints at them.

    >>> [rule.name for rule in infer_rules([{"a": [2, 3], "b": [7, 5]}, {"a": [9], "b": [1]}])][-1]
    'len(a) == len(b)'
    """
    candidates = [*_rules_of_each(examples, said), *rules_between(examples, said)]
    return [rule for rule in candidates if all(keeps(rule, example) for example in examples)]


def _rules_of_each(examples: Sequence[Arguments], said: str) -> Iterator[Rule]:
    for place in examples[0]:
        seen = [example[place] for example in examples]
        known = [cell for value in seen for cell in cells(value)]
        if known and all(type(cell) in (int, float) for cell in known):
            yield from number_rules(place, seen)
        if known and all(isinstance(cell, str) for cell in known):
            yield from text_rules(place, seen)
        if all(isinstance(value, str) for value in seen) and (rule := same_items(place, seen)):
            yield rule
        if all(is_list(value) for value in seen):
            if known and all(is_list(item) for value in seen for item in value):
                yield from table_rules(place, seen, said)
            yield from list_rules(place, seen, said)
