"""What a test program looks at, answered inside a sandbox by `envkit.grading.worker`; stdlib only.

It shares a process with hostile code, as the worker does, so it holds no value that the program should see
where the host can compare; see `envkit.environments.code_editor.formats.asserts`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

#: What is run, in one namespace: the file under question, then the test program, which calls `note`.
PROGRAM, TESTS = "solution.py", "tests.py"

_seen: dict[int, list[Any]] = {}
_ended: list[BaseException | None] = []


def look(place: int, source: str) -> list[Any]:
    """All that one place of the test program saw, in order. The first call runs the program.

    Args:
        place: its number.
        source: its expression, for people who read of the call.

    Raises:
        BaseException: what the program or its tests raised.
    """
    if not _ended:
        _ended.append(_run())
    if _ended[0] is not None:
        raise _ended[0]
    return _seen.get(place, [])


def note(place: int, value: Any) -> None:
    """Keep a value as it is now: the tests may go on to change it."""
    _seen.setdefault(place, []).append(_kept(value))


def _exact_type(value: object) -> type:
    """The type; an instance of a subclass is kept as it is, for it may do anything when it is made again."""
    return type(value)


def _kept(value: Any) -> Any:
    from collections import Counter, OrderedDict, defaultdict

    kind = _exact_type(value)
    # What it is compared with is a literal, and to ``==`` these are all one.
    if kind in (dict, Counter, OrderedDict, defaultdict):
        return {key: _kept(item) for key, item in value.items()}
    if kind in (set, frozenset):
        return set(value)
    make: Any = kind if kind in (list, tuple) else None
    return make([_kept(item) for item in value]) if make else value


def _run() -> BaseException | None:
    import sys

    codes: list[tuple[str, str]] = []
    for path in (PROGRAM, TESTS):  # both, before any of it runs and can change the other
        with open(path, encoding="utf-8") as file:
            codes.append((path, file.read()))
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        for path, code in codes:
            module.__dict__["__look__"] = note
            if path == TESTS:  # what stands behind ``if __name__ == "__main__"`` is a test as well
                module.__dict__["__name__"] = "__main__"
            exec(compile(code, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # SystemExit too: what a program exits from, its tests did not see
        return error
    return None
