"""One answer of a request while it is drawn: its text, tool calls, log-probabilities and end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from envkit.engine.running import Drawn
from envkit.openai_api.replies import Piece, TokenLogprob
from envkit.openai_api.text import FunctionCall, TextStream, ToolCallStream


@dataclass(slots=True)
class AnswerStream:
    """An answer so far.

    Args:
        tokenizer: turns ids into text.
        stream: text of its tokens.
        stop_id: the end-of-turn id, which is no text.
        tools: reads tool calls; ``None`` leaves them in the text.
        one_call: drop all tool calls but the first.
        logprobs: of its tokens; ``None`` if the request asked for none.
    """

    tokenizer: Any
    stream: TextStream
    stop_id: int
    tools: ToolCallStream | None = None
    one_call: bool = False
    logprobs: list[TokenLogprob] | None = None
    text: str = ""
    calls: list[FunctionCall] = field(default_factory=list[FunctionCall])
    #: Its ids with their log-probabilities under the distribution that they were drawn from.
    drawn: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    finish: str | None = None

    @property
    def ids(self) -> list[int]:
        """Ids of its tokens."""
        return [token for token, _ in self.drawn]

    def push(self, drawn: Drawn) -> Piece:
        """Add a token."""
        self.drawn.append((drawn.token, drawn.logprob))
        is_end = drawn.stop == "stop" and drawn.token == self.stop_id
        text = "" if is_end else self.stream.push(drawn.token)
        if drawn.stop:
            text += self.stream.end()
        calls: list[FunctionCall] = []
        if self.tools is not None:
            text, calls = self.tools.push(text)
            if drawn.stop:
                text += self.tools.end()
            if self.one_call:
                calls = calls[: 0 if self.calls else 1]
        self.text += text
        self.calls += calls
        if drawn.stop:
            self.finish = "tool_calls" if self.calls and drawn.stop == "stop" else drawn.stop
        logprob = None
        if self.logprobs is not None and drawn.likely is not None and not is_end:
            top = tuple((self._token(token), value) for token, value in drawn.likely.top)
            logprob = TokenLogprob(self._token(drawn.token), drawn.likely.drawn, top)
            self.logprobs.append(logprob)
        return Piece(text, tuple(calls), logprob, self.finish, (drawn.token,))

    def _token(self, token: int) -> str:
        """Return what a token adds to a text: some tokenizers drop a text's first space."""
        alone, twice = (str(self.tokenizer.decode(number * [token])) for number in (1, 2))
        return twice.removeprefix(alone) if twice.startswith(alone) else alone
