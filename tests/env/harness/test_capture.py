"""What a model samples for a harness is recorded to the token, and a learner trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from envkit import Task, check
from envkit.agents.local import LocalAgent
from envkit.engine.chat import ChatRenderer
from envkit.engine.protocol import Request, Sampling
from envkit.env import Env
from envkit.env.authored import ActionResult
from envkit.env.harness import Harness, harnessed
from envkit.rollout import Rollouts
from envkit.runtime.store import Journal
from envkit.sandbox.choice import sandbox_backend
from envkit.training.checkpoint import CheckpointStore
from envkit.training.grpo import GRPOTrainer
from envkit.training.rollouts import RolloutCollector
from envkit.types import EpisodeKey, Outcome

#: Goes on with its chat, begins a new one, rewrites what was said, or asks again, as its seed says.
RESTLESS = """
import json, os, random, sys, urllib.request
draw, chat = random.Random(sys.argv[1]), []
for _ in range(draw.randrange(1, 6)):
    kind = draw.choice(("go on", "go on", "begin", "rewrite", "again"))
    if kind == "begin" or not chat:
        system = {"role": "system", "content": "Be brief."}
        chat = [system, {"role": "user", "content": f"Say {draw.random()}."}]
    elif kind == "rewrite":
        chat[draw.randrange(len(chat))]["content"] = "forgotten"
    if kind != "again" and chat[-1]["role"] == "assistant":
        chat.append({"role": "user", "content": f"And {draw.randrange(99)}?"})
    asked = chat if chat[-1]["role"] == "user" else chat[:-1]
    data = json.dumps({"model": "policy", "messages": asked}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", data)
    said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
    chat = [*asked, {"role": "assistant", "content": said}]
    with open("said.txt", "a") as file:
        file.write(said)
"""


class Talk(Env):
    """Say something with an ``e``."""

    id = "talk"

    @classmethod
    def make_task(cls, split: str, number: int, draw: Any) -> Task:
        return Task(f"{split}/{number}", split, f"seed {number}", {})

    def setup(self, task: Task) -> str:
        return task.prompt

    @check()
    def has_an_e(self) -> bool:
        return b"e" in self.sandbox.read("said.txt", 2**16)

    def apply(self, action: str) -> ActionResult:
        return ActionResult("Said.", done=True)


RESTLESS_TALK = harnessed(Talk, Harness("restless", ("python3", "-c", RESTLESS, "{prompt}"), max_calls=4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.make(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_recorded_ids_are_those_of_the_engine(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 200 episodes: each turn's ids, rebuilt as a learner does, are what the engine read and drew."""
    engine = tiny.engine(model, [tiny.tokenizer().eos_token_id])
    seen: dict[tuple[int, ...], tuple[tuple[int, ...], Any]] = {}
    stream = engine.stream

    def recorded(requests: list[Request], *rest: Any) -> Iterator[Any]:
        for index, completion in stream(requests, *rest):
            seen[requests[index].rng_key] = (tuple(requests[index].prompt_ids), completion)
            yield index, completion

    monkeypatch.setattr(engine, "stream", recorded)
    backend = sandbox_backend()
    tasks = RESTLESS_TALK.tasks_of("train", backend)
    agent = LocalAgent("policy", engine, ChatRenderer(tiny.tokenizer()), Sampling(1.0, 6), max_turns=4)
    keys = [EpisodeKey(0, 0, group, row, task.id) for group, task in enumerate(tasks) for row in range(6)]
    turns = branches = 0
    with Rollouts(lambda: RESTLESS_TALK(tasks=tasks, sandbox=backend)) as rollouts:
        for start in range(0, len(keys), 30):
            for played in rollouts.play(agent, keys[start : start + 30]):
                assert played.outcome is not Outcome.VOID
                ids: tuple[int, ...] = ()
                for turn, step in enumerate(played.steps):
                    tokens, key = step.turn.tokens, played.key
                    assert tokens is not None
                    ids = ids[: tokens.kept] + tokens.prompt_ids
                    asked, completion = seen[key.seed, key.step, key.group, key.row, turn]
                    assert (ids, tokens.completion_ids) == (asked, completion.ids)
                    assert tokens.logprobs == completion.logprobs
                    ids += tokens.completion_ids
                    turns += 1
                    branches += tokens.kept is not None
    assert len(keys) >= 200
    assert turns > 400
    assert branches > 50


def test_a_run_learns_from_a_harness_and_repeats_to_the_bit(model: Any, tmp_path: Path) -> None:
    config = replace(tiny.TRAINING, max_turns=4, max_steps=2, max_completion_length=4)

    def train(name: str) -> list[torch.Tensor]:
        backend, folder = sandbox_backend(), tmp_path / name
        folder.mkdir()
        tasks, policy = RESTLESS_TALK.tasks_of("train", backend)[:6], tiny.policy(model, seed=config.seed)
        with (
            Rollouts(lambda: RESTLESS_TALK(tasks=tasks, sandbox=backend)) as rollouts,
            Journal(folder / "metrics.jsonl") as metrics,
            Journal(folder / "episodes.jsonl") as episodes,
        ):
            collector = RolloutCollector(policy, tasks, rollouts, config, episodes)
            GRPOTrainer(collector, metrics, CheckpointStore(folder / "checkpoints")).train(
                lambda metrics: True
            )
        assert '"logprobs"' in (folder / "episodes.jsonl").read_text()
        return tiny.weights(policy)

    first = train("first")
    assert not tiny.equal(first, tiny.weights(tiny.policy(model, seed=config.seed)))
    assert tiny.equal(first, train("again"))
