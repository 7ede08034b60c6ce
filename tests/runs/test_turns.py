"""The number of actions per episode."""

from __future__ import annotations

import pytest
from guess_env import GuessEnv

from envkit.errors import ConfigError
from envkit.runs.folder.turns import turns_of


class Long(GuessEnv):
    id = "long"
    max_turns = 9


def test_the_environments_own_number_is_the_default() -> None:
    assert turns_of([Long]) == turns_of([Long], 0) == 9
    assert turns_of([Long, GuessEnv], 2) == 2


def test_environments_with_different_numbers_need_one_that_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"\(long 9, guess 3\); set max_turns"):
        turns_of([Long, GuessEnv])
