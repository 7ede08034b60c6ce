"""Journal of an agent's API calls. A resumed run does not repeat answered calls."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

from envkit.agents.chat_completions import ChatAnswer
from envkit.errors import StoreError
from envkit.runtime.store import Journal
from envkit.types import EpisodeKey, Usage


@dataclass(frozen=True, slots=True)
class RequestId:
    """Identity of a request: its episode, its turn and the digest of its body."""

    key: EpisodeKey
    turn: int
    digest: str


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One request.

    Args:
        place: the episode and turn that it is for.
        attempt: number of earlier requests for the same turn, in all runs.
        repeated: True if an earlier run ended while it waited for the answer to the same request.
    """

    place: RequestId
    attempt: int
    repeated: bool = field(default=False, compare=False)


@final
class RecordedCalls:
    """Contents of a journal of calls.

    Raises:
        StoreError: a record is not of a call; the message has its number.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.replies: dict[RequestId, ChatAnswer] = {}
        #: Number of requests by episode and turn.
        self.attempts: Counter[tuple[EpisodeKey, int]] = Counter()
        #: Calls whose outcome is unknown, with the highest usage that each may have.
        self.unanswered: dict[ApiCall, Usage] = {}
        #: Episode and usage of every answered or failed call.
        self.ended: list[tuple[EpisodeKey, Usage]] = []
        for number, record in enumerate(records, start=1):
            try:
                self._add(record)
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"record {number} of the calls is not of a call ({error!r})") from error

    @property
    def usages(self) -> list[Usage]:
        """Usage of every call; for a call whose outcome is unknown, the highest possible."""
        return [*(usage for _, usage in self.ended), *self.unanswered.values()]

    def _add(self, record: Mapping[str, Any]) -> None:
        (event,) = record.keys() & {"asked", "answered", "failed"}
        place = RequestId(EpisodeKey(**record[event]["key"]), record[event]["turn"], record["digest"])
        call = ApiCall(place, record[event]["attempt"])
        if event == "asked":
            self.attempts[place.key, place.turn] += 1
            self.unanswered[call] = Usage(**record["most"])
            return
        usage = Usage(**record["usage"])
        self.unanswered.pop(call, None)
        self.ended.append((place.key, usage))
        if event == "answered":
            self.replies[place] = ChatAnswer(
                record["text"], record["stop"], usage, record["message"], record["remark"]
            )


@final
class CallJournal:
    """Writes a journal of calls. Thread-safe.

    Args:
        journal: owned by the caller.
        recorded: the journal's present contents.
    """

    def __init__(self, journal: Journal, recorded: RecordedCalls) -> None:
        self._journal, self._lock = journal, threading.Lock()
        self._attempts = recorded.attempts.copy()
        self._unanswered = {call.place for call in recorded.unanswered}

    def asked(self, place: RequestId, most: Usage) -> ApiCall:
        """Record that a request is about to be sent; ``most`` is its highest possible usage."""
        with self._lock:
            call = ApiCall(place, self._attempts[place.key, place.turn], place in self._unanswered)
            self._attempts[place.key, place.turn] += 1
            self._unanswered.discard(place)
            self._append("asked", call, {"most": asdict(most)})
        return call

    def answered(self, call: ApiCall, reply: ChatAnswer) -> None:
        """Record the answer, with everything that a resumed run needs."""
        with self._lock:
            self._append("answered", call, asdict(reply))

    def failed(self, call: ApiCall, reason: str, usage: Usage) -> None:
        """Record that the request failed, and the usage that may be billed for it."""
        with self._lock:
            self._append("failed", call, {"reason": reason, "usage": asdict(usage)})

    def _append(self, event: str, call: ApiCall, content: Mapping[str, Any]) -> None:
        place = call.place
        identity = {"key": asdict(place.key), "turn": place.turn, "attempt": call.attempt}
        repeated = {"repeated": True} if call.repeated else {}
        self._journal.append({event: identity, "digest": place.digest, **content, **repeated})
