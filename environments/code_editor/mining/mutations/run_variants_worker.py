"""Make the same calls to many variants of a module; trusted code, inside a sandbox.

Stdlib only, run as ``python -P -S -c SOURCE`` with one JSON job on stdin::

    {"encoder": source of envkit.sandbox.programs.worker,
     "reader": source of envkit.sandbox.programs.child_output,
     "hash_seed": "1", "steps": N, "cpu_s": S, "memory_bytes": B,
     "batches": [{"function": NAME, "modules": [NAME, ...], "calls": [[args, kwargs], ...],
                  "variants": [TEXT, ...], "all_calls": false}, ...]}

It prints one line per variant: a list with one answer per call. The list is shorter if the variant did not
load or died, and empty if the first variant did not answer every call. An answer has the form of the grading
worker's, or is ``{"hang": true}`` for a call that ran more than ``steps`` lines of Python, or ``null`` for a
call that was skipped because the first variant gave no value. Lines are counted instead of seconds, so that
the outcome is the same on every machine.

Each variant runs in a forked child, so that it cannot affect the others. A child that sleeps for ever uses no
CPU time. It is killed once its CPU clock has not advanced for several checks.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Trace = Callable[[FrameType, str, Any], Any]


class Exhausted(BaseException):
    """A call ran more lines than allowed."""


def respond(
    job: dict[str, Any], batch: dict[str, Any], text: str, wanted: list[bool], write: Callable[[str], None]
) -> None:
    """Load one variant and ``write`` its answers, a line of JSON each."""
    import importlib
    import json
    import signal
    import sys
    from functools import partial

    encode, after = job["encode"], job["after"]
    names = {name: importlib.import_module(name) for name in batch["modules"]}
    left = [0]

    def count(frame: FrameType, event: str, arg: Any) -> Trace | None:
        if frame.f_code.co_filename == "<worker>":
            return None
        left[0] -= 1
        if left[0] < 0:
            raise Exhausted
        return count

    def limited(work: Callable[[], Any]) -> Any:
        left[0] = job["steps"]
        # One call into C can run without end and without a line of Python. Then the timer kills this child.
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        sys.settrace(count)
        try:
            return work()
        except BaseException as error:
            return {"hang": True} if left[0] < 0 else {"raises": type(error).__name__}
        finally:
            sys.settrace(None)

    module = type(sys)("solution")
    sys.modules["solution"] = module
    # Not counted, because it may import much of the standard library. A failure ends this child silently.
    exec(compile(text, "solution.py", "exec", dont_inherit=True), module.__dict__)

    def answer(call: tuple[list[str], dict[str, str]]) -> dict[str, Any]:
        scope = dict(names)
        args = [eval(source, scope) for source in call[0]]
        kwargs = {name: eval(source, scope) for name, source in call[1].items()}
        owner, _, name = batch["function"].rpartition(".")
        function = getattr(module.__dict__[owner](), name) if owner else module.__dict__[name]
        value = encode(function(*args, **kwargs))
        return {"value": value, "after": after(args, kwargs)}

    for ask, call in zip(wanted, batch["calls"], strict=True):
        write(json.dumps(limited(partial(answer, call)) if ask else None))


def forked(job: dict[str, Any], batch: dict[str, Any], text: str, wanted: list[bool]) -> list[Any]:
    """The answers of one variant, from a child process."""
    import json
    import os
    import resource

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def write(line: str) -> None:
            os.write(writing, line.encode() + b"\n")

        resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            respond(job, batch, text, wanted, write)
        finally:
            os._exit(0)
    os.close(writing)
    lines = job["read_output"](reading, child).split(b"\n")
    os.waitpid(child, 0)
    return [json.loads(line) for line in lines[:-1]]


def main() -> None:
    """Answer the job on stdin."""
    import json
    import os
    import sys

    source = sys.stdin.read()
    job = json.loads(source)
    if os.environ.get("PYTHONHASHSEED") != job["hash_seed"]:
        # An interpreter fixes its hash seed at start, so start a second one and pass the job on.
        again = os.memfd_create("job")
        os.write(again, source.encode())
        os.lseek(again, 0, os.SEEK_SET)
        os.dup2(again, 0)
        argv = [sys.executable, "-P", "-S", "-c", sys.orig_argv[-1]]
        os.execve(sys.executable, argv, {"PYTHONHASHSEED": job["hash_seed"]})
    worker: dict[str, Any] = {"__name__": "worker"}
    exec(compile(job["encoder"], "<worker>", "exec", dont_inherit=True), worker)
    job["encode"], job["after"] = worker["encode"], worker["after"]
    exec(compile(job["reader"], "<reader>", "exec", dont_inherit=True), job)
    for batch in job["batches"]:
        wanted = [True] * len(batch["calls"])
        for index, text in enumerate(batch["variants"]):
            found = forked(job, batch, text, wanted) if any(wanted) else []
            print(json.dumps(found))
            if index == 0 and not batch["all_calls"]:
                wanted = [at < len(found) and "value" in found[at] for at in range(len(wanted))]
                # A function that hangs on a call or dies becomes no task, so its variants are not run.
                if len(found) < len(wanted) or any("hang" in one for one in found):
                    wanted = [False] * len(wanted)


if __name__ == "__main__":
    main()
