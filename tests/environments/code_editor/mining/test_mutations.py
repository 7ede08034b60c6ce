"""Each mutation operator makes the change that it names and no other."""

from __future__ import annotations

import ast

import pytest

from envkit.environments.code_editor.mining.mutations.mutate import OPERATORS, mutations

Line = tuple[str, str]


def changes(source: str, operator: str) -> set[Line]:
    """Return (line before, line after) of every mutation of function ``f`` by one operator."""
    return {
        (one.before_line.strip(), one.after_line.strip())
        for one in mutations(source, "f")
        if one.operator == operator
    }


#: Operator, body of a function of ``a`` and ``b``, one of its lines, and the possible mutations of that line.
EXAMPLES = [
    ("comparison", "return a < b", "return a < b", "return a <= b"),
    ("comparison", "return a < b", "return a < b", "return a > b"),
    ("comparison", "return a == b", "return a == b", "return a != b"),
    ("comparison", "return a in b", "return a in b", "return a not in b"),
    ("comparison", "return a is not b", "return a is not b", "return a is b"),
    ("comparison", "while a >= b: a -= 1", "while a >= b: a -= 1", "while a > b: a -= 1"),
    ("arithmetic", "return a + b", "return a + b", "return a - b"),
    ("arithmetic", "return a // b", "return a // b", "return a / b"),
    ("arithmetic", "a += b", "a += b", "a -= b"),
    ("arithmetic", "return a & b", "return a & b", "return a | b"),
    ("constant", "return a + 2", "return a + 2", "return a + 3"),
    ("constant", "return a + 2", "return a + 2", "return a + 1"),
    ("boolean", "return a and b", "return a and b", "return a or b"),
    ("boolean", "return True", "return True", "return False"),
    ("negation", "if a: return b", "if a: return b", "if not a: return b"),
    ("negation", "return not a", "return not a", "return a"),
    (
        "negation",
        "return [x for x in a if b]",
        "return [x for x in a if b]",
        "return [x for x in a if not b]",
    ),
    (
        "negation",
        "return a if a % b else b",
        "return a if a % b else b",
        "return a if not (a % b) else b",
    ),
    ("index", "return a[b]", "return a[b]", "return a[b - 1]"),
    ("index", "return a[0]", "return a[0]", "return a[1]"),
    ("index", "return a[-1]", "return a[-1]", "return a[-2]"),
    ("index", "return a[b + 1]", "return a[b + 1]", "return a[b]"),
    ("index", "return a[1:b]", "return a[1:b]", "return a[1:b - 1]"),
    ("index", "return range(b)", "return range(b)", "return range(b + 1)"),
    ("variable", "return max(a, b)", "return max(a, b)", "return max(b, b)"),
    ("arguments", "return max(a, b)", "return max(a, b)", "return max(b, a)"),
    ("arguments", "return a - b", "return a - b", "return b - a"),
    ("return", "for x in a:\n        b += x\n    return b", "return b", "return b"),
    ("return", "for x in a:\n        if x:\n            break", "break", "continue"),
    ("statement", "b.clear()\n    return b", "b.clear()", ""),
    ("statement", "if a:\n        b += 1", "b += 1", "pass"),
    ("statement", "for x in a:\n        if x:\n            continue\n        b += 1", "continue", "pass"),
]


def test_every_operator_has_an_example() -> None:
    assert {operator for operator, *_ in EXAMPLES} == set(OPERATORS)


@pytest.mark.parametrize(("operator", "body", "before", "after"), EXAMPLES)
def test_operators_make_exactly_the_listed_changes(operator: str, body: str, before: str, after: str) -> None:
    assert (before, after) in changes(f"def f(a, b):\n    {body}\n", operator)


@pytest.mark.parametrize(
    ("operator", "body"),
    [
        ("arithmetic", "return a + 'text'"),
        ("arguments", "return isinstance(a, b)"),
        ("arguments", "return f(*a, b)"),
        ("constant", "return a[0]"),
        ("negation", "while a: b()"),
        ("negation", "return b if a == 1 else a"),
        ("variable", "b = [a[0]]\n    return b[0] + len(a)\n    c = [1]\n    return c[0]"),
        ("statement", "c = a\n    return c"),
        ("statement", "raise_with_a_name_long_enough(a, b, a, b)\n    return a"),
        ("statement", "return a"),
    ],
)
def test_pointless_changes_are_not_made(operator: str, body: str) -> None:
    found = changes(f"def f(a):\n    {body}\n", operator)
    if operator == "variable":
        assert all("c" not in after for _, after in found)
    else:
        assert found == set()


