"""An answer from its tokens."""

from __future__ import annotations

import pytest

from envkit.engine.running import Drawn, Likely
from envkit.openai_api.replies import ChatReply, CompletionReply, Piece, TokenLogprob
from envkit.openai_api.text import TextStream, ToolCallStream
from envkit.serving.answer_stream import AnswerStream

CALLS = "\n".join(
    f'<tool_call>{{"name": "add", "arguments": {{"a": {number}}}}}</tool_call>' for number in (1, 2)
)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("one_call", [False, True])
def test_a_request_without_parallel_calls_gets_the_first_only(one_call: bool, size: int) -> None:
    pieces = [CALLS[start : start + size] for start in range(0, len(CALLS), size)]
    stream = TextStream(lambda ids: "".join(pieces[token] for token in ids))
    choice = AnswerStream(None, stream, -1, ToolCallStream(), one_call)
    sent = [
        call
        for token in range(len(pieces))
        for call in choice.push(Drawn(0, token, 0.0, "stop" if token == len(pieces) - 1 else None)).calls
    ]
    assert [call.arguments for call in sent] == ['{"a": 1}', '{"a": 2}'][: 1 if one_call else 2]
    assert choice.calls == sent
    assert choice.finish == "tool_calls"
    [reply] = ChatReply("tiny").whole([choice], {})["choices"]
    assert reply["message"]["content"] is None


def test_of_tokens_that_read_the_same_the_likeliest_is_told_and_the_drawn_one_always() -> None:
    token = TokenLogprob("d", -2.5, (("b", -0.1), ("b", -3.0)))
    [chunk] = CompletionReply("tiny").chunks(0, Piece("d", (), token))
    [choice] = chunk["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"b": -0.1, "d": -2.5}]


@pytest.mark.parametrize("asked", [False, True])
def test_an_answer_without_text_has_logprobs_without_tokens_if_they_were_asked_for(asked: bool) -> None:
    choice = AnswerStream(None, TextStream(lambda ids: ""), stop_id=7, logprobs=[] if asked else None)
    choice.push(Drawn(0, 7, 0.0, "stop", Likely(0.0, ()) if asked else None))
    [chat] = ChatReply("tiny").whole([choice], {})["choices"]
    [plain] = CompletionReply("tiny").whole([choice], {})["choices"]
    assert chat["logprobs"] == ({"content": [], "refusal": None} if asked else None)
    assert (plain["logprobs"] or {}).get("tokens") == ([] if asked else None)


def test_tokens_that_are_told_make_up_the_text_although_the_tokenizer_strips_a_first_space() -> None:
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(models.BPE({"x": 0, "\N{LOWER ONE EIGHTH BLOCK}x": 1, "é": 2}, []))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    choice = AnswerStream(made, TextStream(made.decode), stop_id=7, logprobs=[])
    for token in (0, 1, 2):
        choice.push(Drawn(0, token, -1.0, None, Likely(-1.0, ((0, -1.0), (1, -2.0)))))
    told = choice.logprobs or []
    assert "".join(each.token for each in told) == made.decode([0, 1, 2]) == "x xé"
    assert told[0].top == (("x", -1.0), (" x", -2.0))
