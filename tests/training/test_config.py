"""An invalid configuration is refused, naming file and field; a valid one survives a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envkit.errors import ConfigError
from envkit.training.config import Mix, TrainConfig, from_manifest, from_mapping, from_toml, to_mapping


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"num_generation": 8},
            r"unknown key 'num_generation'; did you mean num_generations\? expected .*beta",
        ),
        ({"seed": "0"}, "seed is '0'; expected int"),
        ({"seed": True}, "seed is True; expected int"),
        ({"max_steps": 4.0}, "max_steps is 4.0; expected int"),
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'; expected float"),
        ({"model": {"id": "x"}}, "model is .*; expected str"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; it must be at most 4294967295"),
        ({"lora_r": 10**6}, "lora_r is 1000000; it must be at most 1024"),
        ({"max_completion_length": 10**8}, "max_completion_length is 100000000; it must be at most 131072"),
        ({"num_generations": 1}, "num_generations is 1; it must be at least 2"),
        ({"groups_per_step": 0}, "groups_per_step is 0; it must be at least 1"),
        ({"max_completion_length": 0}, "max_completion_length is 0"),
        ({"temperature": 0}, "temperature is 0.0; it must be positive and finite"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be positive and finite"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is inf"),
        ({"sft_examples": 0, "max_steps": 0}, "sft_examples and max_steps are both 0, so nothing is trained"),
        (
            {"num_iterations": 4, "importance_sampling_mode": "token_truncate"},
            "num_iterations is 4; with importance_sampling_mode 'token_truncate', later steps",
        ),
        ({"sft_examples": 5}, "sft_examples is 5; it must be 0 or at least sft_batch_size, 12"),
        ({"epsilon": -0.2}, "epsilon is -0.2"),
        ({"epsilon_high": 0}, "epsilon_high is 0.0; it must be positive and finite"),
        ({"epsilon_high": "0.3"}, "epsilon_high is '0.3'; expected float"),
        ({"beta": -1}, "beta is -1.0; it must be 0 or positive, and finite"),
        ({"min_entropy": -0.1}, "min_entropy is -0.1; it must be 0 or positive, and finite"),
        ({"max_kl": 0.0}, "max_kl is 0.0; it must be positive and finite"),
        ({"backend": "verl"}, "backend is 'verl'; expected one of: envkit, trl"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of: auto, float32, bfloat16"),
        ({"device": "tpu"}, "device is 'tpu'; expected one of: cpu, cuda"),
        ({"device": "cuda", "engine": "vllm"}, "device is 'cuda'; engine 'vllm'"),
        ({"torch_compile": False}, "torch_compile is no setting any more"),
        ({"curriculum_tasks": 600}, "curriculum_tasks is no setting any more"),
        ({"stop_strings": "x"}, "stop_strings is 'x'; expected a list"),
        ({"stop_strings": ["x", 1]}, r"stop_strings\[1\] is 1; expected str"),
        ({"stop_strings": ["x", ""]}, "stop_strings has an empty text"),
        ({"advantage": "hacked", "alarm_steps": 1}, r"max_hacked is 0\.2; advantage 'hacked'"),
        ({"stop_strings": ["x"], "engine": "vllm"}, r"stop_strings is \('x',\); engine 'vllm'"),
        ({"shaping": {"tries": "1"}}, "shaping.tries is '1'; expected float"),
        ({"shaping": {"tries": float("inf")}}, "shaping.tries is inf; it must be positive and finite"),
        ({"shaping": {"tries": -1}}, "shaping.tries is -1.0; it must be positive and finite"),
        (
            {"shaping": {"tries": 0.2}, "advantage": "solved"},
            "advantage 'solved' ignores rewards, and so shaping",
        ),
        ({"shaping": 1}, "shaping is 1; expected a table"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; expected one of: dapo, grpo, dr_grpo, cispo"),
        ({"importance_sampling_level": "turn"}, "importance_sampling_level is 'turn'; expected one of: "),
        ({"backend": "trl", "max_context_length": 512}, "max_context_length is 512; backend 'trl'"),
        (
            {"backend": "trl", "importance_sampling_mode": "token_mask"},
            "importance_sampling_mode is 'token_mask'; backend 'trl'",
        ),
        ({"importance_sampling_mode": "mask"}, "importance_sampling_mode is 'mask'; expected one of: none, "),
        ({"importance_sampling_clip_max": 0.0}, "importance_sampling_clip_max is 0.0; it must be positive"),
        ({"loss_type": "cispo"}, "epsilon_high is None; with loss_type 'cispo' it is the largest weight"),
        ({"mix": {"code-editor": 2}}, "mix is .*; expected a list"),
        ({"mix": [{"weight": 2}]}, r"mix\[0\] lacks the field 'env'"),
        ({"mix": [{"env": "a", "weight": -1}]}, "weight of a is -1.0; it must be positive and finite"),
        ({"mix": [{"env": "a"}, {"env": "a"}]}, "mix names a twice; name each environment once"),
        ({"worst_task_weight": 0.5}, "worst_task_weight is 0.5; it must be at least 1"),
        ({"worst_task_weight": float("nan")}, "worst_task_weight is nan; it must be positive and finite"),
        ({"loss_type": "cispo", "epsilon_high": 0.3}, "epsilon_high is 0.3; with loss_type 'cispo'"),
    ],
)
def test_errors_name_the_file_and_the_field(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.toml: {problem}"):
        from_mapping(values, "run.toml")


def test_an_integer_is_accepted_for_a_float() -> None:
    assert from_mapping({"temperature": 1}, "x") == TrainConfig(temperature=1.0)


def test_a_configuration_survives_conversion_to_plain_data() -> None:
    changed = TrainConfig(
        seed=5,
        learning_rate=3e-5,
        model="a/b",
        epsilon_high=0.3,
        stop_strings=("a", "\n"),
        shaping={"tries": 0.2},
        mix=(Mix("code-editor", 2.0), Mix("sql-desk")),
    )
    assert from_mapping(json.loads(json.dumps(to_mapping(changed))), "x") == changed


def test_the_defaults_are_valid() -> None:
    assert from_mapping({}, "x") == TrainConfig()


def test_a_manifest_of_an_older_version_still_reads() -> None:
    old = {"torch_compile": False, "curriculum_tasks": 103, "loss_type": "bnpo", "seed": 3}
    assert from_manifest(old, "manifest.json") == TrainConfig(dtype="float32", loss_type="dapo", seed=3)
    with pytest.raises(ConfigError, match="torch_compile is True; this option was removed"):
        from_manifest({"torch_compile": True}, "manifest.json")


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\nlearning_rate = 2e-5\n")
    assert from_toml(file) == TrainConfig(seed=3, learning_rate=2e-5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"seed = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"sead = 1", "unknown key 'sead'"),
        (b"[train]\nseed = 1", "unknown key 'train'"),
        (b"num_generations = 1", "num_generations is 1"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        from_toml(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        from_toml(tmp_path)