def test_names_of_attributes_and_arguments_are_not_treated_as_variables() -> None:
    found = {after for _, after in changes("def f(a, b):\n    return a.b + b.a + g(b=a)\n", "variable")}
    assert found == {"return b.b + b.a + g(b=a)", "return a.b + a.a + g(b=a)", "return a.b + b.a + g(b=b)"}


@pytest.mark.parametrize("place", ["a[~0]", "a[:~1]", "a[2j]"])
def test_index_expressions_that_are_no_integers_are_not_changed(place: str) -> None:
    assert changes(f"def f(a, b):\n    return {place}\n", "index") == set()


SOURCE = '''import operator


def helper(x):
    return x < 1


@operator.itemgetter(1 < 2)
def f(items: list[1 < 2], low=0 + 1, *, high: int = 3 < 4) -> 5 < 6:
    """Text with 1 < 2."""
    if low > high:
        raise ValueError(f"{low} < {high}" + "1 < 2")
    assert low < high, 1 < 2
    # a comment: 1 < 2
    best: 1 < 2 = low
    for index, item in enumerate(items):
        é = item
        if é >= best and index:
            best = é
    return best


def after(x):
    return x < 1
'''


def test_only_lines_that_affect_the_functions_behaviour_are_changed() -> None:
    found = mutations(SOURCE, "f")
    assert {SOURCE.split("\n")[one.line - 1] for one in found} <= {
        "    if low > high:",
        "    best: 1 < 2 = low",
        "    for index, item in enumerate(items):",
        "        é = item",
        "        if é >= best and index:",
        "            best = é",
        "    return best",
    }


def test_mutations_are_ordered_distinct_valid_and_change_one_line() -> None:
    found = mutations(SOURCE, "f")
    assert found == mutations(SOURCE, "f")
    assert [one.start_byte for one in found] == sorted(one.start_byte for one in found)
    texts = [one.apply(SOURCE) for one in found]
    assert len(set(texts)) == len(texts)
    for one, text in zip(found, texts, strict=True):
        ast.parse(text)
        assert one.operator in OPERATORS
        old, new = SOURCE.split("\n"), text.split("\n")
        assert old[one.line - 1] == one.before_line
        if len(old) == len(new):
            assert [at for at in range(len(old)) if old[at] != new[at]] == [one.line - 1]
            assert new[one.line - 1] == one.after_line
        else:
            assert (one.operator, one.after_line) == ("statement", "")
            assert old[: one.line - 1] + old[one.line :] == new


def test_a_variable_is_only_swapped_for_a_bound_one_of_similar_use() -> None:
    source = "def f(items, others, n):\n    for i in range(n):\n        x = items[i]\n    return others[n]\n"
    found = changes(source, "variable")
    assert ("x = items[i]", "x = others[i]") in found
    assert ("x = items[i]", "x = items[n]") in found
    assert ("x = items[i]", "x = n[i]") not in found
    assert ("x = items[i]", "x = items[x]") not in found
    assert ("for i in range(n):", "for i in range(i):") not in found


METHODS = """class A:
    class B:
        @staticmethod
        def f(a):
            return a < 1

    def f(self):
        return self.g > 2


def f(a):
    return a == 3
"""


@pytest.mark.parametrize(
    ("name", "before"), [("f", "return a == 3"), ("A.f", "return self.g > 2"), ("A.B.f", "return a < 1")]
)
def test_methods_are_named_with_their_class(name: str, before: str) -> None:
    assert {one.before_line.strip() for one in mutations(METHODS, name)} == {before}


@pytest.mark.parametrize("name", ["A.g", "B.f", "C.f", "f.f"])
def test_a_missing_method_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"no method '{name}'"):
        mutations(METHODS, name)


def test_a_missing_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="no module-level function 'g'"):
        mutations("def f():\n    def g(): pass\n", "g")
