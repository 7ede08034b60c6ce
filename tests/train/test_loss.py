"""The packed learner against padded rows in plain transformers, and against TRL's own loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn.utils.rnn import pad_sequence

from envkit.engine.protocol import Request, Sampling
from envkit.models import DEFAULT_MODEL, ModelRef, resolve
from envkit.train.loss import clipped_loss, logprobs
from envkit.train.packing import Batch, Row, chunks, merge, pack
from envkit.train.policy import Policy

EPSILON, TEMPERATURE = 0.2, 0.8
PROMPT = tiny.prompt(20, seed=5)


@pytest.fixture
def policy(ref: ModelRef) -> Policy:
    return tiny.policy(ref, shaken=0.1)


def rows() -> list[Row]:
    """Rows of one and of two turns, some twice, some with a probability far from when they were sampled."""
    generator = torch.Generator().manual_seed(0)
    made: list[Row] = []
    for index, (first, seen, second) in enumerate([(5, 0, 0), (1, 4, 7), (12, 3, 1), (8, 0, 0), (3, 6, 2)]):
        ids = tiny.prompt(first + seen + second, seed=100 + index)
        trained = (True,) * first + (False,) * seen + (True,) * second
        old = tuple(-10 - 4 * x for x in torch.rand(len(ids), generator=generator).tolist())
        made.append(Row(ids, trained, old, advantage=(0.75, -0.25, 0.5, -0.6, -0.4)[index]))
    return [*made, made[0], made[3], made[0]]


def near(policy: Policy, rows: Sequence[Row]) -> list[Row]:
    """The rows with old log-probabilities around the present ones, on both sides of the clip range."""
    batch, moved = pack(PROMPT, rows), list[Row]()
    with torch.no_grad():
        new = iter(logprobs(policy.model, batch, TEMPERATURE).tolist())
    for index, row in enumerate(rows):
        shift = (-0.4, -0.1, 0.0, 0.15, 0.5)
        old = [next(new) + shift[(index + t) % 5] if yes else 0.0 for t, yes in enumerate(row.trained)]
        moved.append(Row(row.ids, row.trained, tuple(old), row.advantage))
    first = {row.ids: row for row in reversed(moved)}
    return [first[row.ids] for row in moved]  # duplicates were sampled from one distribution


def padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """The rows as TRL lays them out: one per line, prompts left, completions padded on the right."""
    lines = [torch.tensor(row.ids) for row in rows]
    return {
        "prompt_ids": torch.tensor(PROMPT).repeat(len(rows), 1),
        "prompt_mask": torch.ones(len(rows), len(PROMPT), dtype=torch.long),
        "completion_ids": pad_sequence(lines, batch_first=True),
        "completion_mask": pad_sequence([torch.ones_like(line) for line in lines], batch_first=True),
        "tool_mask": pad_sequence([torch.tensor(row.trained).long() for row in rows], batch_first=True),
        "old_per_token_logps": pad_sequence([torch.tensor(row.logprobs) for row in rows], batch_first=True),
        "advantages": torch.tensor([row.advantage for row in rows]),
        "num_items_in_batch": torch.tensor(sum(sum(row.trained) for row in rows)),
    }


def reference_logprobs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, len(PROMPT) - 1 : -1] / TEMPERATURE
    return torch.log_softmax(logits, -1).gather(-1, inputs["completion_ids"][..., None])[..., 0]


def reference_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """PPO's objective, written down a second time."""
    ratio = (reference_logprobs(model, inputs) - inputs["old_per_token_logps"]).exp()
    weight = inputs["advantages"][:, None]
    clipped = torch.where(weight > 0, ratio.clamp(max=1 + EPSILON), ratio.clamp(min=1 - EPSILON))
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    return -(weight * clipped * mask).sum() / inputs["num_items_in_batch"]


def gradients(policy: Policy) -> list[torch.Tensor]:
    taken = [p.grad.clone() for p in policy.trainable() if p.grad is not None]
    for parameter in policy.trainable():
        parameter.grad = None
    assert len(taken) == len(policy.trainable())
    return taken


def ours(policy: Policy, rows: Sequence[Row], max_tokens: int) -> tuple[float, list[torch.Tensor]]:
    tokens, total = sum(sum(row.trained) for row in rows), 0.0
    for chunk in chunks(PROMPT, merge(rows), max_tokens):
        batch = pack(PROMPT, chunk)
        loss = clipped_loss(logprobs(policy.model, batch, TEMPERATURE), batch, EPSILON).total / tokens
        loss.backward()
        total += float(loss.detach())
    return total, gradients(policy)


