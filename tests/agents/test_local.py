"""The local agent: sampled tokens are the next prompt's prefix and the training data."""

from __future__ import annotations

import functools
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import record_forwards

from envkit.agents.local import LocalAgent
from envkit.agents.scripted import noop
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Completion, Engine, Request, Sampling, uniforms
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import AgentError, ContractError, ModelError
from envkit.models import SMALL_MODEL, ModelRef, resolve
from envkit.runtime.stop import ShouldStop, never
from envkit.training.learner.packing import PackedBatch, pack, shared_prompt, training_row
from envkit.types import EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn


@functools.cache
def renderer() -> ChatRenderer:
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(resolve(SMALL_MODEL).path))


class StubEngine(Engine):
    """Engine that draws ids by request key and records its requests.

    One answer in six runs out of tokens, and one in six ends with a stop string.
    """

    def __init__(self) -> None:
        self.asked: list[list[Request]] = []

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, should_stop: ShouldStop = never
    ) -> Generator[tuple[int, Completion]]:
        self.asked.append(list(requests))
        yield from enumerate(self._draw(request, sampling.max_new_tokens) for request in requests)

    def _draw(self, request: Request, budget: int) -> Completion:
        numbers = uniforms(request.rng_key, budget + 1)
        ids = tuple(int(number * 49_000) + 17 for number in numbers[:-1])
        if numbers[-1] < 1 / 3:
            return Completion(ids, tuple(-numbers[:-1]), "length" if numbers[-1] < 1 / 6 else "stop")
        return Completion((*ids[:-1], renderer().stop_id), tuple(-numbers[:-1]), "stop")


def agent_of(engine: StubEngine, **options: int) -> LocalAgent:
    return LocalAgent("policy", engine, renderer(), Sampling(1.0, 5), max_turns=3, **options)


def key(row: int, group: int = 0) -> EpisodeKey:
    return EpisodeKey(seed=1, step=2, group=group, row=row, task="t")


def is_closed(turn: Turn) -> bool:
    return tokens_of(turn).completion_ids[-1] == renderer().stop_id


def tokens_of(turn: Turn) -> Tokens:
    assert turn.tokens is not None
    return turn.tokens


hostile = st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>"])
observations = st.lists(st.text(max_size=30) | hostile | st.builds(str.__add__, hostile, hostile), max_size=4)


@settings(deadline=None, max_examples=60)
@given(dialogues=st.lists(observations, min_size=1, max_size=4))
def test_sessions_only_append(dialogues: list[list[str]]) -> None:
    engine = StubEngine()
    agent = agent_of(engine)
    sessions = [agent.start(key(row), "Answer.") for row in range(len(dialogues))]
    steps: dict[int, list[StepRecord]] = {row: [] for row in range(len(dialogues))}
    turn_of_row = {id(session): row for row, session in enumerate(sessions)}
    for number in range(max(map(len, dialogues))):
        waiting = [row for row, said in enumerate(dialogues) if number < len(said)]
        for row in waiting:
            agent.submit(sessions[row], dialogues[row][number])
        collected = [*agent.collect()]
        assert [turn_of_row[id(session)] for session, _ in collected] == waiting
        for session, turn in collected:
            row = turn_of_row[id(session)]
            steps[row].append(StepRecord(dialogues[row][number], turn, 0.0))

    ends = set(renderer().first("Answer.", "")) & {0, 1, 2}
    for row, records in steps.items():
        history: tuple[int, ...] = ()
        for number, record in enumerate(records):
            tokens = tokens_of(record.turn)
            (request,) = [r for r in engine.asked[number] if r.rng_key == (1, 2, 0, row, number)]
            assert request.earlier_tokens == len(history)
            assert request.keep_cache == (number < 2)
            history += tokens.prompt_ids
            assert request.prompt_ids == history, "the engine read something else than was recorded"
            history += tokens.completion_ids
            # An answer that did not close itself is closed for it; an observation opens nothing by itself.
            closed = number == 0 or is_closed(records[number - 1].turn)
            expected = (
                renderer().first("Answer.", "") if number == 0 else renderer().following("", closed=closed)
            )
            assert [i for i in tokens.prompt_ids if i in ends] == [i for i in expected if i in ends]
        if records:
            row_trained = training_row(
                Trajectory(key(row), "e", "policy", tuple(records), Outcome.FAILED), [1.0] * len(records)
            )
            first = tokens_of(records[0].turn).prompt_ids
            assert (*first, *row_trained.ids) == history
            sampled = [i for record in records for i in tokens_of(record.turn).completion_ids]
            trained = [i for i, yes in zip(row_trained.ids, row_trained.trained, strict=True) if yes]
            assert trained == sampled


