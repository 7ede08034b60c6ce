"""The policy: its adapter starts as zero, is saved and loaded exactly, and trains without dropout."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from envkit.engine.protocol import Request, Sampling
from envkit.errors import ConfigError, ModelError
from envkit.models import ModelRef
from envkit.training.checkpoint import load_adapter
from envkit.training.learner.packing import TrainingRow, pack
from envkit.training.policy import BASE, Policy

PROMPT = tiny.prompt(9, seed=2)


def scores(policy: Policy) -> torch.Tensor:
    ids = tiny.prompt(7, seed=3)
    with torch.no_grad():
        return policy.logprobs(pack(PROMPT, [TrainingRow(ids, (True,) * 7, (0.0,) * 7, (1.0,) * 7)]), 1.0)


def test_a_new_adapter_does_not_change_completions(ref: ModelRef) -> None:
    policy, requests = tiny.policy(ref), [Request(PROMPT, (1,))]
    before = policy.engine.generate(requests, Sampling(1.0, 5))
    policy.sync()
    assert policy.engine.generate(requests, Sampling(1.0, 5)) == before


@pytest.mark.parametrize("family", ["gpt_neox", "granite", "phi3", "glm4"])
def test_engine_and_learner_agree_with_transformers_on_other_families(tmp_path: Path, family: str) -> None:
    policy = tiny.policy(tiny.make(tmp_path, family), noise=0.1)
    requests = [Request(PROMPT, (1,))]
    [plain] = policy.engine.generate(requests, Sampling(1.0, 5))
    with torch.no_grad():
        logprobs_SV = tiny.plain(policy.ref)(torch.tensor([[*PROMPT, *plain.ids]])).logits[0].log_softmax(-1)
    expected = logprobs_SV[len(PROMPT) - 1 : -1].gather(1, torch.tensor(plain.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(plain.logprobs), expected, rtol=1e-4, atol=1e-4)
    policy.sync()
    [adapted] = policy.engine.generate(requests, Sampling(1.0, 5))
    row = TrainingRow(adapted.ids, (True,) * 5, adapted.logprobs, (1.0,) * 5)
    with torch.no_grad():
        learned = policy.logprobs(pack(PROMPT, [row]), 1.0)
    torch.testing.assert_close(torch.tensor(adapted.logprobs), learned, rtol=1e-4, atol=1e-4)
    assert adapted.logprobs != plain.logprobs


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("granite", {"logits_scaling": 8.0}, "scales or caps its logits"),
        ("nanochat", {}, "scales or caps its logits"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers without attention"),
        ("lfm2", {"layer_types": ["full_attention", "conv"]}, "layers without attention"),
        ("mamba", {}, "layers without attention"),
        ("mistral", {"sliding_window": 16}, "attention uses sliding_window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_models_with_unsupported_features_are_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ModelError, match=problem):
        tiny.policy(tiny.make(tmp_path, family, **changes))


def test_a_policy_that_nothing_refers_to_is_freed_at_once(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    base = weakref.ref(policy.model.get_base_model())
    gc.collect()
    gc.disable()
    try:
        del policy
        assert base() is None
    finally:
        gc.enable()


def test_all_linear_layers_are_trained_and_the_head_is_not(ref: ModelRef) -> None:
    policy = tiny.policy(ref)
    names = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 7  # layers, A and B, linears
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_the_seed_determines_the_adapter(ref: ModelRef) -> None:
    one, same, other = (tiny.weights(tiny.policy(ref, seed=seed)) for seed in (1, 1, 2))
    assert tiny.equal(one, same)
    assert not tiny.equal(one, other)


def test_a_saved_adapter_loads_bit_for_bit(ref: ModelRef, tmp_path: Path) -> None:
    policy = tiny.policy(ref, noise=0.1)
    policy.save_adapter(tmp_path)
    other = tiny.policy(ref, seed=9)
    load_adapter(other, tmp_path)
    assert tiny.equal(tiny.weights(policy), tiny.weights(other))
    assert torch.equal(scores(policy), scores(other))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_saved_adapter_loads_with_peft(ref: ModelRef, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = tiny.policy(ref, noise=0.1)
    policy.save_adapter(tmp_path)
    ids = tiny.prompt(7, seed=3)
    with torch.no_grad():
        model = PeftModel.from_pretrained(tiny.plain(ref), str(tmp_path))
        logits = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(scores(policy), expected, atol=1e-4, rtol=0)


def test_one_base_serves_many_adapters(ref: ModelRef, tmp_path: Path) -> None:
    requests, drawn = [Request(PROMPT, (1,))], list[object]()
    for seed in (1, 2):
        policy = tiny.policy(ref, seed=seed, noise=0.3)
        policy.save_adapter(tmp_path / str(seed))
        policy.sync()
        drawn.append(policy.engine.generate(requests, Sampling(1.0, 8)))
    server = tiny.policy(ref, seed=3, noise=0.3)
    server.sync()
    before = server.engine.generate(requests, Sampling(1.0, 8)), tiny.weights(server), scores(server)
    server.load_into_engine([tmp_path / "2", None, tmp_path / "1"])
    numbered = [Request(PROMPT, (1,), adapter=number) for number in range(3)]
    found = [server.engine.generate([request], Sampling(1.0, 8)) for request in numbered]
    assert found[::2] == drawn[::-1]
    assert found[1] == tiny.policy(ref).engine.generate(requests, Sampling(1.0, 8))
    assert len({str(each) for each in [*found, before[0]]}) == 4
    # The adapter in training is unchanged, and only it is saved.
    server.sync()
    assert server.engine.generate(requests, Sampling(1.0, 8)) == before[0]
    assert tiny.equal(tiny.weights(server), before[1])
    assert torch.equal(scores(server), before[2])
    server.save_adapter(tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]


def test_dropout_of_an_added_adapter_is_not_applied(ref: ModelRef, tmp_path: Path) -> None:
    tiny.policy(ref, noise=0.1).save_adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_dropout": 0.5}))
    policy = tiny.policy(ref)
    policy.add(tmp_path, "added")
    policy.model.set_adapter("added")
    assert torch.equal(scores(policy), scores(policy))


def test_a_folder_without_an_adapter_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}: not an adapter .*adapter_config.json"):
        tiny.policy(ref).add(tmp_path, "added")


def test_an_adapter_of_another_model_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    other = tiny.make(tmp_path / "other", intermediate_size=96)
    tiny.policy(other).save_adapter(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"was trained on tiny-llama with weights .*--model"):
        tiny.policy(ref).add(tmp_path / "adapter", "added")
    (tmp_path / "adapter" / BASE).unlink()  # as in an adapter that envkit did not save
    with pytest.raises(ModelError, match=r"adapter: not an adapter for tiny-llama"):
        tiny.policy(ref).add(tmp_path / "adapter", "added")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["n"]),
        ("alora_invocation_tokens", [1]),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa_niter_16"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(
    ref: ModelRef, tmp_path: Path, key: str, value: object
) -> None:
    tiny.policy(ref).save_adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(ModelError, match=f"{key} is .* plain LoRA adapter"):
        tiny.policy(ref).add(tmp_path, "added")


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"torn"), ("config.json", b"{"), ("config.json", b"{}")]
)
def test_a_damaged_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    ref = tiny.make(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{tmp_path}.*: not a (causal language model|safetensors file)"):
        Policy(ref)


def test_an_adapter_of_a_model_with_more_layers_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    other = tiny.make(tmp_path / "model", num_hidden_layers=3)
    tiny.policy(other).save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / BASE).unlink()
    with pytest.raises(ModelError, match=r"not an adapter for .*layers\.2\..* and none in the model"):
        tiny.policy(ref).add(tmp_path / "adapter", "added")


def test_a_dtype_that_was_not_chosen_is_refused(ref: ModelRef) -> None:
    with pytest.raises(ConfigError, match="dtype is 'auto'; choose one first"):
        Policy.of(ref, dataclasses.replace(tiny.TRAINING, dtype="auto"))


def test_a_new_policy_leaves_the_callers_random_numbers_alone(ref: ModelRef) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Policy(ref, lora_r=2).close()
    assert torch.equal(torch.rand(2), expected)
