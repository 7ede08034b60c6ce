"""The number of actions per episode: as asked for, or the environments' own."""

from __future__ import annotations

from collections.abc import Iterable

from envkit.env import Env
from envkit.errors import ConfigError


def turns_of(kinds: Iterable[type[Env]], asked: int | None = None) -> int:
    """Return the number of actions per episode of these environments.

    Args:
        kinds: the environments.
        asked: the number that the user asked for; ``None`` or 0 for the environments' own.

    Raises:
        ConfigError: the environments' own numbers differ, and none was asked for.
    """
    if asked:
        return asked
    own = {kind.id: kind.max_turns for kind in kinds}
    if len(set(own.values())) > 1:
        listed = ", ".join(f"{name} {turns}" for name, turns in own.items())
        raise ConfigError(f"the environments have different numbers of turns ({listed}); set max_turns")
    return next(iter(own.values()))
