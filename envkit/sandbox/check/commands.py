"""Cases about commands: their arguments, environment and input, and their results."""

from __future__ import annotations

import json
from typing import Final

from envkit.sandbox import Limits, StopReason
from envkit.sandbox.check.context import Case, CheckContext, refused, unless

#: Variables that a command's environment may contain. Any other could hold a secret.
_VARIABLES: Final = {
    *("PATH", "HOME", "LANG", "TZ", "PWD", "LC_CTYPE", "SHLVL", "OLDPWD", "_", "HOSTNAME", "OMP_NUM_THREADS")
}
_LINGER: Final = """
import os, time
if os.fork() == 0:
    time.sleep(60)
print("done", flush=True)
os._exit(0)
"""


def _runs(context: CheckContext) -> str:
    result = context.python("import sys; print(sys.stdin.read()[::-1]); sys.exit(7)", stdin=b"abc")
    return unless(result.exit == 7 and result.stdout == b"cba\n", result)


def _home_is_workspace(context: CheckContext) -> str:
    return unless(context.seen["home"] == context.seen["cwd"], (context.seen["home"], context.seen["cwd"]))


def _environment(context: CheckContext) -> str:
    found = [name for name in context.seen["environment"] if not name.startswith(("PYTHON", "ENVKIT_"))]
    brings_own = bool(context.backend.contents.image)
    return unless(brings_own or set(found) <= _VARIABLES, found)


def _arguments(context: CheckContext) -> str:
    given = ["with space", "quote'\"`", "$HOME", "*", "", "ünï\ncode", "-v"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    result = context.sandbox.run([context.sandbox.python, "-Xutf8", "-ISc", code, *given])
    return unless(result.ok and json.loads(result.stdout) == given, result)


def _impossible_words(context: CheckContext) -> str:
    python = context.sandbox.python
    words = ("a\0b", "\ud800")
    passed = [
        word for word in words if not refused(lambda word=word: context.sandbox.run([python, "-c", "", word]))
    ]
    return unless(not passed, passed)


def _no_stdin(context: CheckContext) -> str:
    result = context.python("import sys; print(repr(sys.stdin.read()))")
    return unless(result.stdout == b"''\n", result)


def _unread_stdin(context: CheckContext) -> str:
    result = context.python("pass", stdin=bytes(2**20))
    return unless(result.ok, result)


def _large_stdin(context: CheckContext) -> str:
    result = context.python("import sys; print(len(sys.stdin.buffer.read()))", stdin=bytes(2**20))
    return unless(result.stdout == b"1048576\n", result)


def _streams(context: CheckContext) -> str:
    result = context.python("import os; os.write(1, b'o\\0\\xff'); os.write(2, b'e')")
    return unless((result.stdout, result.stderr) == (b"o\0\xff", b"e"), result)


def _silent(context: CheckContext) -> str:
    result = context.python("pass")
    return unless(result.ok and (result.stdout, result.stderr) == (b"", b""), result)


def _failed(context: CheckContext) -> str:
    result = context.python("raise SystemExit(42)")
    return unless((result.stop, result.exit) == (StopReason.EXITED, 42) and not result.ok, result)


def _signaled(context: CheckContext) -> str:
    result = context.python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    return unless((result.stop, result.exit) == (StopReason.SIGNALED, None), result)


def _missing(context: CheckContext) -> str:
    result = context.sandbox.run(["no-such-command"])
    return unless((not result.ok and b"no-such-command" in result.stderr) or result.exit == 127, result)


def _same_hashes(context: CheckContext) -> str:
    first, second = (
        context.sandbox.run([context.sandbox.python, "-c", "print(hash('a'))"]).stdout for _ in "ab"
    )
    return unless(first == second, (first, second))


def _cpu_time(context: CheckContext) -> str:
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    used = context.python(burn).cpu_s
    return unless(0.1 <= used <= 2, f"{used} CPU seconds for 0.2")


def _wall_time(context: CheckContext) -> str:
    took = context.python("import time; time.sleep(0.2)").wall_s
    return unless(took >= 0.2, f"{took} seconds for 0.2")


def _lingering(context: CheckContext) -> str:
    result = context.python(_LINGER, limits=Limits(wall_s=30))
    return unless(result.ok and result.stdout == b"done\n" and result.wall_s < 25, result)


def _many(context: CheckContext) -> str:
    results = [context.python(f"print({number})").stdout for number in range(10)]
    return unless(results == [f"{number}\n".encode() for number in range(10)], results)


COMMANDS: Final[dict[str, Case]] = {
    "runs Python with stdin and an exit status": _runs,
    "home is the workspace": _home_is_workspace,
    "starts with a bare environment": _environment,
    "passes arguments unchanged": _arguments,
    "refuses arguments that no command can take": _impossible_words,
    "closes an empty stdin": _no_stdin,
    "does not wait for stdin to be read": _unread_stdin,
    "passes a large stdin": _large_stdin,
    "separates stdout from stderr, byte by byte": _streams,
    "adds nothing to the output": _silent,
    "reports the exit status": _failed,
    "distinguishes a signal from an exit": _signaled,
    "reports a missing command as the command's failure": _missing,
    "hashes the same on every run": _same_hashes,
    "measures CPU time": _cpu_time,
    "measures wall time": _wall_time,
    "does not wait for processes that a command leaves behind": _lingering,
    "runs many commands": _many,
}
