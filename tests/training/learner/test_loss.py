"""The packed loss compared with padded rows in plain transformers and with TRL's loss."""

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
from envkit.models import SMALL_MODEL, ModelRef, resolve
from envkit.training.config import TrainConfig
from envkit.training.learner.loss import LossTerms, StepSize, policy_loss
from envkit.training.learner.packing import PackedBatch, TrainingRow, chunks, pack
from envkit.training.policy import Policy

EPSILON, TEMPERATURE, LONGEST = 0.2, 0.8, 24
PROMPT = tiny.prompt(20, seed=5)
SETTINGS = TrainConfig(epsilon=EPSILON, temperature=TEMPERATURE, max_completion_length=LONGEST)
#: Loss settings by name, with TRL's field names.
VARIANTS: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    "sequence-level dapo": {"importance_sampling_level": "sequence", "epsilon": 0.05},
    "sequence-level cispo": {
        "loss_type": "cispo",
        "importance_sampling_level": "sequence",
        "epsilon_high": 1.02,
    },
    "a higher upper clip": {"epsilon_high": 0.45},
    "a tie to the base": {"beta": 0.3},
    "grpo with a tie": {"loss_type": "grpo", "beta": 0.3},
}
CORRECTIONS = {"token_truncate": 1.1, "token_mask": 1.1, "sequence_truncate": 0.7, "sequence_mask": 0.7}


@pytest.fixture
def policy(ref: ModelRef) -> Policy:
    return tiny.policy(ref, noise=0.1)


def rows() -> list[TrainingRow]:
    """Rows of one and two turns; some are duplicates or share a beginning."""
    generator = torch.Generator().manual_seed(0)
    made: list[TrainingRow] = []
    for index, (first, seen, second) in enumerate([(5, 0, 0), (1, 4, 7), (12, 3, 1), (8, 0, 0), (3, 6, 2)]):
        ids = tiny.prompt(first + seen + second, seed=100 + index)
        trained = (True,) * first + (False,) * seen + (True,) * second
        old = tuple(-10 - 4 * x for x in torch.rand(len(ids), generator=generator).tolist())
        advantage = (0.75, -0.25, 0.5, -0.6, -0.4)[index]
        # A second turn has a different advantage, once with the other sign.
        advantages = (advantage,) * first + (0.0,) * seen + (advantage - 0.6,) * second
        made.append(TrainingRow(ids, trained, old, advantages))
    like_the_third = replace(made[2], ids=(*made[2].ids[:6], *tiny.prompt(10, seed=99)))
    return [*made, made[0], made[3], made[0], like_the_third]


def near_policy(policy: Policy, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """Return the rows with old log-probabilities near the current ones, inside and outside the clip range."""
    batch, moved = pack(PROMPT, rows), list[TrainingRow]()
    with torch.no_grad():
        new = iter(policy.logprobs(batch, TEMPERATURE).tolist())
    for index, row in enumerate(rows):
        shift = (-0.4, -0.1, 0.0, 0.15, 0.5)
        old = [next(new) + shift[(index + t) % 5] if yes else 0.0 for t, yes in enumerate(row.trained)]
        moved.append(replace(row, logprobs=tuple(old)))
    first = {row.ids: row for row in reversed(moved)}
    return [first[row.ids] for row in moved]  # duplicates were sampled from one distribution


def padded(rows: Sequence[TrainingRow]) -> dict[str, torch.Tensor]:
    """Return the rows in TRL's layout: prompts padded on the left, completions on the right."""
    lines = [torch.tensor(row.ids) for row in rows]
    return {
        "prompt_ids": torch.tensor(PROMPT).repeat(len(rows), 1),
        "prompt_mask": torch.ones(len(rows), len(PROMPT), dtype=torch.long),
        "completion_ids": pad_sequence(lines, batch_first=True),
        "completion_mask": pad_sequence([torch.ones_like(line) for line in lines], batch_first=True),
        "tool_mask": pad_sequence([torch.tensor(row.trained).long() for row in rows], batch_first=True),
        "old_per_token_logps": pad_sequence([torch.tensor(row.logprobs) for row in rows], batch_first=True),
        "advantages": pad_sequence([torch.tensor(row.advantages) for row in rows], batch_first=True),
        "num_items_in_batch": torch.tensor(sum(sum(row.trained) for row in rows)),
    }


def reference_logprobs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, len(PROMPT) - 1 : -1] / TEMPERATURE
    return torch.log_softmax(logits, -1).gather(-1, inputs["completion_ids"][..., None])[..., 0]


def reference_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """PPO's objective, implemented independently."""
    ratio = (reference_logprobs(model, inputs) - inputs["old_per_token_logps"]).exp()
    weight = inputs["advantages"]
    clipped = torch.where(weight > 0, ratio.clamp(max=1 + EPSILON), ratio.clamp(min=1 - EPSILON))
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    return -(weight * clipped * mask).sum() / inputs["num_items_in_batch"]


