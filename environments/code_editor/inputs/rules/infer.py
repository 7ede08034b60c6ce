"""Infer rules from example arguments, as Daikon infers invariants from runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envkit.environments.code_editor.inputs.rules.between import rules_between
from envkit.environments.code_editor.inputs.rules.lists import list_rules, number_rules, same_items
from envkit.environments.code_editor.inputs.rules.rule import Arguments, Rule, cells, follows, is_list
from envkit.environments.code_editor.inputs.rules.tables import table_rules
from envkit.environments.code_editor.inputs.rules.texts import text_rules


def infer_rules(examples: Sequence[Arguments], statement: str = "") -> list[Rule]:
    """The rules that all examples follow, in the order in which to fix arguments.

    Tries only rules that problem statements typically state. An extra rule excludes some inputs. A missing
    rule is worse: it fails a correct program on an input that the program need not accept.

    Args:
        examples: at least one; each has the same arguments.
        statement: the problem in words; some rules need a hint there.

    >>> [rule.name for rule in infer_rules([{"a": [2, 3], "b": [7, 5]}, {"a": [9], "b": [1]}])][-1]
    'len(a) == len(b)'
    """
    candidates = [*_single_argument_rules(examples, statement), *rules_between(examples, statement)]
    return [rule for rule in candidates if all(follows(rule, example) for example in examples)]


def _single_argument_rules(examples: Sequence[Arguments], statement: str) -> Iterator[Rule]:
    for key in examples[0]:
        seen = [example[key] for example in examples]
        known = [cell for value in seen for cell in cells(value)]
        if known and all(type(cell) in (int, float) for cell in known):
            yield from number_rules(key, seen)
        if known and all(isinstance(cell, str) for cell in known):
            yield from text_rules(key, seen)
        if all(isinstance(value, str) for value in seen) and (rule := same_items(key, seen)):
            yield rule
        if all(is_list(value) for value in seen):
            if known and all(is_list(item) for value in seen for item in value):
                yield from table_rules(key, seen, statement)
            yield from list_rules(key, seen, statement)
