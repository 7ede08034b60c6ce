"""Supervised fine-tuning: only answers count in the loss, and the gradient is TRL's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from envkit.errors import ModelError, Stopped, TrainingError
from envkit.models import ModelRef
from envkit.training import sft
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.policy import Policy

DEMONSTRATIONS = [
    Demonstration("Speak.", ((f"Say {word} number {i}.", f"{word}!" * (1 + i % 3)),))
    for i, word in enumerate("abcdefgh" * 3)
]
CONFIG = TrainConfig(sft_batch_size=4, sft_learning_rate=2e-2)


@pytest.fixture
def policy(ref: ModelRef) -> Policy:
    return tiny.policy(ref)


def train(
    policy: Policy, demonstrations: list[Demonstration] = DEMONSTRATIONS, **changes: Any
) -> list[float]:
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        assert step == len(losses) + 1
        losses.append(loss)

    config = dataclasses.replace(CONFIG, **changes)
    assert sft.train(policy, demonstrations, config, on_step) == len(losses)
    assert len(losses) == len(demonstrations) // config.sft_batch_size
    return losses


def test_the_loss_falls_and_nothing_is_printed(
    policy: Policy, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base = [p.clone() for p in policy.model.parameters() if not p.requires_grad]
    capfd.readouterr()
    losses = train(policy, DEMONSTRATIONS * 2)
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert (capfd.readouterr().out, caplog.text) == ("", "")
    after = [p for p in policy.model.parameters() if not p.requires_grad]
    assert tiny.equal(base, after), "only the adapter may be trained"
    assert {p.dtype for p in policy.trainable()} == {torch.float32}


def test_the_loss_counts_only_tokens_of_the_answers(policy: Policy) -> None:
    (loss,) = train(policy, DEMONSTRATIONS[:5], sft_batch_size=5)
    model = tiny.plain(policy.ref)
    total, count = 0.0, 0
    for one in DEMONSTRATIONS[:5]:
        [(observation, action)] = one.exchanges
        prompt = policy.renderer.first(one.system, observation)
        answer_ids = policy.renderer.answer(action)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer_ids]])).logits[0, len(prompt) - 1 : -1]
        total += float(cross_entropy(logits, torch.tensor(answer_ids), reduction="sum"))
        count += len(answer_ids)
    assert loss == pytest.approx(total / count, rel=1e-4)


def test_later_turns_are_trained_as_an_agent_would_play_them(policy: Policy) -> None:
    """Every answer of a conversation counts, observations do not; a long context is truncated."""
    exchanges = (("Say a.", "a!"), ("Again.", "a! a!"), ("Once more.", "a! a! a!"))
    whole = sft.encode(policy.renderer, Demonstration("Speak.", exchanges))
    rest = policy.renderer.conversation("Speak.", exchanges[:2], "Once more.")[len(whole.prompt) :]
    assert whole.row.ids == rest + policy.renderer.answer("a! a! a!")
    assert whole.length == len(whole.prompt) + len(whole.row.ids)
    answers = [id for id, trained in zip(whole.row.ids, whole.row.trained, strict=True) if trained]
    assert tuple(answers) == sum((policy.renderer.answer(action) for _, action in exchanges), ())
    assert not whole.row.kept

    short = sft.encode(policy.renderer, Demonstration("Speak.", exchanges), max_context_length=1)
    assert [*short.row.kept.values()] == [0, 0]
    observed = policy.renderer.following("Once more.", closed=False)
    last = len(whole.prompt) + len(observed) + len(policy.renderer.answer("a! a! a!"))
    assert short.length == last
    # Each turn's loss is that of a conversation which begins with it.
    alone = [sft.encode(policy.renderer, Demonstration("Speak.", (exchange,))) for exchange in exchanges[:1]]
    turns = [
        tiny.example((*whole.prompt, *ids), policy.renderer.answer(action))
        for ids, action in (
            (policy.renderer.following("Again.", closed=False), "a! a!"),
            (observed, "a! a! a!"),
        )
    ]
    losses = [sft.backward(policy, [one], 10**6) * one.trained for one in (*alone, *turns)]
    together = sft.backward(policy, [short], 10**6) * short.trained
    assert together == pytest.approx(sum(losses), rel=1e-4)


def test_a_stop_request_ends_sft_before_the_next_batch(policy: Policy) -> None:
    seen: list[int] = []

    def on_step(step: int, loss: float) -> None:
        seen.append(step)

    with pytest.raises(Stopped):
        sft.train(policy, DEMONSTRATIONS, CONFIG, on_step, lambda: len(seen) == 2)
    assert seen == [1, 2]


def test_an_interrupted_pass_goes_on_with_the_same_steps(ref: ModelRef, tmp_path: Path) -> None:
    whole = tiny.policy(ref)
    losses = train(whole)
    seen: list[float] = []

    def on_step(step: int, loss: float) -> None:
        assert step == len(seen) + 1
        seen.append(loss)

    store = CheckpointStore(tmp_path)
    for stop_at in (0, 2, 3, 3):  # before the first step, and twice at the same
        with pytest.raises(Stopped):
            sft.train(
                tiny.policy(ref), DEMONSTRATIONS, CONFIG, on_step, lambda at=stop_at: len(seen) >= at, store
            )
        assert len(seen) == stop_at
        assert store.steps() == [step for step in (2, 3) if step <= stop_at]
    policy = tiny.policy(ref)
    assert sft.train(policy, DEMONSTRATIONS, CONFIG, on_step, store=store) == len(losses)
    assert seen == losses
    assert tiny.equal(tiny.weights(policy), tiny.weights(whole))


def test_a_pass_that_runs_out_of_memory_is_saved(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, backward, batches = CheckpointStore(tmp_path), sft.backward, list[Any]()

    def short_of_memory(policy: Policy, batch: Any, *limits: Any) -> float:
        batches.append(batch)
        if len(batches) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return backward(policy, batch, *limits)

    monkeypatch.setattr(sft, "backward", short_of_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        sft.train(tiny.policy(ref), DEMONSTRATIONS, CONFIG, lambda step, loss: None, store=store)
    assert store.steps() == [2]


def test_a_killed_pass_loses_the_steps_after_its_checkpoint(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.policy(ref)
    losses = train(whole)
    monkeypatch.setattr(sft, "_SAVE_S", 0.0)
    store, seen = CheckpointStore(tmp_path), dict[int, float]()

    def on_step(step: int, loss: float) -> None:
        if step == 3 and step not in seen:
            seen[step] = loss
            raise KeyboardInterrupt
        seen[step] = loss

    with pytest.raises(KeyboardInterrupt):
        sft.train(tiny.policy(ref), DEMONSTRATIONS, CONFIG, on_step, store=store)
    assert store.steps() == [1, 2]
    policy = tiny.policy(ref)
    sft.train(policy, DEMONSTRATIONS, CONFIG, on_step, store=store)
    assert [*seen.values()] == losses
    assert tiny.equal(tiny.weights(policy), tiny.weights(whole))


def test_the_seed_determines_losses_and_weights(ref: ModelRef) -> None:
    policies = [tiny.policy(ref) for _ in range(3)]
    losses = [train(policy, seed=seed) for policy, seed in zip(policies, (5, 5, 6), strict=True)]
    assert losses[0] == losses[1] != losses[2]
    assert tiny.equal(tiny.weights(policies[0]), tiny.weights(policies[1]))


def test_fewer_examples_than_a_batch_make_no_step(policy: Policy) -> None:
    before = tiny.weights(policy)
    assert train(policy, DEMONSTRATIONS[:3]) == []
    assert tiny.equal(before, tiny.weights(policy))


def gradients(policy: Policy) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in policy.trainable() if parameter.grad is not None]
    policy.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("max_tokens", [1, 60, 10**6])
def test_gradients_equal_those_of_trl(ref: ModelRef, max_tokens: int, tmp_path: Path) -> None:
    """TRL pads every example to the longest one; its labels select the same tokens."""
    import trl
    from datasets import Dataset

    policy = tiny.policy(ref, noise=0.1)
    examples = [sft.encode(policy.renderer, shown) for shown in DEMONSTRATIONS[:6]]
    examples[0] = dataclasses.replace(examples[0], prompt=(7, *examples[0].prompt))  # shares no beginning
    loss = sft.backward(policy, examples, max_tokens)
    found = gradients(policy)

    rows = [
        {"input_ids": [*e.prompt, *e.row.ids], "labels": [-100] * len(e.prompt) + [*e.row.ids]}
        for e in examples
    ]
    policy.model.set_attn_implementation("sdpa")
    settings: dict[str, Any] = {"bf16": False, "use_cpu": True, "activation_checkpointing": False}
    library: Any = trl
    trainer: Any = library.SFTTrainer(
        model=policy.model,
        args=library.SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(rows),
            report_to="none",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
    policy.model.eval()
    expected = trainer.compute_loss(policy.model, trainer.data_collator(rows))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(found, gradients(policy), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_ends_the_warm_start(policy: Policy) -> None:
    with torch.no_grad():
        policy.trainable()[0].fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite; lower sft_learning_rate"):
        train(policy)


def test_a_demonstration_longer_than_the_context_is_refused_before_training(tmp_path: Path) -> None:
    policy = tiny.policy(tiny.make(tmp_path, max_position_embeddings=8))
    with pytest.raises(ModelError, match=r"a demonstration has \d+ tokens, but the context of .* has 8; use"):
        sft.train(policy, DEMONSTRATIONS, CONFIG, lambda *_: pytest.fail("it trained"))
