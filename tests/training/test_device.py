"""Engine and learner on a GPU: all tensors are on its device, and results equal those on a CPU.

The tests marked ``cuda`` need a GPU. The others use torch's ``meta`` device, which has shapes but no values,
and which like a GPU refuses most operations with tensors of another device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import envkit
from envkit.engine import sampling, torch_engine
from envkit.engine.adapters.updates import Update, updates_of
from envkit.engine.head import Head
from envkit.engine.protocol import Completion, Request, Sampling
from envkit.engine.torch_engine import TorchEngine
from envkit.errors import ConfigError, ModelError
from envkit.models import ModelRef
from envkit.rollout import Rollouts
from envkit.runs.before_after.probe import measure
from envkit.runs.folder.machine import machine, resolve_dtype
from envkit.runtime.store import Journal
from envkit.training import sft
from envkit.training.checkpoint import CheckpointStore
from envkit.training.config import TrainConfig
from envkit.training.demonstration import Demonstration
from envkit.training.grpo import GRPOTrainer, Trainer
from envkit.training.learner import loss
from envkit.training.learner.loss import StepSize, policy_loss
from envkit.training.learner.packing import TrainingRow, pack
from envkit.training.metrics import StepMetrics
from envkit.training.policy import Policy
from envkit.training.rollouts import RolloutCollector
from envkit.training.trl_backend import TRLTrainer

cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda)])

PROMPT = tiny.prompt(20, seed=1)
#: Rows with a common beginning and different lengths; one drops part of its context.
ROWS = [
    TrainingRow((5, 6, 7, 8), (True,) * 4, (-1.0,) * 4, (0.5,) * 4),
    TrainingRow((5, 6, 9), (True,) * 3, (-2.0,) * 3, (-0.5,) * 3),
    TrainingRow((5, 6, 7, 8, 10, 11), (True, True, False, True, True, True), (-1.0,) * 6, (1.0,) * 6, {4: 1}),
]
CONFIG = dataclasses.replace(tiny.TRAINING, max_steps=3)
TASKS = tiny.letter_tasks("abcdefg")


def first_requests() -> list[Request]:
    """Requests in two groups for each of two adapters, with different prompt lengths; some continue."""
    return [
        Request(
            tiny.prompt(9 + 4 * adapter + 7 * group, seed=group),
            (adapter, group, row),
            adapter,
            keep_cache=row > 0,
        )
        for adapter in range(2)
        for group in range(2)
        for row in range(3)
    ]


def next_requests(
    requests: Sequence[Request], drawn: Sequence[Completion], *, further: bool
) -> list[Request]:
    """The next requests of conversations that continue; ``further`` says if they continue again."""
    return [
        dataclasses.replace(
            request,
            prompt_ids=(*request.prompt_ids, *completion.ids, *range(20, 22 + place % 3)),
            earlier_tokens=len(request.prompt_ids) + len(completion.ids),
            keep_cache=further,
        )
        for place, (request, completion) in enumerate(zip(requests, drawn, strict=True))
        if request.keep_cache
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "dapo", "importance_sampling_mode": "token_mask"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "dr_grpo", "importance_sampling_mode": "sequence_truncate"},
    ],
)
def test_the_learner_allocates_all_tensors_on_the_models_device(
    ref: ModelRef, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny.policy(ref)
    policy.model.to("meta")
    policy.head = Head(policy.model.get_output_embeddings())

    def number(value: torch.Tensor) -> int:
        return 0

    for name in ("float", "int"):  # conversions of logged values
        monkeypatch.setattr(loss, name, number, raising=False)
    batch = pack(PROMPT, ROWS, "meta")
    new = policy.logprobs(batch, 0.7)
    terms = policy_loss(
        new, batch, StepSize(13, 3), dataclasses.replace(CONFIG, beta=0.1, **changes), new + 1
    )
    terms.total.backward()
    assert {p.grad.device.type for p in policy.trainable() if p.grad is not None} == {"meta"}


def test_the_engine_allocates_all_tensors_on_the_models_device(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_rows: list[int] = []

    def listed(values: torch.Tensor) -> list[list[float]]:
        """Replacement values for a device without numbers: rows branch, and every third ends early."""
        rows, owners = values.shape
        if values.is_floating_point():
            return [[-1.0] * owners] * rows
        drawn_rows.append(rows)
        over = len(drawn_rows) > 1
        return [
            [3 if over and row % 3 == 0 else 7 + owner % 2 for owner in range(owners)] for row in range(rows)
        ]

    def nothing(numbers: torch.Tensor) -> None:
        pass

    monkeypatch.setattr(torch_engine, "to_list", listed)
    monkeypatch.setattr(sampling, "_require_finite", nothing)
    policy = tiny.policy(ref, noise=0.1)
    engine = TorchEngine(tiny.plain(ref).to("meta"), [3], max_rows=8)
    engine.load([to_meta(policy), to_meta(policy)])
    first = first_requests()
    drawn = engine.generate(first, Sampling(0.7, 4, top_p=0.9))
    again = next_requests(first, drawn, further=False)
    assert len(engine.generate(again, Sampling(0.7, 2))) == len(again) == 8
    assert len({*drawn_rows}) > 2  # rows have branched and ended


def test_a_missing_gpu_is_reported(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device is 'cuda', but torch .* finds no NVIDIA GPU"):
        Policy(ref, device="cuda")


def to_meta(policy: Policy) -> dict[str, Update]:
    return {
        name: Update(update.down.to("meta"), update.up.to("meta"))
        for name, update in updates_of(policy.model, "default").items()
    }


def test_an_evaluation_without_its_gpu_ends_before_anything_is_made(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device is 'cuda', but torch .* finds no NVIDIA GPU"):
        envkit.evaluate(model=ref.path, device="cuda", root=tmp_path / "runs", display="quiet")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="device is 'tpu'; expected cpu or cuda"):
        envkit.evaluate(model=ref.path, device="tpu", root=tmp_path / "runs", display="quiet")


# The tests below need a GPU.


@on_cuda
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_engine_draws_the_same_on_gpu_and_cpu(device: str, family: str, tmp_path: Path) -> None:
    ref = tiny.make(tmp_path, family)
    drawn: list[list[Completion]] = []
    for place in ("cpu", device):
        policies = [tiny.policy(ref, seed=seed, noise=0.1, device=place) for seed in (1, 2)]
        engine = policies[0].engine
        engine.load([updates_of(policy.model, "default") for policy in policies])
        first = engine.generate(first_requests(), Sampling(0.7, 6, top_p=0.9))
        later = next_requests(first_requests(), first, further=True)
        second = engine.generate(later, Sampling(0.7, 6, top_p=0.8))
        last = next_requests(later, second, further=False)  # their KV cache has empty slots now
        drawn.append([*first, *second, *engine.generate(last, Sampling(0.7, 6))])
        assert len(drawn[-1]) == 12 + 8 + 8
    # Rounding differs, so a few draws near the boundary between two tokens differ.
    same = [(one, other) for one, other in zip(*drawn, strict=True) if one.ids == other.ids]
    assert len(same) >= 0.8 * len(drawn[0])
    for one, other in same:
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@on_cuda
def test_logprobs_and_gradients_agree_on_gpu_and_cpu(ref: ModelRef, device: str) -> None:
    found: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for place in ("cpu", device):
        policy = tiny.policy(ref, noise=0.1, device=place)
        batch = pack(PROMPT, ROWS, policy.device)
        new = policy.logprobs(batch, 0.7)
        (new * batch.advantages_N).sum().backward()
        gradients = [p.grad.cpu() for p in policy.trainable() if p.grad is not None]
        found.append((new.detach().cpu(), gradients))
    (new, gradients), (other, others) = found
    torch.testing.assert_close(new, other, atol=1e-4, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0.1
    for gradient, same in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, same, rtol=1e-3, atol=1e-4 * float(same.abs().max()))


@pytest.fixture
def run(ref: ModelRef, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def trained(
            kind: type[GRPOTrainer | TRLTrainer], device: str, name: str, until: int | None = None
        ) -> tuple[Trainer, list[StepMetrics]]:
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            backend = tiny.MemoryBackend()
            rollouts = stack.enter_context(
                Rollouts(lambda: tiny.LetterEnv(tasks=TASKS, sandbox=backend, max_turns=2), workers=1)
            )
            metrics, episodes = (
                stack.enter_context(Journal(folder / name)) for name in ("metrics", "episodes")
            )
            config = dataclasses.replace(CONFIG, device=device)
            collector = RolloutCollector(
                tiny.policy(ref, seed=5, device=device), TASKS, rollouts, config, episodes
            )
            trainer = kind(collector, metrics, CheckpointStore(folder / "checkpoints"))
            seen: list[StepMetrics] = []

            def on_step(metrics: StepMetrics) -> bool:
                seen.append(metrics)
                return metrics.step != until

            trainer.resume()
            trainer.train(on_step)
            return trainer, seen

        yield trained


@on_cuda
@pytest.mark.parametrize("kind", [GRPOTrainer, TRLTrainer])
def test_training_on_a_gpu_has_little_drift_and_nonzero_gradients(
    run: Any, kind: type[GRPOTrainer | TRLTrainer], device: str
) -> None:
    _, seen = run(kind, device, "there")
    assert [each.step for each in seen] == [1, 2, 3]
    assert max(each.drift for each in seen) < 1e-3
    assert min(each.grad_norm for each in seen) > 0


@on_cuda
def test_a_run_on_a_gpu_resumes_from_its_checkpoint(run: Any, device: str) -> None:
    run(GRPOTrainer, device, "cut", until=2)
    trainer, seen = run(GRPOTrainer, device, "cut")
    assert [each.step for each in seen] == [3]
    assert trainer.is_done()


@on_cuda
def test_sft_and_timing_run_on_a_gpu(ref: ModelRef, device: str) -> None:
    policy = tiny.policy(ref, device=device)
    shown = [Demonstration("Speak.", ((f"Say {word}.", word),)) for word in "abcdefgh" * 3]
    losses: list[float] = []

    def on_step(step: int, value: float) -> None:
        losses.append(value)

    config = TrainConfig(sft_batch_size=4, sft_learning_rate=2e-2, device=device)
    sft.train(policy, shown, config, on_step)
    assert losses[-1] < losses[0]
    assert measure(policy)[0].row_s > 0
    assert resolve_dtype(config).dtype == "bfloat16"
    assert machine(1, "bfloat16", device).card == torch.cuda.get_device_name()


@on_cuda
def test_full_fine_tuning_on_a_gpu_samples_what_it_learns(ref: ModelRef, device: str, tmp_path: Path) -> None:
    policy = Policy(ref, control="full", dtype="bfloat16", device=device)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape, device=device) * 0.05)
    policy.sync()
    policy.save_adapter(tmp_path)
    asked = [dataclasses.replace(request, adapter=0, keep_cache=False) for request in first_requests()]
    expected = policy.engine.generate(asked, Sampling(0.0, 6))
    policy.load_into_engine([None, tmp_path])
    found = policy.engine.generate(
        [dataclasses.replace(request, adapter=1) for request in asked], Sampling(0.0, 6)
    )
    assert [each.ids for each in found] == [each.ids for each in expected]
