"""Run the command line: in a process of its own, or in this one, which has loaded torch and a sandbox."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

from envkit.cli.main import run

Ended = subprocess.CompletedProcess[str]


def envkit(*words: str, cwd: Path) -> Ended:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*words])
    return Ended(words, code, out.getvalue(), err.getvalue())


def envkit_process(*words: str, cwd: Path, stdin: str = "") -> Ended:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "envkit.cli", *words]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
