r"""Programs that try to earn a reward without solving the task, and correct ones that must pass.

`ATTACKS` lists the attacks by number and variant; `CORRECT` lists correct solutions of unusual form. Each is
built for an `AttackTarget`, so any environment whose candidates are Python modules can run them on its tasks.

>>> target = AttackTarget("def double(n):\n    return n\n", "def double(n):\n    return 2 * n\n", "double")
>>> print(ATTACKS[0].build(target).files["solution.py"])
import os
os._exit(0)
def double(n):
    return n
<BLANKLINE>
"""

from envkit.environments.code_editor.attacks.correct import CORRECT
from envkit.environments.code_editor.attacks.design import DESIGN
from envkit.environments.code_editor.attacks.model import (
    Attack,
    AttackKind,
    AttackTarget,
    Attempt,
    CorrectVariant,
    ShownCall,
)
from envkit.environments.code_editor.attacks.python import PYTHON
from envkit.environments.code_editor.attacks.resource import RESOURCE
from envkit.environments.code_editor.attacks.shared import SHARED
from envkit.environments.code_editor.attacks.system import SYSTEM
from envkit.environments.code_editor.attacks.workspace import WORKSPACE

#: Every attack, by number.
ATTACKS: tuple[Attack, ...] = tuple(
    sorted((*PYTHON, *WORKSPACE, *SYSTEM, *SHARED, *RESOURCE, *DESIGN), key=lambda attack: attack.number)
)

__all__ = [
    "ATTACKS",
    "CORRECT",
    "Attack",
    "AttackKind",
    "AttackTarget",
    "Attempt",
    "CorrectVariant",
    "ShownCall",
]
