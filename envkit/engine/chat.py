"""Chat rendering that only ever appends: each turn adds ids, no id is ever made twice.

The chat template is rendered with place-holders and cut into the text around them. Those
pieces may hold special tokens; what an environment or a person says is encoded with special
tokens disabled, so a file that contains ``<|im_end|>`` stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from envkit.errors import ModelError

# Place-holders that no template produces by itself and no tokenizer rule trims.
_SYSTEM, _FIRST, _ANSWER, _NEXT = (f"\u2402{part}\u2403" for part in ("system", "first", "answer", "next"))

#: For templates that say what day it is: a run resumed tomorrow must ask what it asked today.
_ONE_DAY = "{% macro strftime_now(format) %}01 January 2025{% endmacro %}{{ '' }}"


@final
class ChatRenderer:
    """Turns observations into token ids for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ModelError: no chat template, no end-of-turn token, or a template that is not a plain
            sequence of system, user and assistant turns.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no chat template or end-of-turn token; use an instruct model")
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        # What a model is asked to answer behind may differ from what its templates show before an old answer.
        opening, after_system, before_answer = _cut(tokenizer, messages[:2])
        *_, before_next, before_next_answer = _cut(tokenizer, messages)
        self._tokenizer = tokenizer
        self.stop_id: int = tokenizer.eos_token_id
        self._opening, self._after_system = self._template(opening), self._template(after_system)
        self._before_answer = self._template(before_answer)
        # The end-of-turn token that closes an answer is sampled by the model itself.
        end = str(tokenizer.eos_token)
        if not before_next.startswith(end):
            raise ModelError(f"the chat template does not close an answer with {end!r}")
        self._before_next = self._template(before_next.removeprefix(end))
        self._before_next_answer = self._template(before_next_answer)

    def _template(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def first(self, system: str, observation: str) -> tuple[int, ...]:
        """Ids of a new conversation up to where the answer begins, its system message included."""
        before = (*self._opening, *self._plain(system), *self._after_system)
        return (*before, *self._plain(observation), *self._before_answer)

    def following(self, observation: str, *, closed: bool) -> tuple[int, ...]:
        """Ids to append after an answer; ``closed`` says whether it ended with the end-of-turn id."""
        close = () if closed else (self.stop_id,)
        return (*close, *self._before_next, *self._plain(observation), *self._before_next_answer)

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of a given answer, closed: what supervised training imitates."""
        return (*self._plain(text), self.stop_id)

    def text(self, ids: tuple[int, ...]) -> str:
        """The text of sampled ids, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _cut(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[str]:
    """The template's text around the messages' contents, up to where the model answers.

    Raises:
        ModelError: the template leaves one out.
    """
    template = _ONE_DAY + str(tokenizer.get_chat_template())
    text = str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    )
    pieces: list[str] = []
    for message in messages:
        before, found, text = text.partition(message["content"])
        if not found:
            raise ModelError("the chat template leaves out a system, user or assistant message")
        pieces.append(before)
    return [*pieces, text]
