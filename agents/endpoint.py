"""Send one request to an OpenAI-compatible API; return the answer, or the failure and when to retry."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from envkit.agents.cards import Card
from envkit.agents.chat_completions import RequestFailure
from envkit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import openai

_LIMIT_BYTES: Final = 16 * 2**20
_DEPTH: Final = 100
#: Statuses, beside all from 500, of faults that pass; the official client retries the same.
_PASSING = {408, 409, 429}
#: Of gateways that gave up on a model that may have been at work, and is then paid for.
_PAID = {408, 502, 504, 524}
#: Error codes of a provider that will not read a conversation: its way to end that one, and not the run.
_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt", "data_inspection_failed"}
#: Statuses of what may be wrong with one request alone, as one that is too long for the model.
_OF_ONE = {400, 413, 422}
#: How providers say that a conversation does not fit the model; few have a code for it.
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size|limit)|prompt is too long|input token count\b.*\bexceeds",
    re.IGNORECASE,
)


class ProviderError(UsageError):
    """A provider refuses all requests of a kind: the key, the model or a field is wrong."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Retry policy for failed requests.

    Args:
        attempts: requests until a turn is given up, at least 1.
        first_s: seconds before the second; they double from then on.
        most_s: most seconds between two, whatever the provider wants.
    """

    attempts: int = 8
    first_s: float = 2.0
    most_s: float = 120.0

    def delay_s(self, failures: int, retry_after_s: float | None, draw: float) -> float:
        """Seconds to wait after so many failures; ``draw`` in [0, 1) spreads those who failed together.

        >>> [Backoff().delay_s(failures, None, 0.5) for failures in (1, 2, 3)]
        [1.5, 3.0, 6.0]
        """
        own_s = self.first_s * 2 ** (failures - 1) * (0.5 + draw / 2)
        return min(max(own_s, retry_after_s or 0.0), self.most_s)


@final
class Endpoint:
    """The API of a card. Thread-safe; holds connections until it is closed.

    Raises:
        UsageError: the key is missing or cannot be one.
        MissingExtraError: the official client is not installed.
    """

    def __init__(self, card: Card) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtraError("openai", "api") from None
        self._card, self._key = card, _key_of(card)
        client: Any = openai.OpenAI(
            api_key=self._key or "none", base_url=card.base_url, timeout=card.timeout_s, max_retries=0
        )
        # Of the person's environment, and for OpenAI alone; another provider need not learn of them.
        client.organization = client.project = client.admin_api_key = None
        self._client = client

    def close(self) -> None:
        self._client.close()

    def ask(self, request: Mapping[str, Any]) -> object | RequestFailure:
        """The decoded body of the answer, freed of the key and of what is not text, or what went wrong."""
        import httpx2
        import openai

        fields = {**request}
        head = {name: fields.pop(name) for name in ("model", "messages")}
        give_up_at = time.monotonic() + self._card.timeout_s
        data = bytearray()
        try:
            # In pieces: a server that sends a space now and then never runs into the client's own timeout.
            create = self._client.chat.completions.with_streaming_response.create
            with create(**head, extra_body=fields) as answer:
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > _LIMIT_BYTES:
                        return RequestFailure(f"an answer of more than {_LIMIT_BYTES} bytes", billed=True)
                    if time.monotonic() > give_up_at:
                        return self._late()
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            sent = not isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            return self._late(billed=sent)
        except (openai.APIConnectionError, httpx2.RequestError, OSError) as error:
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            sent = not isinstance(cause, httpx2.ConnectError)
            return RequestFailure(self._line(f"no connection ({type(cause).__name__}: {cause})"), billed=sent)
        except openai.APIStatusError as error:
            return self._refused(error)
        try:
            return self._clean(json.loads(data, parse_constant=_refuse))
        except (ValueError, RecursionError) as error:
            return RequestFailure(self._line(f"an answer that is not JSON ({error})"), billed=True)

    def _late(self, *, billed: bool = True) -> RequestFailure:
        return RequestFailure(f"no answer within {self._card.timeout_s:g} s", billed)

    def _refused(self, error: openai.APIStatusError) -> object | RequestFailure:
        card, status, said = self._card, error.status_code, error.body
        if isinstance(said, dict):
            said = cast("dict[str, object]", said).get("message", cast("object", said))
        words = self._line(f"{status}: {said}" if said else str(status))
        if error.code in _FILTERED:
            choice: dict[str, object] = {"message": {}, "finish_reason": "content_filter"}
            return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        if (status in _PASSING or status >= 500) and error.code != "insufficient_quota":
            wanted_s = retry_after_s(error.response.headers, time.time())
            return RequestFailure(words, billed=status in _PAID, retry_after_s=wanted_s)
        if status in (401, 403):
            whose = f"the key in {card.key_env}" if card.key_env else "a request without a key (see key_env)"
            reason = f"{whose} is refused ({status}); check that it may use {card.model}"
        elif status == 404:
            reason = f"there is no model {card.model!r} ({words}); check model and base_url"
        else:
            reason = f"the request is refused ({words})"
        single_request = status in _OF_ONE
        said_too_long = _TOO_LONG.search(f"{error.code} {error.type} {words}") is not None
        return RequestFailure(
            f"{card.base_url}: {reason}",
            retryable=False,
            single_request=single_request,
            context_overflow=single_request and said_too_long,
        )

    def _line(self, text: str) -> str:
        """One line, without the key, of bounded length."""
        return " ".join(cast("str", self._clean(text)).split())[:300]

    def _clean(self, value: object, depth: int = 0) -> object:
        """Decoded JSON without the key, which servers echo, and without halves of characters.

        Raises:
            ValueError: it has a number that is not finite, or is nested too deep.
        """
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} levels deep")
        if isinstance(value, str):
            text = value.encode(errors="replace").decode()
            return text.replace(self._key, "[key]") if self._key else text
        if isinstance(value, list):
            return [self._clean(each, depth + 1) for each in cast("list[object]", value)]
        if isinstance(value, dict):
            entries = cast("dict[str, object]", value).items()
            return {self._clean(name): self._clean(each, depth + 1) for name, each in entries}
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        return value


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number of them or a date; ``None`` without one.

    >>> retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, now=50.0)
    10.0
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _key_of(card: Card) -> str:
    if not card.key_env:
        return ""
    key = os.environ.get(card.key_env, "").strip()
    if not key:
        raise UsageError(f"card {card.name}: {card.key_env} is not set; put the provider's key there")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"card {card.name}: what {card.key_env} holds is no key: at least 8 printable ASCII characters"
        )
    return key


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