def gradients(policy: Policy) -> list[torch.Tensor]:
    taken = [p.grad.clone() for p in policy.trainable() if p.grad is not None]
    for parameter in policy.trainable():
        parameter.grad = None
    assert len(taken) == len(policy.trainable())
    return taken


def packed_loss(
    policy: Policy, rows: Sequence[TrainingRow], max_tokens: int, settings: TrainConfig = SETTINGS
) -> tuple[float, list[torch.Tensor]]:
    size = StepSize(sum(sum(row.trained) for row in rows), len(rows))
    total = 0.0
    for chunk in chunks(PROMPT, rows, max_tokens):
        batch, reference = pack(PROMPT, chunk), None
        if settings.beta:
            with torch.no_grad(), policy.model.disable_adapter():
                reference = policy.logprobs(batch, TEMPERATURE)
        new = policy.logprobs(batch, TEMPERATURE)
        loss = policy_loss(new, batch, size, settings, reference).total
        loss.backward()
        total += float(loss.detach())
    return total, gradients(policy)


def assert_same(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9
    assert any(float(b.norm()) > 1e-4 for b in wanted)


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_loss_and_gradients_equal_those_of_padded_rows(policy: Policy, max_tokens: int) -> None:
    group = near_policy(policy, rows())
    loss, gradient = packed_loss(policy, group, max_tokens)
    policy.model.set_attn_implementation("sdpa")
    expected = reference_loss(policy.model, padded(group))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(gradient, gradients(policy))


def test_a_branch_is_trained_like_a_separate_row(policy: Policy) -> None:
    group = rows()
    two_turns = group[2]  # 12 sampled, 3 seen, 1 sampled
    truncated = replace(two_turns, kept={12: 5})
    head = replace(
        two_turns,
        ids=two_turns.ids[:12],
        trained=two_turns.trained[:12],
        logprobs=two_turns.logprobs[:12],
        advantages=two_turns.advantages[:12],
    )
    tail = TrainingRow(
        two_turns.ids[:5] + two_turns.ids[12:],
        (False,) * 5 + two_turns.trained[12:],
        (0.0,) * 5 + two_turns.logprobs[12:],
        (0.0,) * 5 + two_turns.advantages[12:],
    )
    loss, gradient = packed_loss(policy, [group[0], truncated, group[-1]], 10_000)
    policy.model.set_attn_implementation("sdpa")
    expected = reference_loss(policy.model, padded([group[0], head, tail, group[-1]]))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(gradient, gradients(policy))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_loss_and_gradients_are_right_for_other_architectures(family: str, tmp_path: Path) -> None:
    policy = tiny.policy(tiny.make(tmp_path, family), noise=0.1)
    group = near_policy(policy, rows())
    _, gradient = packed_loss(policy, group, 10_000)
    policy.model.set_attn_implementation("sdpa")
    reference_loss(policy.model, padded(group)).backward()
    assert_same(gradient, gradients(policy))


def trl_trainer(policy: Policy, settings: TrainConfig, batch_size: int, folder: Path) -> Any:
    """Return TRL's trainer, used only for its loss."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * batch_size),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            num_generations=batch_size,
            max_completion_length=settings.max_completion_length,
            loss_type=settings.loss_type,
            importance_sampling_level=settings.importance_sampling_level,
            scale_rewards="none",
            beta=settings.beta,
            epsilon=settings.epsilon,
            epsilon_high=settings.epsilon_high,
            temperature=settings.temperature,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def assert_equals_trl(
    policy: Policy, settings: TrainConfig, group: Sequence[TrainingRow], folder: Path, prepare: Any
) -> None:
    whole, pieces = (packed_loss(policy, group, max_tokens, settings) for max_tokens in (10_000, 60))
    policy.model.set_attn_implementation("sdpa")
    trainer = trl_trainer(policy, settings, len(group), folder)
    for loss, gradient in (whole, pieces):
        inputs = padded(group)
        prepare(trainer, inputs)
        expected = trainer._compute_loss(policy.model, inputs)
        expected.backward()
        # CISPO's terms are log-probabilities near -10 that sum to almost 0, hence the absolute tolerance.
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=3e-5)
        assert_same(gradient, gradients(policy))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_trls(policy: Policy, tmp_path: Path, variant: str) -> None:
    settings = replace(SETTINGS, **VARIANTS[variant])

    def prepare(trainer: Any, inputs: dict[str, torch.Tensor]) -> None:
        if settings.beta:
            with torch.no_grad(), policy.model.disable_adapter():
                inputs["ref_per_token_logps"] = reference_logprobs(policy.model, inputs)

    assert_equals_trl(policy, settings, near_policy(policy, rows()), tmp_path, prepare)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("mode", CORRECTIONS)
@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_importance_corrections_equal_trls(policy: Policy, tmp_path: Path, mode: str, loss_type: str) -> None:
    clip_max = CORRECTIONS[mode]
    settings = replace(
        SETTINGS,
        loss_type=loss_type,
        epsilon_high=1.2,
        importance_sampling_mode=mode,
        importance_sampling_clip_max=clip_max,
    )

    def prepare(trainer: Any, inputs: dict[str, torch.Tensor]) -> None:
        # As TRL does after sampling with vLLM: the learner's own probabilities are the old ones.
        sampled = inputs["old_per_token_logps"]
        inputs["old_per_token_logps"] = reference_logprobs(policy.model, inputs).detach()
        gap = (inputs["old_per_token_logps"] - sampled) * inputs["completion_mask"] * inputs["tool_mask"]
        weight = (gap.sum(-1, keepdim=True) if mode.startswith("sequence") else gap).exp()
        assert 0 < int((weight > clip_max).sum()) < weight.numel()
        weight = weight.clamp(max=clip_max) if mode.endswith("truncate") else weight * (weight <= clip_max)
        inputs["importance_sampling_ratio"] = weight
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True

    assert_equals_trl(policy, settings, near_policy(policy, rows()), tmp_path, prepare)


def batch_of(old: Sequence[float], advantages: Sequence[float]) -> PackedBatch:
    """A batch with arbitrary ids: only the values that enter the loss matter."""
    return pack((0,), [TrainingRow((1,) * len(old), (True,) * len(old), tuple(old), tuple(advantages))])


def terms_of(new: torch.Tensor, advantages: Sequence[float]) -> LossTerms:
    return policy_loss(new, batch_of([0.0] * len(new), advantages), StepSize(1, 1), SETTINGS)


def test_loss_terms_equal_hand_computed_values() -> None:
    new = torch.tensor([0.5, 2.0, 0.5, 2.0, 1.1]).log()
    terms = terms_of(new, [1.0, 1.0, -1.0, -1.0, 2.0])
    # Clipping bounds improvements only; worse ratios are never clipped.
    assert float(terms.total) == pytest.approx(-(0.5 + 1.2 - 0.8 - 2.0 + 2.2))
    assert (terms.clipped, terms.tokens, terms.kl) == (2, 5, 0.0)
    assert terms_of(new, [0.0] * 5).clipped == 0
    assert terms.drift == pytest.approx(float(new.abs().sum()))


def test_a_clipped_token_has_no_gradient() -> None:
    new = torch.tensor([0.5, 2.0, 0.5, 2.0]).log().requires_grad_()
    terms_of(new, [1.0, 1.0, -1.0, -1.0]).total.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.5, 0.0, 0.0, 2.0])


def test_engine_and_learner_agree_throughout_training(policy: Policy) -> None:
    """The drift between engine and learner is only rounding, so no importance weights are needed."""
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-2)
    variant = [Request(PROMPT, (3, row)) for row in range(6)]
    for step in range(4):
        policy.sync()
        drawn = policy.engine.generate(variant, Sampling(TEMPERATURE, 8))
        group = [
            TrainingRow(c.ids, (True,) * len(c.ids), c.logprobs, (1.0 - row % 3,) * len(c.ids))
            for row, c in enumerate(drawn)
        ]
        batch = pack(PROMPT, group)
        new = policy.logprobs(batch, TEMPERATURE)
        assert float((new.detach() - batch.old_logprobs_N).abs().max()) < 1e-4, f"step {step}"
        policy_loss(new, batch, StepSize(1, 1), SETTINGS).total.backward()
        before = tiny.weights(policy)
        optimizer.step()
        optimizer.zero_grad()
        assert not tiny.equal(before, tiny.weights(policy))


@pytest.mark.model
def test_engine_and_learner_of_the_real_model_agree() -> None:
    policy = tiny.policy(resolve(SMALL_MODEL), noise=1e-3)
    policy.sync()
    prompt = policy.renderer.first("Say it.", "def mean(values):\n    return sum(values) // len(values)")
    drawn = policy.engine.generate([Request(prompt, (row,)) for row in range(4)], Sampling(1.0, 8))
    batch = pack(
        prompt, [TrainingRow(c.ids, (True,) * len(c.ids), c.logprobs, (1.0,) * len(c.ids)) for c in drawn]
    )
    new = policy.logprobs(batch, 1.0).detach()
    assert float((new - batch.old_logprobs_N).abs().max()) < 1e-3
    assert float((new - batch.old_logprobs_N).abs().mean()) < 1e-4
