"""The attack corpus is played whole in the default sandbox, and one attack of each kind in the others.

Attacks aim at grading, which is the same in every sandbox. Isolation is tested
for each. Nightly runs play the whole corpus everywhere, and look everywhere for
what grows over many episodes.
"""

from __future__ import annotations

import pytest

from envkit.environments.code_editor.attacks import ATTACKS, CORRECT

FIRST_OF_KIND = {kind: attack.name for attack in reversed(ATTACKS) for kind in [attack.kind]}
SMOKE = {*FIRST_OF_KIND.values(), *(variant.name for variant in CORRECT[:3])}


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("backend") not in ("bubblewrap", "docker"):
            continue
        program = params.get("attack") or params.get("variant")
        if "cycles" in params or (program is not None and program.name not in SMOKE):
            item.add_marker(pytest.mark.nightly)
