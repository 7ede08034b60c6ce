"""Send one request to an OpenAI-compatible API; return the answer, or the failure and when to retry."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from envkit.agents.cards import Card
from envkit.agents.chat_completions import ChatAnswer, RequestFailure, read_reply
from envkit.errors import MissingExtraError, UsageError
from envkit.types import Usage

if TYPE_CHECKING:
    import openai

_LIMIT_BYTES: Final = 16 * 2**20
_DEPTH: Final = 100
#: Statuses that are retried, as are all from 500; the official client retries the same.
_TRANSIENT = {408, 409, 429}
#: Statuses of gateways that gave up waiting. The model may have answered, and the answer is then billed.
_BILLED = {408, 502, 504, 524}
#: Error codes of a content filter. They end the conversation, not the run.
_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt", "data_inspection_failed"}
#: Statuses of refusals that may concern one request alone, such as one that is too long for the model.
_SINGLE_REQUEST = {400, 413, 422}
#: Messages for a conversation that does not fit the context. Few providers have an error code for it.
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size|limit)|prompt is too long|input token count\b.*\bexceeds",
    re.IGNORECASE,
)


class ProviderError(UsageError):
    """A provider refuses every request, because the key, the model or a field is wrong."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Retry policy for failed requests.

    Args:
        attempts: requests before a turn fails, at least 1.
        first_s: seconds before the second request; they double from then on.
        most_s: longest delay in seconds, even if the provider asks for a longer one.
    """

    attempts: int = 8
    first_s: float = 2.0
    most_s: float = 120.0

    def delay_s(self, failures: int, retry_after_s: float | None, draw: float) -> float:
        """Seconds to wait after ``failures`` failures. ``draw`` in [0, 1) is the jitter.

        >>> [Backoff().delay_s(failures, None, 0.5) for failures in (1, 2, 3)]
        [1.5, 3.0, 6.0]
        """
        delay_s = self.first_s * 2 ** (failures - 1) * (0.5 + draw / 2)
        return min(max(delay_s, retry_after_s or 0.0), self.most_s)


@final
class Endpoint:
    """Client for the API of a card. Thread-safe; keeps connections open until it is closed.

    Raises:
        UsageError: the API key is missing or malformed.
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
        # The client reads these from OPENAI_* variables; other providers must not get them.
        client.organization = client.project = client.admin_api_key = None
        self._client = client

    def close(self) -> None:
        self._client.close()

    def ask(self, request: Mapping[str, Any], most: Usage) -> tuple[ChatAnswer | RequestFailure, Usage]:
        """Send a request.

        Args:
            request: its body.
            most: its highest possible usage.

        Returns:
            The answer, with the API key masked, or the failure; and the usage that may be billed for it.
        """
        started = time.monotonic()
        found = self._fetch(request)
        seconds = time.monotonic() - started
        if not isinstance(found, RequestFailure):
            found = read_reply(found, most, seconds, tools="tools" in request)
        if isinstance(found, ChatAnswer):
            return found, found.usage
        return found, replace(most if found.billed else Usage(), seconds=seconds)

    def _fetch(self, request: Mapping[str, Any]) -> object | RequestFailure:
        """Send a request; returns the decoded answer or the failure."""
        import httpx2
        import openai

        fields = {**request}
        head = {name: fields.pop(name) for name in ("model", "messages")}
        give_up_at = time.monotonic() + self._card.timeout_s
        data = bytearray()
        try:
            # Streamed, because a server that sends a space now and then never hits the client's timeout.
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
        card, status, body = self._card, error.status_code, error.body
        if isinstance(body, dict):
            body = cast("dict[str, object]", body).get("message", cast("object", body))
        message = self._line(f"{status}: {body}" if body else str(status))
        if error.code in _FILTERED:
            choice: dict[str, object] = {"message": {}, "finish_reason": "content_filter"}
            return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        if (status in _TRANSIENT or status >= 500) and error.code != "insufficient_quota":
            wait_s = retry_after_s(error.response.headers, time.time())
            return RequestFailure(message, billed=status in _BILLED, retry_after_s=wait_s)
        if status in (401, 403):
            refused = (
                f"the key in {card.key_env}" if card.key_env else "a request without a key (see key_env)"
            )
            reason = f"{refused} is refused ({status}); check that it may use {card.model}"
        elif status == 404:
            reason = f"there is no model {card.model!r} ({message}); check model and base_url"
        else:
            reason = f"the request is refused ({message})"
        single_request = status in _SINGLE_REQUEST
        too_long = _TOO_LONG.search(f"{error.code} {error.type} {message}") is not None
        return RequestFailure(
            f"{card.base_url}: {reason}",
            retryable=False,
            single_request=single_request,
            context_overflow=single_request and too_long,
        )

    def _line(self, text: str) -> str:
        """One line of at most 300 characters, with the API key masked."""
        return " ".join(cast("str", self._clean(text)).split())[:300]

    def _clean(self, value: object, depth: int = 0) -> object:
        """Mask the API key, which servers may echo, and replace lone surrogates in decoded JSON.

        Raises:
            ValueError: a number is not finite, or the data is nested too deep.
        """
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} levels deep")
        if isinstance(value, str):
            text = value.encode(errors="replace").decode()
            return text.replace(self._key, "[key]") if self._key else text
        if isinstance(value, list):
            return [self._clean(item, depth + 1) for item in cast("list[object]", value)]
        if isinstance(value, dict):
            entries = cast("dict[str, object]", value).items()
            return {self._clean(name): self._clean(item, depth + 1) for name, item in entries}
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        return value


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Parse a ``Retry-After`` header, a number or a date, to seconds; ``None`` if there is none.

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
            f"card {card.name}: {card.key_env} does not hold an API key: expected at least 8 printable ASCII "
            "characters without spaces"
        )
    return key


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
