"""Environments that a harness plays: the model answers the harness, and the environment's checks grade."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from envkit.env import Env
from envkit.env.authored import ActionResult
from envkit.env.harness.chats import MAX_CHAT_BYTES, Chat, read_request
from envkit.env.harness.relay import Ended, Relay
from envkit.env.harness.spec import Harness
from envkit.errors import ConfigError, ContractError
from envkit.types import Task

#: Requests between two chats that no model answers, such as for the list of models. Then the episode ends.
_MAX_OTHERS = 50
#: Characters of a harness's output in an error.
_SHOWN = 500


def harnessed(kind: type[Env], program: Harness) -> type[Env]:
    """An environment with the tasks and checks of another one, in which a harness does the work.

    The harness runs in the episode's sandbox and works on the files of the workspace. An observation is one
    of its requests, ``{"messages": [...], "tools": [...]}`` in JSON. The action is the model's answer. The
    episode ends with the harness, or after `Harness.max_calls` requests.

    Args:
        kind: the environment. Its checks must read the workspace, because a harness calls no tools.
        program: the harness.

    Raises:
        ConfigError: the environment is played by tools.
    """
    if kind.tools or kind.tools_in_setup:
        raise ConfigError(
            f"environment {kind.id} is played by tools; harness {program.name} works on the files of a "
            "workspace only"
        )

    class Harnessed(kind):
        id = f"{kind.id}@{program.name}"
        harness = program
        system = ""
        baselines = ()
        max_turns = program.max_calls
        packages: ClassVar = (*kind.packages, *program.packages)
        preload: ClassVar = (*kind.preload, *program.preload)
        toolchains: ClassVar = (*kind.toolchains, *program.toolchains)
        _relay: Relay
        _chat: Chat
        _chats: int

        def __init__(self, **options: Any) -> None:
            sizes: dict[str, Any] = {
                "max_observation_bytes": MAX_CHAT_BYTES,
                "max_action_bytes": MAX_CHAT_BYTES,
            }
            super().__init__(**{**sizes, **options})

        @classmethod
        def graded_as(cls) -> type[Env]:
            return kind.graded_as()

        @classmethod
        def oracle(cls, task: Task) -> Sequence[str]:
            raise ContractError(f"environment {cls.id} has no oracle: nobody knows what {program.name} asks")

        def setup(self, task: Task) -> str:
            super().setup(task)
            self._chats = 0
            until_s = time.monotonic() + program.timeout_s
            self._relay = Relay(self.sandbox, program, kind.brief(task))
            if (ended := self._next(until_s)) is not None:
                raise ContractError(
                    f"harness {program.name} asked no model: {ended.reason}; its last output: "
                    f"{' '.join(ended.output.split())[-_SHOWN:] or '-'}"
                )
            return self._chat.observation

        def apply(self, action: str) -> ActionResult:
            until_s = time.monotonic() + program.timeout_s
            self._relay.answer(self._chat.answer(action), program.timeout_s)
            ended = self._next(until_s)
            if ended is None and self.turns_left:
                return ActionResult(self._chat.observation)
            self._relay.close()  # nothing may change the files while they are graded
            return ActionResult("" if ended is None else ended.reason, done=ended is not None)

        def _next(self, until_s: float) -> Ended | None:
            """Go on to the harness's next request for a chat; or return how it has ended.

            Args:
                until_s: latest time of that request, by `time.monotonic`; then the harness is ended.
            """
            for _ in range(_MAX_OTHERS):
                event = self._relay.event
                if isinstance(event, Ended):
                    if time.monotonic() < until_s:
                        return event
                    return Ended(f"it asked no model within {program.timeout_s:g} s", event.output)
                found = read_request(event, self._chats)
                if isinstance(found, Chat):
                    self._chat = found
                    self._chats += 1
                    return None
                self._relay.answer(found, max(until_s - time.monotonic(), 0))
            return self._relay.end(f"it sent {_MAX_OTHERS} requests that no model answers")

    Harnessed.__module__ = kind.__module__
    return Harnessed
