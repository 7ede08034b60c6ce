"""Slicing a function out of its package into a self-contained module."""

from __future__ import annotations

import contextlib
import textwrap
from typing import Any

import pytest

from envkit.environments.code_editor.mining.docstrings import summary, without_docstrings
from envkit.environments.code_editor.mining.library import Library
from envkit.environments.code_editor.mining.slicing import MAX_CLOSURE, Slice, Slicer, Unclosed


def slice_out(function: str, **modules: str) -> Slice:
    """Slice ``function`` out of module ``pkg.main``."""
    sources = {f"pkg.{name}": textwrap.dedent(source) for name, source in modules.items()}
    sources["pkg"] = sources.pop("pkg.init", "")
    return Slicer(Library("pkg", "1", sources)).slice("pkg.main", function)


def run(found: Slice, *args: Any) -> Any:
    scope: dict[str, Any] = {"__name__": "solution", "__package__": ""}
    exec(compile(found.text, "solution.py", "exec"), scope)
    return scope[found.function](*args)


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    return f\"{'\u00a0'.join(a)}\"\n",  # Python 3.11 cannot write it out
        "# a\rX = 1\ndef f(a):\n    return a\n",
    ],
)
def test_what_cannot_be_written_out_is_left_out_or_written(source: str) -> None:
    slicer = Slicer(Library("pkg", "1", {"pkg": "", "pkg.main": source}))
    for module, node in slicer.functions():
        with contextlib.suppress(Unclosed):
            assert "def f(a)" in slicer.slice(module, node.name).text


def test_a_slice_contains_exactly_the_definitions_it_needs() -> None:
    found = slice_out(
        "area",
        main='''
            """Module text that goes away."""
            import math
            import json
            __all__ = ["area"]
            FACTOR = 2
            def helper(x):
                """Goes away."""
                return scale(x) * FACTOR
            def unused():
                return json.dumps(1)
            def scale(x):
                return math.floor(x)
            def area(x):
                """Keep this. And this.

                Not this.
                """
                return helper(x)
        ''',
    )
    assert run(found, 2.5) == 4
    assert "unused" not in found.text
    assert "json" not in found.text
    assert "oes away" not in found.text
    assert '"""Keep this. And this."""' in found.shown
    assert found.shown in found.text
    assert found.text.index("FACTOR = 2") < found.text.index("def helper") < found.text.index("def area")


@pytest.mark.parametrize(
    "statement",
    ["from .other import twice", "from pkg.other import twice", "from .other import twice as twice"],
)
def test_definitions_from_other_modules_are_included(statement: str) -> None:
    other = "BASE = 1\ndef twice(x):\n    return 2 * x + BASE\n"
    assert run(slice_out("f", main=f"{statement}\ndef f(x):\n    return twice(x)\n", other=other), 3) == 7


def test_renamed_star_imported_and_reexported_names_are_included() -> None:
    main = (
        "from . import double\nfrom .third import thrice as much\ndef f(x):\n    return double(x) + much(x)\n"
    )
    found = slice_out(
        "f",
        init="from .other import *\n",
        main=main,
        other="def double(x):\n    return 2 * x\n",
        third="def thrice(x):\n    return 3 * x\n",
    )
    assert run(found, 1) == 5


def test_circular_imports_are_refused() -> None:
    with pytest.raises(Unclosed, match="helper is imported in a circle"):
        slice_out(
            "f",
            main="from pkg.a import helper\ndef f(x): return helper(x)",
            a="from pkg.b import helper",
            b="from pkg.a import helper",
        )


def test_a_too_deeply_nested_module_is_ignored() -> None:
    deep = "VALUE = " + "+".join(["1"] * 5000)
    assert run(slice_out("f", main="def f(x): return x + 1", other=deep), 1) == 2
    with pytest.raises(Unclosed, match=r"pkg\.other is not part of the package"):
        slice_out("f", main="from pkg.other import VALUE\ndef f(x): return x + VALUE", other=deep)


@pytest.mark.parametrize("text", ["print 'two'", "{{ template }}}", "\0"])
def test_a_module_that_is_not_python_is_ignored(text: str) -> None:
    assert run(slice_out("f", main="def f(x): return x + 1", other=text), 1) == 2


def test_attributes_of_the_package_itself_are_resolved() -> None:
    found = slice_out(
        "f",
        init="from .other import double, half\n",
        main="import pkg as p\ndef f(x, double=1):\n    return p.double(x) + double\n",
        other="import pkg as p\ndef double(x):\n    return p.half(4 * x)\ndef half(x):\n    return x // 2\n",
    )
    assert run(found, 3) == 7