@settings(deadline=None, max_examples=60)
@given(said=st.lists(st.text(max_size=30) | hostile, min_size=2, max_size=6), longest=st.integers(1, 90))
def test_long_session_is_truncated_to_first_prompt_and_latest_observation(
    said: list[str], longest: int
) -> None:
    engine = StubEngine()
    agent = agent_of(engine, max_context_length=longest)
    session = agent.start(key(0), "Answer.")
    records: list[StepRecord] = []
    history: tuple[int, ...] = ()
    for number, observation in enumerate(said):
        agent.submit(session, observation)
        [(_, turn)] = agent.collect()
        records.append(StepRecord(observation, turn, 0.0))
        tokens, [request] = tokens_of(turn), engine.asked[number]
        first = renderer().first("Answer.", said[0])
        closed = number > 0 and is_closed(records[number - 1].turn)
        wanted = len(history) + len(renderer().following(observation, closed=closed))
        assert (tokens.kept is not None) == (number > 0 and wanted > longest)
        if tokens.kept is not None:
            assert tokens.kept == len(first)
            assert tokens.prompt_ids == renderer().following(observation, closed=False)
            history = first
        assert request.earlier_tokens == len(history)
        history += tokens.prompt_ids
        assert request.prompt_ids == history
        history += tokens.completion_ids
    row = training_row(
        Trajectory(key(0), "e", "policy", tuple(records), Outcome.FAILED), [1.0] * len(records)
    )
    assert {*row.kept.values()} <= {0}
    batch = pack(first, [row])
    # What each sampled token is predicted from is what the engine was asked with, and drew before it.
    for number, record in enumerate(records):
        [request] = engine.asked[number]
        drawn = tokens_of(record.turn).completion_ids
        for offset, token in enumerate(drawn):
            assert (*request.prompt_ids, *drawn[:offset]) in seen_in(batch, token)


def chat(texts: Sequence[str]) -> str:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"messages": messages})


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.sampled_from(["Fix it.", "No.", "ok"]), min_size=1, max_size=3), min_size=2, max_size=4
    )
)
def test_a_learner_sees_each_token_of_a_harness_where_it_was_drawn(chats: list[list[str]]) -> None:
    """Whatever chats a harness asks for: goes on, begins anew, or rewrites what was said."""
    engine = StubEngine()
    agent = agent_of(engine)
    session = agent.start_chats(key(0))
    records: list[StepRecord] = []
    for texts in chats:
        agent.submit(session, chat(texts))
        [(_, turn)] = agent.collect()
        records.append(StepRecord("", turn, 0.0))
    episode = Trajectory(key(0), "e", "policy", tuple(records), Outcome.FAILED)
    prompt = shared_prompt([episode])
    batch = pack(prompt, [training_row(episode, [1.0] * len(records), len(prompt))])
    for number, record in enumerate(records):
        [request] = engine.asked[number]
        drawn = tokens_of(record.turn).completion_ids
        for offset, token in enumerate(drawn):
            assert (*request.prompt_ids, *drawn[:offset]) in seen_in(batch, token)


def seen_in(batch: PackedBatch, token: int) -> set[tuple[int, ...]]:
    """All that is seen where this token is predicted."""
    found: set[tuple[int, ...]] = set()
    for place, target in zip(batch.sources_K.tolist(), batch.targets_K.tolist(), strict=True):
        if target == token:
            ways = [[0, *(index + 1 for index in path)] for path in batch.paths]
            [way] = {tuple(way[: way.index(place) + 1]) for way in ways if place in way}
            after = [int(batch.ids_1S[0, place - 1]) for place in way[1:]]
            found.add((*batch.prompt_1P[0].tolist(), *after))
    return found


def play(agent: LocalAgent, keys: Sequence[EpisodeKey]) -> dict[EpisodeKey, tuple[Any, ...]]:
    for each in keys:
        agent.submit(agent.start(each, "Answer."), f"Row {each.row}.")
    return {session.key: (turn.text, turn.tokens, turn.stop) for session, turn in agent.collect()}


def test_order_of_submission_changes_nothing() -> None:
    keys = [key(row, group) for group in range(3) for row in range(4)]
    forward, backward = StubEngine(), StubEngine()
    assert play(agent_of(forward), keys) == play(agent_of(backward), keys[::-1])
    assert forward.asked == backward.asked


def talk(ref: ModelRef, held_tokens: int, *, at_once: bool = False) -> tuple[dict[EpisodeKey, Any], int]:
    """Play eight conversations of six turns; returns their answers and the number of tokens forwarded.

    Args:
        at_once: let all continue together, whether or not the engine holds them.
    """
    bytes_per_token = 512  # of the tiny model
    engine: Any = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=4 * bytes_per_token * held_tokens)
    if at_once:

        def holds(request: Request) -> bool:
            return True

        engine.holds = holds
    seen = record_forwards(engine)
    agent = LocalAgent("policy", engine, ChatRenderer(tiny.tokenizer()), Sampling(0.0, 5), max_turns=6)
    keys = [key(row, group) for row in range(4) for group in range(2)]
    answers: dict[EpisodeKey, list[tuple[int, ...]]] = {each: [] for each in keys}
    for each in keys:
        agent.submit(agent.start(each, "Answer."), f"Question {each.group}.")
    while any(len(given) < 6 for given in answers.values()):
        for session, turn in [*agent.collect()]:
            given = answers[session.key]
            given.append(tokens_of(turn).completion_ids)
            if len(given) < 6:
                agent.submit(session, f"{session.key.row} and {len(given)}?")
    return answers, sum(rows * width for rows, width in seen)


