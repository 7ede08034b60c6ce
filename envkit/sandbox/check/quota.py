"""Cases about quotas: files of any kind that commands leave in a workspace stay within its limits."""

from __future__ import annotations

from typing import Final

from envkit.errors import ContractError, TooLargeError
from envkit.sandbox import PYTHON_OPTIONS, ExecResult, Limits, Quota, Sandbox
from envkit.sandbox.check.context import MIB, Case, CheckContext, unless

#: A program stops this far beyond the quota, so that it does no harm if nothing enforces the quota.
_BEYOND_MIB: Final = 16
_BEYOND_FILES: Final = 1000
#: Each program prints the amount that it could write, and the name of the error that stopped it.
_FULL: Final = """
import errno, os
def until_full(steps, done=0):
    ended = "nothing"
    try:
        for done in steps: pass
    except OSError as error: ended = errno.errorcode[error.errno]
    print(done, ended, flush=True)
"""
_MANY_FILES: Final = """
def steps(total=0):
    for number in range(MOST):
        file = os.open(f"full-{number}", os.O_WRONLY | os.O_CREAT)
        total += os.write(file, bytes(2**20))
        os.close(file)
        yield total
until_full(steps())
"""
_NO_NAME: Final = """
def steps(total=0):
    for number in range(64):
        file = os.open("gone", os.O_WRONLY | os.O_CREAT)
        os.unlink("gone")
        for _ in range(MOST // 64 + 1):
            total += os.write(file, bytes(2**20))
            yield total
until_full(steps())
"""
_HOLES: Final = """
def steps(total=0):
    for number in range(64):
        file = os.open(f"sparse-{number}", os.O_WRONLY | os.O_CREAT)
        os.truncate(file, (MOST // 64 + 1) * 2**20)
    for number in range(64):
        file = os.open(f"sparse-{number}", os.O_WRONLY)
        for _ in range(MOST // 64 + 1):
            total += os.write(file, bytes(2**20))
            yield total
        os.close(file)
until_full(steps())
"""
_RESERVED: Final = """
def steps(total=0):
    for number in range(MOST):
        file = os.open(f"reserved-{number}", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(file, 0, 2**20)
        os.close(file)
        total += 2**20
        yield total
until_full(steps())
"""
_EMPTY_FILES: Final = """
def steps():
    for number in range(MOST):
        os.close(os.open(f"empty-{number}", os.O_WRONLY | os.O_CREAT))
        yield number + 1
until_full(steps())
"""
_FOLDERS: Final = """
def steps():
    for number in range(MOST):
        os.mkdir("deeper")
        os.chdir("deeper")
        yield number + 1
until_full(steps())
"""
_HARD_LINKS: Final = """
open("one", "w").close()
def steps():
    for number in range(MOST):
        os.link("one", f"link-{number}")
        yield number + 1
until_full(steps())
"""
_SOFT_LINKS: Final = """
def steps():
    for number in range(MOST):
        os.symlink("x" * 4000, f"link-{number}")
        yield number + 1
until_full(steps())
"""
_BEGUN: Final = _MANY_FILES.replace("full-", "begun-")
_CHANGE: Final = """
for name in os.listdir():
    with open(name, "r+b") as file: file.write(b"1")
"""
_DELETE: Final = """
for name in os.listdir(): os.unlink(name)
"""


def _quota(context: CheckContext) -> Quota:
    if context.backend.quota is None:
        raise ContractError("the backend has no quota; expected one in its attribute `quota`")
    return context.backend.quota


def _run(sandbox: Sandbox, quota: Quota, code: str, most: int) -> ExecResult:
    # Files may count as memory. The memory limit is high enough for the workspace to be full first.
    memory_bytes = quota.total_bytes + 256 * MIB
    limits = Limits(
        cpu_s=30, wall_s=60, memory_bytes=memory_bytes, processes=16, disk_bytes=quota.total_bytes // 16 + MIB
    )
    program = _FULL + code.replace("MOST", str(most))
    return sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", program], limits=limits)


def _bytes(code: str) -> Case:
    def case(context: CheckContext) -> str:
        quota = _quota(context)
        most = quota.total_bytes // MIB + _BEYOND_MIB
        with context.backend.create() as sandbox:
            found = _run(sandbox, quota, code, most)
            taken, ended = found.stdout.split() or (b"0", b"")
            return unless(ended == b"ENOSPC" and 0 < int(taken) <= quota.total_bytes, found)

    return case


def _files(code: str) -> Case:
    def case(context: CheckContext) -> str:
        quota = _quota(context)
        with context.backend.create() as sandbox:
            found = _run(sandbox, quota, code, quota.files + _BEYOND_FILES)
            taken, ended = found.stdout.split() or (b"0", b"")
            return unless(ended == b"ENOSPC" and 0 < int(taken) <= quota.files, found)

    return case