def test_definitions_are_in_import_order() -> None:
    main = "from .other import NONE\ndef a(x, y=NONE):\n    return b(x)\ndef b(x):\n    return x\n"
    assert run(slice_out("a", main=main, other="NONE = object()\n"), 5) == 5


def test_annotations_keep_standard_imports_and_drop_others() -> None:
    found = slice_out(
        "f",
        main="""
            import typing as t
            from elsewhere import Thing
            if t.TYPE_CHECKING:
                from _typeshed import Other
            T = t.TypeVar("T")
            @t.overload
            def f(x: int) -> int: ...
            @t.overload
            def f(x: str) -> str: ...
            def f(x: T | Thing, y: "Other" = 1) -> t.List[T]:
                return [x, y]
        """,
    )
    assert run(found, 3) == [3, 1]
    assert "import typing as t" in found.text
    assert "elsewhere" not in found.text


def test_decorators_classes_and_guarded_imports_are_included() -> None:
    found = slice_out(
        "f",
        main='''
            import functools
            try:
                from .fast import make
                SENTINEL = make()
            except ImportError:
                SENTINEL = None
            def deco(g):
                return functools.wraps(g)(lambda x: g(x) + 1)
            class Box:
                """Goes."""
                def __init__(self, x):
                    self.x = x
            @deco
            def f(x):
                return Box(x).x if SENTINEL is None else 0
        ''',
    )
    assert run(found, 1) == 2


@pytest.mark.parametrize(
    ("main", "reason"),
    [
        ("import numpy\ndef f(x):\n    return numpy.array(x)", "third-party module numpy"),
        ("def f(x):\n    import numpy\n    return x", "imports numpy inside"),
        ("from .absent import g\ndef f(x):\n    return g(x)", "absent is not part"),
        ("def f(x):\n    return missing(x)", "missing is not defined"),
        ("a = 1\na = 2\ndef f(x):\n    return a", "bound more than once"),
        ("import pkg\ndef f(x):\n    return pkg", "used as a value"),
        ("import time\ndef f(x):\n    return time.time()", "differently from time to time"),
        ("def f(x):\n    import random\n    return random.random()", "differently from time to time"),
        (f"A = '{'x' * MAX_CLOSURE}'\ndef f(x):\n    return A", "too much"),
        ("from contextlib import contextmanager\n@contextmanager\ndef f(x):\n    yield x", "decorated"),
        ("async def f(x):\n    return x", "not a plain function"),
        ("from .other import g\ndef h(x):\n    return 1\ndef f(x):\n    return g(x) + h(x)", "two things"),
    ],
)
def test_functions_that_cannot_be_sliced_are_refused_with_the_reason(main: str, reason: str) -> None:
    with pytest.raises(Unclosed, match=reason):
        slice_out("f", main=main, other="def h(x):\n    return 2\ndef g(x):\n    return h(x)\n")


def test_public_functions_are_listed_in_order() -> None:
    sources = {"pkg.b": "def z(): 1\ndef a(): 1\ndef _p(): 1\nclass C: pass\n", "pkg.a": "def y(): 1\n"}
    names = [(module, node.name) for module, node in Slicer(Library("pkg", "1", sources)).functions()]
    assert names == [("pkg.a", "y"), ("pkg.b", "z"), ("pkg.b", "a")]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One line.", "One line."),
        ("Two\n   lines.\n\nMore.", "Two lines."),
        ("Adds.\n>>> add(1)\n2", "Adds."),
        ("Adds numbers\nFor example:\nadd(1)", "Adds numbers"),
        (">>> add(1)", ""),
        ("First sentence. " + "word " * 60, "First sentence."),
        ("word " * 60, "word " * 31 + "..."),
        ('Says "hi" \\ there.', "Says 'hi'  there."),
    ],
)
def test_a_docstring_has_a_summary(docstring: str, expected: str) -> None:
    assert summary(docstring).replace("word...", "word ...") == expected


def test_docstrings_are_removed_and_code_is_kept() -> None:
    text = (
        'def f(x):\n    """Long.\n\n    More."""\n\n    s = """no docstring"""\n'
        '    def g():\n        "only"\n    return s'
    )
    assert without_docstrings(text) == (
        'def f(x):\n    s = """no docstring"""\n    def g():\n        pass\n    return s'
    )
    assert without_docstrings(text, "Short.").startswith('def f(x):\n    """Short."""\n\n    s =')
