"""Journal of an agent's API calls, so that a resumed run repeats none that was answered."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

from envkit.agents.chat_completions import Reply
from envkit.errors import StoreError
from envkit.store import Journal
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
        place: what it is for.
        attempt: how many were made for the same turn before it, in earlier runs too.
        repeated: an earlier run was cut off while it waited for the answer to the same request.
    """

    place: RequestId
    attempt: int
    repeated: bool = field(default=False, compare=False)


@final
class RecordedCalls:
    """Contents of a journal of calls.

    Raises:
        StoreError: one is of something else; names it by its number.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.replies: dict[RequestId, Reply] = {}
        #: Requests by episode and turn.
        self.attempts: Counter[tuple[EpisodeKey, int]] = Counter()
        #: CallJournal without an answer, and the most that each may have cost.
        self.cut_off: dict[ApiCall, Usage] = {}
        #: What those with an answer, or a failure, have cost, and in which episode.
        self.ended: list[tuple[EpisodeKey, Usage]] = []
        for number, record in enumerate(records, start=1):
            try:
                self._add(record)
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"record {number} of the calls is not of a call ({error!r})") from error

    @property
    def usages(self) -> list[Usage]:
        """What the calls have cost; of those that were cut off, the most that they may have."""
        return [*(usage for _, usage in self.ended), *self.cut_off.values()]

    def _add(self, record: Mapping[str, Any]) -> None:
        (what,) = record.keys() & {"asked", "answered", "failed"}
        place = RequestId(EpisodeKey(**record[what]["key"]), record[what]["turn"], record["digest"])
        call = ApiCall(place, record[what]["attempt"])
        if what == "asked":
            self.attempts[place.key, place.turn] += 1
            self.cut_off[call] = Usage(**record["most"])
            return
        usage = Usage(**record["usage"])
        self.cut_off.pop(call, None)
        self.ended.append((place.key, usage))
        if what == "answered":
            self.replies[place] = Reply(
                record["text"], record["stop"], usage, record["message"], record["remark"]
            )


@final
class CallJournal:
    """Writes a journal of calls. Thread-safe.

    Args:
        journal: owned by the caller.
        recorded: what it holds already.
    """

    def __init__(self, journal: Journal, recorded: RecordedCalls) -> None:
        self._journal, self._lock = journal, threading.Lock()
        self._attempts = recorded.attempts.copy()
        self._cut_off = {call.place for call in recorded.cut_off}

    def asked(self, place: RequestId, most: Usage) -> ApiCall:
        """Record that a request is about to be made, which may cost ``most``."""
        with self._lock:
            call = ApiCall(place, self._attempts[place.key, place.turn], place in self._cut_off)
            self._attempts[place.key, place.turn] += 1
            self._cut_off.discard(place)
            self._append("asked", call, {"most": asdict(most)})
        return call

    def answered(self, call: ApiCall, reply: Reply) -> None:
        """Record the answer, with all that is needed to go on from it."""
        with self._lock:
            self._append("answered", call, asdict(reply))

    def failed(self, call: ApiCall, reason: str, usage: Usage) -> None:
        """Record that there is no answer, and what that may have cost."""
        with self._lock:
            self._append("failed", call, {"reason": reason, "usage": asdict(usage)})

    def _append(self, what: str, call: ApiCall, more: Mapping[str, Any]) -> None:
        place = call.place
        which = {"key": asdict(place.key), "turn": place.turn, "attempt": call.attempt}
        mark = {"repeated": True} if call.repeated else {}
        self._journal.append({what: which, "digest": place.digest, **more, **mark})
