"""The image that containers are made of: envkit's own, or one that an environment names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envkit.sandboxes._rootfs.rootfs import ENVIRONMENT, PYTHON


@dataclass(frozen=True, slots=True)
class Base:
    """An image in the engine, and what must be known of it to start containers.

    Args:
        image: its name or id.
        python: path of its interpreter.
        folders: its folders that hold files. Containers share a copy of each.
        files: number of files in these folders, at most.
        environment: of commands.
        pinned: see `envkit.sandbox.Lock.image`.
    """

    image: str
    python: str = PYTHON
    folders: tuple[str, ...] = ("/usr",)
    files: int = 8_192
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT, hash=False)
    pinned: str = ""
