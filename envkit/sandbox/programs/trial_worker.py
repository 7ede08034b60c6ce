"""Try calls on a trusted program and tell how each ends, inside a sandbox.

Stdlib only, run as ``python -P -S -c SOURCE`` with one JSON job on stdin::

    {"encoder": source of envkit.sandbox.programs.worker,
     "reader": source of envkit.sandbox.programs.child_output,
     "text": module text, "function": NAME, "modules": [NAME, ...], "steps": N, "cpu_s": S,
     "memory_bytes": B, "answer_chars": N, "ladders": [[[[args, kwargs], ...], ...], ...]}

A ladder is a list of rungs, each a list of calls, the cheapest first. It is left at the first rung with a
call that is too costly. Prints a string with one character per call, in order: ``v`` a value, ``r`` an
exception or a value that cannot be compared, ``c`` too costly: more than ``steps`` lines of Python, or more
CPU time than ``cpu_s``; ``-`` not tried. Lines are counted as well as seconds, so that the outcome is the
same on every machine.

The calls run in a forked child. If one kills it, or waits without using CPU time, another child goes on after
that call.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Trace = Callable[[FrameType, str, Any], Any]

#: Children that may be killed before the rest counts as too costly.
MOST_DEATHS = 12


class Exhausted(BaseException):
    """A call ran more lines than allowed."""


def loaded(job: dict[str, Any]) -> Callable[..., Any]:
    """Load the module and return the function, which makes an instance for each call of a method."""
    import sys

    module = type(sys)("solution")
    sys.modules["solution"] = module
    exec(compile(job["text"], "solution.py", "exec", dont_inherit=True), module.__dict__)
    owner, _, method = job["function"].rpartition(".")
    if not owner:
        return module.__dict__[method]
    return lambda *args, **kwargs: getattr(module.__dict__[owner](), method)(*args, **kwargs)


def try_calls(job: dict[str, Any], calls: list[Any], tried: str, write: Callable[[str], None]) -> None:
    """Go on after the calls that were tried; ``write`` one character per call."""
    import importlib
    import json
    import signal
    import sys

    names = {name: importlib.import_module(name) for name in job["modules"]}
    function, left = loaded(job), [0]
    left_ladders = {ladder for (ladder, _), end in zip(calls, tried, strict=False) if end == "c"}

    def count(frame: FrameType, event: str, arg: Any) -> Trace | None:
        if frame.f_code.co_filename == "<worker>":
            return None
        left[0] -= 1
        if left[0] < 0:
            raise Exhausted
        return count

    def end_of(args: list[str], kwargs: dict[str, str]) -> str:
        scope = dict(names)
        left[0] = job["steps"]
        # One call into C can run without end and without a line of Python. Then the timer kills this child.
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        sys.settrace(count)
        try:
            given = [eval(source, scope) for source in args]
            named = {name: eval(source, scope) for name, source in kwargs.items()}
            value = job["encode"](function(*given, **named))
            text = json.dumps([value, job["after"](given, named)])
        except BaseException:
            return "c" if left[0] < 0 else "r"
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_PROF, 0)
        if left[0] < 0:  # the program caught the exception
            return "c"
        return "r" if len(text) > job["answer_chars"] or '"t": "opaque"' in text else "v"

    for ladder, (args, kwargs) in calls[len(tried) :]:
        end = "-" if ladder in left_ladders else end_of(args, kwargs)
        if end == "c":
            left_ladders.add(ladder)
        write(end)


def forked(job: dict[str, Any], calls: list[Any], tried: str) -> str:
    """Return how further calls ended, as a child process reports it."""
    import os
    import resource

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def write(end: str) -> None:
            os.write(writing, end.encode())

        resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            try_calls(job, calls, tried, write)
        finally:
            os._exit(0)
    os.close(writing)
    found = job["read_output"](reading, child).decode()
    os.waitpid(child, 0)
    return found


def main() -> None:
    """Try the calls of the job on stdin."""
    import json
    import sys

    job = json.loads(sys.stdin.read())
    worker: dict[str, Any] = {"__name__": "worker"}
    exec(compile(job["encoder"], "<worker>", "exec", dont_inherit=True), worker)
    job["encode"], job["after"] = worker["encode"], worker["after"]
    exec(compile(job["reader"], "<reader>", "exec", dont_inherit=True), job)
    calls = [(index, call) for index, ladder in enumerate(job["ladders"]) for rung in ladder for call in rung]
    tried = forked(job, calls, "")
    for _ in range(MOST_DEATHS):
        if len(tried) < len(calls):
            tried = f"{tried}c"
            tried += forked(job, calls, tried)
    print(tried.ljust(len(calls), "c"))


if __name__ == "__main__":
    main()
