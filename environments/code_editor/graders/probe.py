"""Run a test program in the sandbox and report the values that it sees. Standard library only.

`envkit.sandbox.programs.worker` calls it in a process that also runs untrusted code. So it holds no expected
value that the host can compare; see `envkit.environments.code_editor.formats.asserts`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

#: Files that run in one namespace: the edited program, then the test program, which calls `record`.
PROGRAM, TESTS = "solution.py", "tests.py"

_seen: dict[int, list[Any]] = {}
_ended: list[BaseException | None] = []


def probe(place: int, source: str) -> list[Any]:
    """Return the values that one probe of the test program saw, in order. The first call runs both programs.

    Args:
        place: number of the probe.
        source: its expression, which makes the call readable in evidence.

    Raises:
        BaseException: raised by the program or its tests.
    """
    if not _ended:
        _ended.append(_run())
    if _ended[0] is not None:
        raise _ended[0]
    return _seen.get(place, [])


def record(place: int, value: Any) -> None:
    """Store a copy of a value, because the tests may change it later."""
    _seen.setdefault(place, []).append(_copy(value))


def _exact_type(value: object) -> type:
    """The exact type. An instance of a subclass is not copied, because copying may run its code."""
    return type(value)


def _copy(value: Any) -> Any:
    from collections import Counter, OrderedDict, defaultdict

    kind = _exact_type(value)
    # The expected value is a literal, and ``==`` treats these types as equal.
    if kind in (dict, Counter, OrderedDict, defaultdict):
        return {key: _copy(item) for key, item in value.items()}
    if kind in (set, frozenset):
        return set(value)
    make: Any = kind if kind in (list, tuple) else None
    return make([_copy(item) for item in value]) if make else value


def _run() -> BaseException | None:
    import sys

    codes: list[tuple[str, str]] = []
    for path in (PROGRAM, TESTS):  # read both before either runs and can change the other
        with open(path, encoding="utf-8") as file:
            codes.append((path, file.read()))
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        for path, code in codes:
            module.__dict__["__look__"] = record
            if path == TESTS:  # code under ``if __name__ == "__main__"`` is a test too
                module.__dict__["__name__"] = "__main__"
            exec(compile(code, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # SystemExit too: an exit skips the remaining tests
        return error
    return None