def assert_same(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9
    assert any(float(b.norm()) > 1e-4 for b in wanted)


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_loss_and_gradients_are_those_of_padded_rows(policy: Policy, max_tokens: int) -> None:
    group = near(policy, rows())
    loss, gradient = ours(policy, group, max_tokens)
    policy.model.set_attn_implementation("sdpa")
    expected = reference_loss(policy.model, padded(group))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(gradient, gradients(policy))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_architectures_too(family: str, tmp_path: Path) -> None:
    policy = tiny.policy(tiny.make(tmp_path, family), shaken=0.1)
    group = near(policy, rows())
    _, gradient = ours(policy, group, 10_000)
    policy.model.set_attn_implementation("sdpa")
    reference_loss(policy.model, padded(group)).backward()
    assert_same(gradient, gradients(policy))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_loss_and_gradients_are_trls(policy: Policy, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    group = near(policy, rows())
    loss, gradient = ours(policy, group, 10_000)
    policy.model.set_attn_implementation("sdpa")
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * len(group)),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(group),
            num_generations=len(group),
            loss_type="dapo",
            scale_rewards="none",
            beta=0.0,
            epsilon=EPSILON,
            temperature=TEMPERATURE,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(policy.model, padded(group))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(gradient, gradients(policy))


def batch_of(old: Sequence[float], advantages: Sequence[float]) -> Batch:
    """A batch of which only the numbers of the loss matter."""
    batch = pack((0,), [Row((1,) * len(old), (True,) * len(old), tuple(old), 0.0)])
    return replace(batch, advantages_N=torch.tensor(advantages))


def test_terms_by_hand() -> None:
    new = torch.tensor([0.5, 2.0, 0.5, 2.0, 1.1]).log()
    terms = clipped_loss(new, batch_of([0.0] * 5, [1.0, 1.0, -1.0, -1.0, 2.0]), 0.2)
    # Improvements beyond the range earn no more; what makes it worse is never clipped.
    assert float(terms.total) == pytest.approx(-(0.5 + 1.2 - 0.8 - 2.0 + 2.2))
    assert (terms.clipped, terms.tokens) == (2, 5)
    assert terms.drift == pytest.approx(float(new.abs().sum()))


def test_a_clipped_token_has_no_gradient() -> None:
    new = torch.tensor([0.5, 2.0, 0.5, 2.0]).log().requires_grad_()
    clipped_loss(new, batch_of([0.0] * 4, [1.0, 1.0, -1.0, -1.0]), 0.2).total.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.5, 0.0, 0.0, 2.0])


def test_engine_and_learner_agree_along_training(policy: Policy) -> None:
    """The drift that importance weights would have to mend is rounding, whatever the adapter."""
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-2)
    asked = [Request(PROMPT, (3, row)) for row in range(6)]
    for step in range(4):
        policy.sync()
        drawn = policy.engine.generate(asked, Sampling(TEMPERATURE, 8))
        group = [
            Row(c.ids, (True,) * len(c.ids), c.logprobs, advantage=1.0 - row % 3)
            for row, c in enumerate(drawn)
        ]
        batch = pack(PROMPT, group)
        new = logprobs(policy.model, batch, TEMPERATURE)
        assert float((new.detach() - batch.old_logprobs_N).abs().max()) < 1e-4, f"step {step}"
        clipped_loss(new, batch, EPSILON).total.backward()
        before = tiny.weights(policy)
        optimizer.step()
        optimizer.zero_grad()
        assert not tiny.equal(before, tiny.weights(policy))


@pytest.mark.model
def test_engine_and_learner_of_the_real_model_agree() -> None:
    policy = tiny.policy(resolve(DEFAULT_MODEL), shaken=1e-3)
    policy.sync()
    prompt = policy.renderer.first("def mean(values):\n    return sum(values) // len(values)")
    drawn = policy.engine.generate([Request(prompt, (row,)) for row in range(4)], Sampling(1.0, 8))
    batch = pack(prompt, [Row(c.ids, (True,) * len(c.ids), c.logprobs, 1.0) for c in drawn])
    new = logprobs(policy.model, batch, 1.0).detach()
    assert float((new - batch.old_logprobs_N).abs().max()) < 1e-3
    assert float((new - batch.old_logprobs_N).abs().mean()) < 1e-4
