"""The tutorial for authors: its files and commands, in order, in a fresh virtual environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from installed import install, run

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
#: Step by step: its text, and its blocks as pairs of language and text.
STEPS = [
    (text, re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
]
#: What commands are found to say.
SAYS = {
    "python -m pytest": r"=+ \d\d passed in ",
    "envkit play stock-room": r"FAIL, reward 0",
    "envkit tasks check --env stock-room": r"train: 28 tasks .* 0 broken\nheldout: 16 tasks .* 0 broken\n",
    "envkit audit stock-room": r"(?s)\A(pass [^\n]*\n){11}certificate: ",
}


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    """Programs of a fresh virtual environment with envkit."""
    (tmp_path / "installed").mkdir()
    return install(tmp_path / "installed", "envkit-rl")


def test_it_leads_to_an_environment_that_passes(bin_: Path, tmp_path: Path) -> None:
    here = tmp_path
    variables = {"PATH": f"{bin_}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    left: list[str] = []
    for text, blocks in STEPS:
        replaced = re.findall(r"[Rr]eplace\s+`([\w/]+\.py)`", text)
        for language, block in blocks:
            if language == "sh":
                for command in block.splitlines():
                    if command.startswith("cd "):
                        here /= command.removeprefix("cd ")
                    elif command.startswith("envkit train"):
                        left.append(command)
                    else:
                        said = run("bash", "-c", command, cwd=here, said="done()\n", **variables)
                        assert re.search(SAYS.get(command, ""), said), said
            elif language == "python" and replaced:
                file = here / replaced.pop()
                assert file.exists()
                file.write_text(block)
            elif language == "python":
                file = here / "stock_room" / "env.py"
                honest = file.read_text()
                file.write_text(f"{honest}\n{block}")
            else:
                said = run("envkit", "audit", "stock-room", cwd=here, fails=True, **variables)
                assert block.removesuffix("...\n") in said
                file.write_text(honest)
        assert not replaced
    assert left == ["envkit train --env stock-room --minutes 20"]
    assert [path.name for path in (here / "dist").iterdir()] == ["stock_room-0.1.0-py3-none-any.whl"]