def test_conversations_that_do_not_fit_wait_instead_of_being_prefilled_every_turn(tmp_path: Path) -> None:
    ref = tiny.make(tmp_path)
    wanted, least = talk(ref, 10**5)
    for held_tokens, share in ((1, 1.0), (200, 0.5), (400, 0.7), (700, 1.0)):
        answers, forwarded = talk(ref, held_tokens)
        assert answers == wanted
        assert least < forwarded <= share * talk(ref, held_tokens, at_once=True)[1]


def test_a_conversation_that_is_too_long_for_the_model_gets_an_empty_answer(tmp_path: Path) -> None:
    ref = tiny.make(tmp_path, max_position_embeddings=200)
    agent = LocalAgent(
        "policy", tiny.engine(ref), ChatRenderer(tiny.tokenizer()), Sampling(1.0, 5), max_turns=3
    )
    first, second = (agent.start(key(row), "Answer.") for row in range(2))

    def ask(**said: str) -> dict[int, Turn]:
        for session, observation in zip((first, second), said.values(), strict=True):
            agent.submit(session, observation)
        return {session.key.row: turn for session, turn in agent.collect()}

    begun = ask(first="Begin.", second="Begin.")
    turns = ask(first="word " * 300, second="Go on.")
    assert turns[0] == Turn("", Tokens((), (), ()), stop="length")
    assert len(tokens_of(turns[1]).completion_ids) == 5
    later = ask(first="Shorter.", second="word " * 300)
    assert later[1] == turns[0]
    read = tokens_of(begun[0]).prompt_ids + tokens_of(begun[0]).completion_ids
    assert first.talk.ids[: len(read)] == read, "it goes on after what the model has read"
    assert len(first.talk.ids) == len(read) + len(tokens_of(later[0]).prompt_ids) + 5


def test_a_first_prompt_that_is_too_long_for_the_model_is_refused(tmp_path: Path) -> None:
    ref = tiny.make(tmp_path, max_position_embeddings=200)
    agent = LocalAgent("policy", tiny.engine(ref), ChatRenderer(tiny.tokenizer()), Sampling(1.0, 5))
    told = r"task t: the conversation has \d+ tokens; the model reads 200.*use shorter tasks"
    with pytest.raises(ModelError, match=told):
        agent.submit(agent.start(key(0), "Answer."), "word " * 300)


def test_usage_counts_tokens() -> None:
    agent = agent_of(StubEngine())
    agent.submit(agent.start(key(0), "Answer."), "Hello.")
    ((_, turn),) = agent.collect()
    assert turn.usage.prompt_tokens == len(tokens_of(turn).prompt_ids)
    assert turn.usage.completion_tokens == len(tokens_of(turn).completion_ids) == 5


def test_the_text_has_no_end_token() -> None:
    agent = agent_of(StubEngine())
    for row in range(8):
        agent.submit(agent.start(key(row), "Answer."), "Hello.")
    turns = [turn for _, turn in agent.collect()]
    assert {turn.stop for turn in turns} == {"stop", "length"}
    assert not any("<|im_end|>" in turn.text for turn in turns)


def test_collecting_nothing_gives_nothing() -> None:
    assert [*agent_of(StubEngine()).collect()] == []


def test_session_of_another_agent_is_refused() -> None:
    with pytest.raises(ContractError, match="session of another agent"):
        agent_of(StubEngine()).submit(noop().start(key(0), "Answer."), "Hello.")


@pytest.mark.parametrize(
    ("second", "is_own"),
    [
        ({"role": "user", "content": "word " * 300}, True),
        ({"role": "stranger", "content": "Go on."}, False),
    ],
    ids=["too long", "refused by the template"],
)
def test_only_a_chat_that_the_model_brought_about_gets_an_empty_answer(
    tmp_path: Path, second: dict[str, str], is_own: bool
) -> None:
    """Another would teach the model that its answer was wrong, though it was never asked."""
    template = str(tiny.tokenizer().chat_template)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        template + "{% if messages[-1].role == 'stranger' %}{{ raise_exception('who?') }}{% endif %}"
    )
    engine = tiny.engine(tiny.make(tmp_path, max_position_embeddings=200))
    agent = LocalAgent("policy", engine, ChatRenderer(tokenizer), Sampling(1.0, 5), max_turns=3)
    session, first = agent.start_chats(key(0)), {"role": "user", "content": "Begin."}
    agent.submit(session, json.dumps({"messages": [first]}))
    [(_, turn)] = agent.collect()
    assert isinstance(turn, Turn)
    messages = [first, {"role": "assistant", "content": turn.text}, second]
    agent.submit(session, json.dumps({"messages": messages}))
    [(_, answer)] = agent.collect()
    if is_own:
        assert answer == Turn("", Tokens((), (), ()), stop="length")
    else:
        assert isinstance(answer, AgentError)
        assert "who?" in str(answer)
