"""Run a pytest suite on many variants of a checkout; trusted code, inside a sandbox.

Run as ``python -P -S -c SOURCE`` with one JSON job on stdin::

    {"runner": source of envkit.sandbox.programs.suite_worker,
     "reader": source of envkit.sandbox.programs.child_output,
     "packages": PATH, "warm": [MODULE, ...], "hash_seed": "1", "cpu_s": S,
     "memory_bytes": B,
     "files": {PATH: TEXT, ...}, "tests": [PATH, ...], "variants": [{PATH: TEXT, ...}, ...]}

It prints one line per variant, ``{"outcomes": {TEST ID: WORD, ...} or null, "cpu_s": S, "stderr": TEXT}``.
The outcomes are null if the suite did not run to its end.

Each variant runs in a forked child and in its own folder, which is removed afterwards.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

#: Characters kept of what a run says on stderr.
_KEPT = 2000


def run(job: dict[str, Any], variant: dict[str, str], reader: dict[str, Any]) -> dict[str, Any]:
    """The outcomes of one variant, from a child process."""
    import contextlib
    import json
    import os
    import resource
    import shutil
    import signal
    import sys

    here, folder = os.getcwd(), os.path.join(os.getcwd(), "variant")
    for path, text in {**job["files"], **variant}.items():
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    request, errors = os.memfd_create("request"), os.memfd_create("errors")
    os.write(request, json.dumps({"packages": job["packages"], "tests": job["tests"], "token": ""}).encode())
    os.lseek(request, 0, os.SEEK_SET)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            # Files that one variant leaves in HOME or TMPDIR must not affect the next.
            os.environ["TMPDIR"] = os.environ["HOME"] = os.path.join(folder, ".home")
            os.mkdir(os.environ["HOME"])
            os.chdir(folder)
            for place, stream in enumerate((request, writing, errors)):
                os.dup2(stream, place)
            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))
            resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
            exec(compile(job["runner"], "<runner>", "exec", dont_inherit=True), {"__name__": "__main__"})
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.close(writing)
    # Longer than for functions: tests may sleep or wait for child processes.
    report = reader["read_output"](reading, child, 0.5, 40)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, _, used = os.wait4(child, 0)
    os.lseek(errors, max(0, os.fstat(errors).st_size - _KEPT), os.SEEK_SET)
    stderr = os.read(errors, _KEPT).decode(errors="replace")
    for stream in (request, errors):
        os.close(stream)
    os.chdir(here)
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):  # a test removed the permission to empty it
        os.rename(folder, f"{folder}-{child}")
    try:
        outcomes = json.loads(report)["outcomes"]
    except (ValueError, TypeError, KeyError):  # no report, or output of a test instead
        outcomes = None
    return {"outcomes": outcomes, "cpu_s": used.ru_utime + used.ru_stime, "stderr": stderr}


def main() -> None:
    """Answer the job on stdin."""
    import importlib
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
        os.execve(sys.executable, argv, {**os.environ, "PYTHONHASHSEED": job["hash_seed"]})
    reader: dict[str, Any] = {"__name__": "reader"}
    exec(compile(job["reader"], "<reader>", "exec", dont_inherit=True), reader)
    sys.path.append(job["packages"])
    for name in job["warm"]:  # once for all variants
        importlib.import_module(name)
    for variant in job["variants"]:
        print(json.dumps(run(job, variant, reader)), flush=True)


if __name__ == "__main__":
    main()
