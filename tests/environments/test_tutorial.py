"""The tutorial's files and commands work, in order, in a fresh virtual environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from installed import install, run

pytestmark = [pytest.mark.slow, pytest.mark.long]  # installs, audits and tests a package

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
#: Numbered sections of the tutorial: the text, and its code blocks as pairs of language and text.
STEPS = [
    (text, re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for text in re.split(r"^## (?=\d)", PAGE, flags=re.MULTILINE)[1:]
]
#: Patterns of the output of commands.
EXPECTED_OUTPUT = {
    "python -m pytest": r"=+ \d\d passed, 3 skipped in ",
    "envkit play stock-room": r"FAIL, reward 0",
    "envkit tasks check --env stock-room": r"train: 28 tasks .* 0 broken\nheldout: 16 tasks .* 0 broken\n",
    "envkit audit stock-room -o stock_room/certificate.json": (
        r"(?s)\A((pass|n/a ) [^\n]*\n){31}pass time per step: [^\n]*\ncertificate: "
    ),
}
#: In place of the audit, which plays a thousand episodes, its one check that the tutorial makes fail.
ONE_CHECK = "envkit audit stock-room --only 'doing nothing earns nothing'"


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    """The folder of programs of a fresh virtual environment with envkit."""
    (tmp_path / "installed").mkdir()
    return install(tmp_path / "installed", "envkit-rl")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_following_the_tutorial_gives_an_environment_that_passes_its_audit(
    bin_: Path, tmp_path: Path, whole: bool
) -> None:
    here = tmp_path
    variables = {"PATH": f"{bin_}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    not_run: list[str] = []
    for text, blocks in STEPS:
        replaced = re.findall(r"[Rr]eplace\s+`([\w/]+\.py)`", text)
        for language, block in blocks:
            if language == "sh":
                for command in block.splitlines():
                    if command.startswith("cd "):
                        here /= command.removeprefix("cd ")
                    elif command.startswith("envkit train"):
                        not_run.append(command)
                    elif command.startswith("envkit audit") and not whole:
                        output = run("bash", "-c", ONE_CHECK, cwd=here, **variables)
                        assert output.startswith("pass doing nothing earns nothing: "), output
                        (here / "stock_room" / "certificate.json").write_text("{}")  # goes into the wheel
                    else:
                        output = run("bash", "-c", command, cwd=here, stdin="done()\n", **variables)
                        assert re.search(EXPECTED_OUTPUT.get(command, ""), output), output
            elif language == "python" and replaced:
                file = here / replaced.pop()
                assert file.exists()
                file.write_text(block)
            elif language == "python":
                file = here / "stock_room" / "env.py"
                honest = file.read_text()
                file.write_text(f"{honest}\n{block}")
            else:
                command = "envkit audit stock-room" if whole else ONE_CHECK
                output = run("bash", "-c", command, cwd=here, fails=True, **variables)
                assert block.removesuffix("...\n") in output
                file.write_text(honest)
        assert not replaced
    assert not_run == ["envkit train --env stock-room --minutes 20"]
    assert [path.name for path in (here / "dist").iterdir()] == ["stock_room-0.1.0-py3-none-any.whl"]
