"""Control groups on this machine, as tests look for those left behind."""

from __future__ import annotations

import os
from pathlib import Path


def control_groups(prefix: str) -> list[Path]:
    """Return all control groups whose name begins with ``prefix``, in every hierarchy.

    Other tests remove groups meanwhile: ``os.walk`` passes over one that vanishes, ``Path.rglob`` raises.
    """
    return [
        Path(parent, name)
        for parent, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(prefix)
    ]
