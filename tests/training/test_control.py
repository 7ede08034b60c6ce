"""Each `control` trains its layers alone, and engine, learner and plain PEFT agree on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from sampling import assert_matches_reference, requests

import envkit
from envkit.engine.adapters.pool import AdapterPool
from envkit.engine.adapters.updates import Update, read_adapter, updates_of
from envkit.engine.protocol import Request, Sampling
from envkit.engine.running import Drawn, RowRequest, RunningBatch
from envkit.engine.torch_engine import TorchEngine
from envkit.engine.vllm.engine import require_rank
from envkit.errors import ConfigError, ModelError, UsageError
from envkit.models import ModelRef
from envkit.models.adapter_folder import WITHOUT_RANK, recorded_control, require_scale
from envkit.training.checkpoint import load_adapter
from envkit.training.config import CONTROLS, TrainConfig
from envkit.training.learner.base_model import add_adapter
from envkit.training.learner.packing import PackedBatch, TrainingRow, pack
from envkit.training.merging import merge_adapters
from envkit.training.policy import Policy

#: PEFT uses what transformers warns of, and takes a bias for a damaged matrix.
PLAIN_PEFT = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PROMPT = tiny.prompt(9, seed=2)


def make(ref: ModelRef, control: str, seed: int = 1) -> Policy:
    """A policy whose adapter has an effect."""
    rank, alpha = TrainConfig(control=control, lora_r=2, lora_alpha=4).lora_shape
    policy = Policy(ref, lora_r=rank, lora_alpha=alpha, control=control, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    policy.sync()
    return policy


def trained_layers(policy: Policy) -> set[str]:
    trained = {id(parameter) for parameter in policy.trainable()}
    return {
        re.sub(r".*?layers\.\d+\.|\.(lora|modules_to_save).*", "", name)
        for name, parameter in policy.model.named_parameters()
        if id(parameter) in trained
    }


ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("control", "layers"),
    [
        ("all-linear", ATTENTION | MLP),
        ("attention", ATTENTION),
        ("mlp", MLP),
        ("steering", {"mlp.down_proj"}),
        ("full", ATTENTION | MLP),
    ],
)
def test_a_control_trains_its_layers_and_no_others(
    family: str, control: str, layers: set[str], tmp_path: Path
) -> None:
    policy = make(tiny.make(tmp_path, family), control)
    assert trained_layers(policy) == layers
    with policy.model.disable_adapter():
        pass
    assert trained_layers(policy) == layers  # PEFT unfreezes everything of an adapter after this


def test_steering_is_one_vector_for_each_layer(ref: ModelRef) -> None:
    assert [tuple(parameter.shape) for parameter in make(ref, "steering").trainable()] == [(64,), (64,)]


@PLAIN_PEFT
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "gpt_neox"])
def test_engine_learner_and_plain_peft_agree(family: str, control: str, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = make(tiny.make(tmp_path / "model", family), control)
    policy.save_adapter(tmp_path / "adapter")
    assert recorded_control(tmp_path / "adapter") == control
    plain: Any = PeftModel.from_pretrained(tiny.plain(policy.ref), tmp_path / "adapter").eval()
    batch = requests()
    drawn = policy.engine.generate(batch, Sampling(1.0, 9))
    assert_matches_reference(plain, batch, drawn, 1.0)
    ids = drawn[0].ids
    row = TrainingRow(ids, (True,) * len(ids), drawn[0].logprobs, (1.0,) * len(ids))
    with torch.no_grad():
        learned = policy.logprobs(pack(batch[0].prompt_ids, [row]), 1.0)
    torch.testing.assert_close(torch.tensor(drawn[0].logprobs), learned, rtol=1e-4, atol=1e-4)
    read = read_adapter(tmp_path / "adapter")
    for name, update in updates_of(policy.model, "default").items():
        torch.testing.assert_close(vars_of(read[name]), vars_of(update))


def vars_of(update: Update) -> list[torch.Tensor | None]:
    return [update.down, update.up, update.shift, update.weight, update.bias]


def controls(ref: ModelRef) -> dict[str, dict[str, Update]]:
    """Adapters of all kinds, and one with matrices and shifts."""
    made = {
        control: updates_of(make(ref, control, seed).model, "default")
        for seed, control in enumerate(CONTROLS)
    }
    both = {
        name: Update(update.down, update.up, torch.randn(len(update.up)) * 0.2)
        for name, update in made["attention"].items()
    }
    return {**made, "both": both}


def test_rows_of_all_kinds_of_adapters_draw_together_as_alone(ref: ModelRef) -> None:
    adapters, engine = controls(ref), tiny.engine(ref)
    kinds = len(adapters) + 1
    asked = [
        Request(tiny.prompt(5 + number, number), (number,), adapter=number % kinds)
        for number in range(3 * kinds)
    ]
    engine.load([*adapters.values(), {}])
    together = engine.generate(asked, Sampling(1.0, 8))
    for number, adapter in enumerate([*adapters.values(), {}]):
        engine.load([adapter])
        mine = [index for index, request in enumerate(asked) if request.adapter == number]
        alone = engine.generate(
            [Request(asked[i].prompt_ids, asked[i].rng_key) for i in mine], Sampling(1.0, 8)
        )
        for index, completion in zip(mine, alone, strict=True):
            assert together[index].ids == completion.ids
            assert together[index].logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_adapters_of_all_kinds_come_and_go_within_their_budget(ref: ModelRef) -> None:
    adapters = controls(ref)
    engine = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=2**22)
    expected: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for name, adapter in adapters.items():
        pool = AdapterPool(engine.linears, 2**30)
        pool.register(name, lambda adapter=adapter: adapter)
        expected[name] = play(RunningBatch(engine, pool), name)
        sizes[name] = pool.used_bytes
    assert sizes["steering"] == 2 * 64 * 4
    assert sizes["both"] > sizes["attention"]
    assert sizes["full"] == 4 * sum(
        layer.weight.numel() for layer in adapters["full"].values() if layer.weight is not None
    )
    pool = AdapterPool(engine.linears, sizes["full"] + sizes["both"])
    for name, adapter in adapters.items():
        pool.register(name, lambda adapter=adapter: adapter)
    batch = RunningBatch(engine, pool)
    for name in ("steering", "attention", "full", "steering", "mlp", "both", "full", "steering", "attention"):
        assert play(batch, name) == expected[name], name
        assert pool.used_bytes <= sizes["full"] + sizes["both"]
    assert pool.evictions


def play(batch: RunningBatch, name: str) -> tuple[int, ...]:
    batch.submit(RowRequest(PROMPT, (3,), Sampling(1.0, 6), name))
    found: list[int] = []
    while batch.waiting or batch.running:
        for event in batch.tick():
            assert isinstance(event, Drawn)
            found.append(event.token)
    return tuple(found)


def test_a_step_changes_the_vectors_alone_and_they_are_restored(ref: ModelRef, tmp_path: Path) -> None:
    policy = make(ref, "steering")
    matrices = {n: p.detach().clone() for n, p in policy.model.named_parameters() if n.endswith("weight")}
    before = tiny.weights(policy)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=0.1)
    row = TrainingRow(PROMPT, (True,) * 9, (0.0,) * 9, (1.0,) * 9)
    (-policy.logprobs(pack(PROMPT, [row]), 1.0).mean()).backward()
    optimizer.step()
    assert not any(torch.equal(some, other) for some, other in zip(before, tiny.weights(policy), strict=True))
    assert all(torch.equal(p, matrices[n]) for n, p in policy.model.named_parameters() if n in matrices)
    policy.save_adapter(tmp_path / "adapter")
    fresh = Policy(ref, lora_r=1, lora_alpha=1, control="steering")
    load_adapter(fresh, tmp_path / "adapter")
    assert tiny.equal(tiny.weights(fresh), tiny.weights(policy))


def test_a_step_of_full_fine_tuning_changes_all_layers_and_leaves_the_base(
    ref: ModelRef, tmp_path: Path
) -> None:
    policy = Policy(ref, lora_r=1, lora_alpha=1, control="full", dtype="bfloat16")
    batch = pack(PROMPT, [TrainingRow(PROMPT, (True,) * 9, (0.0,) * 9, (1.0,) * 9)])
    before, base = tiny.weights(policy), scores_of(policy, batch)
    assert {weight.dtype for weight in before} == {torch.float32}
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-6)  # less than bfloat16 can tell
    (-policy.logprobs(batch, 1.0).mean()).backward()
    optimizer.step()
    assert not any(torch.equal(some, other) for some, other in zip(before, tiny.weights(policy), strict=True))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    assert not torch.equal(scores_of(policy, batch), base)
    with policy.model.disable_adapter():
        assert torch.equal(scores_of(policy, batch), base)
    policy.save_adapter(tmp_path / "adapter")
    fresh = Policy(ref, lora_r=1, lora_alpha=1, control="full", dtype="bfloat16")
    load_adapter(fresh, tmp_path / "adapter")
    assert tiny.equal(tiny.weights(fresh), tiny.weights(policy))
    sampled = [Request(PROMPT, (1,))]
    policy.sync()
    expected = policy.engine.generate(sampled, Sampling(1.0, 20))
    policy.load_into_engine([None, tmp_path / "adapter"])
    served = [Request(PROMPT, (1,), adapter=number) for number in range(2)]
    assert policy.engine.generate(served, Sampling(1.0, 20))[1].ids == expected[0].ids
    fresh.load_into_engine([None])
    assert policy.engine.generate(served[:1], Sampling(1.0, 20)) == fresh.engine.generate(
        sampled, Sampling(1.0, 20)
    )


def scores_of(policy: Policy, batch: PackedBatch) -> torch.Tensor:
    with torch.no_grad():
        return policy.logprobs(batch, 1.0)


@pytest.mark.parametrize("control", WITHOUT_RANK)
def test_in_bfloat16_engine_and_learner_agree(ref: ModelRef, control: str) -> None:
    policy = Policy(ref, lora_r=1, lora_alpha=1, control=control, dtype="bfloat16")
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape) * (0.3 if control == "steering" else 0.05))
    policy.sync()
    [drawn] = policy.engine.generate([Request(PROMPT, (1,))], Sampling(1.0, 20))
    count = len(drawn.ids)
    row = TrainingRow(drawn.ids, (True,) * count, drawn.logprobs, (1.0,) * count)
    with torch.no_grad():
        learned = policy.logprobs(pack(PROMPT, [row]), 1.0)
    torch.testing.assert_close(torch.tensor(drawn.logprobs), learned, rtol=0, atol=0.05)


def test_what_cannot_be_trained_or_used_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control is 'all'; expected one of: all-linear, attention"):
        TrainConfig(control="all")
    make(ref, "all-linear").save_adapter(tmp_path / "lora")
    with pytest.raises(ModelError, match="is of control 'all-linear', and control is 'full'; begin with"):
        require_scale(tmp_path / "lora", "full", 1, 1)
    file = tmp_path / "lora" / "adapter_config.json"
    plain = json.loads(file.read_text())
    require_scale(tmp_path / "lora", "all-linear", plain["r"], plain["lora_alpha"])
    for odd in ({"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"q_proj": 3}}):
        file.write_text(json.dumps(plain | odd))
        with pytest.raises(ModelError, match=rf"{min(odd)} is set; expected one rank and one plain scale"):
            require_scale(tmp_path / "lora", "all-linear", plain["r"], plain["lora_alpha"])
    file.write_text(json.dumps(plain))
    for control in WITHOUT_RANK:
        for setting in ({"engine": "vllm"}, {"backend": "trl"}):
            with pytest.raises(ConfigError, match=rf"control is '{control}', which .* cannot train"):
                TrainConfig(control=control, **setting)  # pyright: ignore[reportArgumentType]
        policy = make(ref, control)
        with pytest.raises(ModelError, match="vLLM cannot do that"):
            require_rank(updates_of(policy.model, "default"), 16)
        for name in ("a", "b"):
            policy.save_adapter(tmp_path / control / name)
        with pytest.raises(UsageError, match=r"a has .*; only plain LoRA can be merged"):
            merge_adapters(
                ref, [tmp_path / control / "a", tmp_path / control / "b"], tmp_path / "c", "linear"
            )
    with pytest.raises(ModelError, match=r"shifts .* by numbers of shape \[3\]; expected \[64\]"):
        tiny.engine(ref).load(
            [{"model.layers.0.mlp.down_proj": Update(torch.zeros(0, 128), torch.zeros(64, 0), torch.ones(3))}]
        )
    with pytest.raises(ModelError, match=r"bias of model.layers.0.mlp.down_proj has shape .*\[64\]"):
        tiny.engine(ref).load(
            [{"model.layers.0.mlp.down_proj": Update.replacing(torch.zeros(64, 128), torch.zeros(64))}]
        )
    weights = tmp_path / "full" / "b" / "adapter_model.safetensors"
    save_file({**load_file(weights), "odd": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match="found odd; expected weights and biases of linear layers"):
        read_adapter(tmp_path / "full" / "b")
    weights = tmp_path / "steering" / "b" / "adapter_model.safetensors"
    save_file(
        {name: t if t.ndim > 1 else torch.tensor(1.0) for name, t in load_file(weights).items()}, weights
    )
    with pytest.raises(ModelError, match=r"lora_B\.bias has shape \[\]; expected \[64\]"):
        read_adapter(tmp_path / "steering" / "b")
    tiny.policy(ref).save_adapter(tmp_path / "claims")
    file = tmp_path / "claims" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_bias": True}))
    with pytest.raises(ModelError, match=r"not an adapter for tiny-llama: .*lora_B\.bias has shape none"):
        tiny.policy(ref).add(tmp_path / "claims", "added")


def test_an_adapter_without_a_layer_that_its_settings_name_is_not_served(
    ref: ModelRef, tmp_path: Path
) -> None:
    for control in CONTROLS:
        make(ref, control).save_adapter(tmp_path / control)
        weights = tmp_path / control / "adapter_model.safetensors"
        kept = {name: tensor for name, tensor in load_file(weights).items() if "layers.1." not in name}
        save_file(kept, weights)
        with pytest.raises(ModelError, match=r"the weights lack model\.layers\.1\."):
            tiny.policy(ref).load_into_engine([tmp_path / control])


def test_a_budget_holds_whatever_comes_after_many_small_adapters(ref: ModelRef) -> None:
    adapters = controls(ref)
    engine = TorchEngine(tiny.plain(ref), (), kv_cache_bytes=2**22)
    small, large = (engine.linears.bytes_alone(adapters[name]) for name in ("all-linear", "full"))
    budget = large + 4 * small
    pool = AdapterPool(engine.linears, budget)
    names = [f"small {number}" for number in range(budget // small)]
    for name in names:
        pool.register(name, lambda: adapters["all-linear"])
    pool.register("full", lambda: adapters["full"])
    for name in [*names, "full", *names[:6], "full"]:
        assert pool.acquire(name) is not None
        pool.release(name)
        assert pool.used_bytes <= budget
    assert "full" in pool.loaded


class Unnamed(torch.nn.Module):
    """A model whose layers have names that tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second, self.head = (
            torch.nn.Embedding(5, 4),
            torch.nn.Linear(4, 8),
            torch.nn.Linear(8, 4),
            torch.nn.Linear(4, 5),
        )

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


