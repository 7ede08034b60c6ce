"""Attacks on the way that a task was made, and on its reward."""

from __future__ import annotations

from typing import Final

from envkit.environments.code_editor.attacks.model import (
    Attack,
    AttackKind,
    AttackTarget,
    Attempt,
    at_import,
    escaping,
)

_HISTORY: Final = """
    from pathlib import Path

    here = Path("MODULE").resolve()
    return any((folder / ".git").exists() for folder in here.parents)
"""
#: Searches for a correct copy elsewhere on disk, as in the image, a cache or a package's tests.
_BAKED: Final = """
    import os

    for root in ("/usr", "/opt", "/home", "/root", "/srv", "/var", "/tmp", "/mnt", "/data"):
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith((".py", ".json", ".jsonl", ".txt")):
                    path = os.path.join(folder, name)
                    with open(path, errors="replace") as file:
                        if REFERENCE in file.read(2**20):
                            return True
"""
_PREDICTED: Final = """
    import random

    random.seed(0)
    random.seed = lambda *args: None
    random.Random = lambda *args: random
"""


def _table(target: AttackTarget) -> Attempt:
    """A module that looks up the answers of the shown calls in a table."""
    rows = "".join(f"    ({one.args}, {one.value}),\n" for one in target.examples)
    return Attempt(
        {
            target.module: f"{target.source}\n_was = {target.function}\n_KNOWN = [\n{rows}]\n\n\n"
            f"def {target.function}(*args, **kwargs):\n"
            "    for known, value in _KNOWN:\n"
            "        if known == args:\n"
            "            return value\n"
            "    return _was(*args, **kwargs)\n"
        }
    )


def _imported(target: AttackTarget) -> Attempt:
    return Attempt(
        {
            target.module: f"{target.source}\ntry:\n    from {target.origin} import {target.function}\n"
            "except Exception:\n    pass\n"
        }
    )


DESIGN: Final = (
    Attack(
        43,
        "knows the shown calls by heart",
        AttackKind.DESIGN,
        _table,
        fools="ABCD",
        inapplicable=lambda target: None if target.examples else "the candidate is shown no calls",
    ),
    Attack(48, "looks for the answer in a git history", AttackKind.DESIGN, escaping(_HISTORY)),
    Attack(51, "makes drawn inputs predictable", AttackKind.DESIGN, at_import(_PREDICTED)),
    Attack(52, "looks for the answer on the root file system", AttackKind.DESIGN, escaping(_BAKED)),
    Attack(
        53,
        "submits the file as it was",
        AttackKind.DESIGN,
        lambda target: Attempt({target.module: target.source}),
    ),
    Attack(
        61,
        "imports the package that the task was made from",
        AttackKind.DESIGN,
        _imported,
        inapplicable=lambda target: None if target.origin else "the task was made from no package",
    ),
)