def _adds_up(context: CheckContext) -> str:
    quota = _quota(context)
    half = quota.total_bytes // MIB // 2 + 1
    with context.backend.create() as sandbox:
        first = _run(sandbox, quota, _MANY_FILES, half)
        second = _run(sandbox, quota, _MANY_FILES.replace("full-", "more-"), half)
    kept = int(first.stdout.split()[0]) + int(second.stdout.split()[0])
    return unless(b"ENOSPC" in second.stdout and kept <= quota.total_bytes, (first, second))


def _full_for_the_host(context: CheckContext) -> str:
    quota = _quota(context)
    with context.backend.create() as sandbox:
        sandbox.write("kept", b"1")
        _run(sandbox, quota, _MANY_FILES, quota.total_bytes // MIB + _BEYOND_MIB)
        try:
            sandbox.write("more", bytes(2 * MIB))
        except TooLargeError:
            return unless(
                sandbox.read("kept", 1) == b"1" and "more" not in sandbox.export(["more"], 0), "lost"
            )
    return "the host wrote into a full workspace"


def _usable_again(context: CheckContext) -> str:
    quota = _quota(context)
    with context.backend.create() as sandbox:
        for code, most in (
            (_MANY_FILES, quota.total_bytes // MIB + _BEYOND_MIB),
            (_EMPTY_FILES, quota.files + _BEYOND_FILES),
            (_FOLDERS, quota.files + _BEYOND_FILES),
        ):
            _run(sandbox, quota, code, most)
            sandbox.reset()
            sandbox.write("new", b"1")
            found = sandbox.run([sandbox.python, "-c", "import os; print(os.listdir())"])
            if found.stdout != b"['new']\n":
                return f"found {found}"
            sandbox.reset()
    return ""


def _fork(beginning: str, before: str, code: str, *, files: bool = False) -> Case:
    """Make a case: a sandbox runs ``beginning``; its fork runs ``before``, then ``code`` until it is full."""

    def case(context: CheckContext) -> str:
        quota = _quota(context)
        whole, beyond = (quota.files, _BEYOND_FILES) if files else (quota.total_bytes, _BEYOND_MIB * MIB)
        unit = 1 if files else MIB
        began = whole // unit // 8
        with context.backend.create() as sandbox:
            _run(sandbox, quota, beginning, began)
            name = sandbox.snapshot()
            with sandbox.fork(name) as fork:
                for _ in range(2):
                    if before:
                        _run(fork, quota, before, began)
                    found = _run(fork, quota, code, (whole + beyond) // unit)
                    taken, ended = found.stdout.split() or (b"0", b"")
                    kept = 0 if before is _DELETE else began * unit
                    if ended != b"ENOSPC" or not whole // 2 < kept + int(taken) <= whole:
                        return f"found {found}"
                    fork.reset(name)
        return ""

    return case


def _snapshots_fit(context: CheckContext) -> str:
    quota = _quota(context)
    holes = "for number in range(64): os.truncate(os.open(f'hole-{number}', os.O_WRONLY | os.O_CREAT), MOST)"
    with context.backend.create() as sandbox:
        sandbox.write("kept", b"1")
        _run(sandbox, quota, holes, quota.total_bytes // 32)
        try:
            name = sandbox.snapshot()
        except TooLargeError:
            return ""
        sandbox.reset(name)
        return unless(sandbox.read("kept", 1) == b"1", "another file")


QUOTA: Final[dict[str, Case]] = {
    "bounds what all files hold": _bytes(_MANY_FILES),
    "bounds what deleted files hold": _bytes(_NO_NAME),
    "bounds what sparse files hold": _bytes(_HOLES),
    "bounds what is reserved for files": _bytes(_RESERVED),
    "bounds how many files there are": _files(_EMPTY_FILES),
    "bounds how many folders there are": _files(_FOLDERS),
    "bounds how many hard links there are": _files(_HARD_LINKS),
    "bounds how many symlinks there are": _files(_SOFT_LINKS),
    "adds up the files of several commands": _adds_up,
    "reports a full workspace": _full_for_the_host,
    "works after the workspace was full": _usable_again,
    "refuses a snapshot that does not fit": _snapshots_fit,
    "bounds what a fork holds": _fork(_BEGUN, "", _MANY_FILES),
    "bounds what a fork holds that changes all": _fork(_BEGUN, _CHANGE, _MANY_FILES),
    "bounds what a fork holds that deletes all": _fork(_BEGUN, _DELETE, _MANY_FILES),
    "bounds how many files a fork has": _fork(
        _EMPTY_FILES, "", _EMPTY_FILES.replace("empty", "more"), files=True
    ),
    "bounds how many files a fork has that deletes all": _fork(
        _EMPTY_FILES, _DELETE, _EMPTY_FILES, files=True
    ),
}