@pytest.mark.parametrize("control", ["attention", "mlp", "steering"])
def test_a_model_whose_layers_cannot_be_told_apart_is_refused(control: str) -> None:
    with pytest.raises(ModelError, match=r"attention \(none\) and MLP \(.*\) cannot be told apart"):
        add_adapter(Unnamed(), 2, 4, 0, control)


@pytest.mark.parametrize("family", ["glm4", "olmo2"])
def test_a_vector_is_refused_where_what_an_mlp_writes_is_normalised(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="normalises what an MLP writes"):
        Policy(tiny.make(tmp_path, family), control="steering")


@pytest.mark.slow
@pytest.mark.usefixtures("one_probe")
@pytest.mark.parametrize("control", WITHOUT_RANK)
def test_a_run_without_lora_trains_verifies_and_loads(control: str, tmp_path: Path) -> None:
    result = envkit.train(
        "sql-desk",
        config={
            "model": str(tiny.make(tmp_path / "model").path),
            "sft_examples": 12,
            "sft_learning_rate": 0.05,
            "learning_rate": 0.05,
            "max_steps": 2,
            "groups_per_step": 2,
            "num_generations": 2,
            "max_completion_length": 4,
            "max_turns": 1,
            "beta": 0.1,
        },
        control=control,
        evaluate=False,
        allow_unaudited=True,
        root=tmp_path / "runs",
        display="quiet",
    )
    adapter = result.run / "checkpoints" / "step-000002"
    assert recorded_control(adapter) == control
    updates = read_adapter(adapter)
    if control == "steering":
        assert (adapter / "adapter_model.safetensors").stat().st_size < 10_000
        assert {name.rpartition(".")[2] for name in updates} == {"down_proj"}
        assert all(update.shift is not None and update.shift.any() for update in updates.values())
    else:
        assert {name.rpartition(".")[2] for name in updates} == {
            name.rpartition(".")[2] for name in ATTENTION | MLP
        }
    assert envkit.verify(result.run, display="quiet").reproduced
    with envkit.load_adapter(result.run) as loaded:
        assert isinstance(loaded.act("Which books are there?"), str)
        ids = torch.tensor([tiny.prompt(9, seed=1)])
        with torch.no_grad():
            found = loaded.model(ids).logits
            with loaded.model.disable_adapter():
                assert not torch.equal(loaded.model(ids).logits, found)
