"""Unusable base models and adapters are refused with one clear error."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors

from envkit.engine.protocol import Request, Sampling
from envkit.errors import ModelError
from envkit.models import ModelRef
from envkit.training.policy import Policy

MLA = {
    "n_routed_experts": 4,
    "first_k_dense_replace": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
}


def copy_of(ref: ModelRef, folder: Path) -> ModelRef:
    shutil.copytree(ref.path, folder)
    return ModelRef(ref.id, folder, ref.digest)


def test_a_model_without_the_weights_of_a_layer_is_refused(ref: ModelRef, tmp_path: Path) -> None:
    damaged = copy_of(ref, tmp_path / "model")
    file, library = damaged.path / "model.safetensors", cast("Any", safetensors)
    weights = {name: tensor for name, tensor in library.load_file(file).items() if "layers.1.mlp" not in name}
    library.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack model\.layers\.1\.mlp\.down_proj\.weight \(3 t"):
        Policy(damaged)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}, "c_attn, a Conv1D; envkit supports nn.Linear"),
        ("mixtral", {"num_local_experts": 4}, "a Mixtral.*; envkit supports nn.Linear"),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, "a Olmoe.*; envkit supports"),
        ("stablelm", {}, "does not pass keyword arguments to its attention"),
        ("nemotron", {}, "does not pass keyword arguments to its attention"),
        ("deepseek_v3", {**MLA, "num_experts_per_tok": 2, "qk_head_dim": 16}, r"cannot run \(RuntimeError"),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 8}, r"cannot run \(RuntimeError"),
    ],
)
def test_architectures_that_cannot_be_trained_are_refused_on_loading(
    tmp_path: Path, family: str, changes: dict[str, Any], problem: str
) -> None:
    for control in ("all-linear", "full"):
        with pytest.raises(ModelError, match=problem):
            Policy(tiny.make(tmp_path / control, family, **changes), control=control)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has ids up to \d+, but the model embeds 100;"):
        Policy(tiny.make(tmp_path, vocab_size=100, bos_token_id=1, eos_token_id=2, pad_token_id=2))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }",
        "{{ raise_exception('System role not supported') }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_chat_template_that_fails_is_refused(ref: ModelRef, tmp_path: Path, template: str) -> None:
    damaged = copy_of(ref, tmp_path / "model")
    (damaged.path / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="the chat template fails on a system, user and assistant message"):
        Policy(damaged)


#: Replacement values: mostly invalid for any field, some valid for a few.
ODD: list[Any] = [None, True, 0, -1, 3, 10**6, 1.5, float("nan"), "", "x", [], [1], {}, {"a": None}]
FILES = ("config.json", "tokenizer_config.json", "generation_config.json")
NAMES = map(str, itertools.count())


def mutations(file: Path) -> list[tuple[str, ...]]:
    """Return the paths to every value of a JSON file, including the root."""

    def paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        if isinstance(value, dict):
            for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
                yield from paths(inner, (*path, str(key)))  # pyright: ignore[reportUnknownArgumentType]

    return [*paths(json.loads(file.read_text()), ())]


def mutate(file: Path, path: tuple[str, ...], value: Any, *, delete: bool) -> None:
    data = json.loads(file.read_text())
    if not path:
        data = value
    else:
        *outer, last = path
        inner = data
        for key in outer:
            inner = inner[key]
        if delete:
            del inner[last]
        else:
            inner[last] = value
    file.write_text(json.dumps(data))


@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_folder_is_refused_or_works(
    ref: ModelRef, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = copy_of(ref, tmp_path / next(NAMES))
    file = damaged.path / data.draw(st.sampled_from([name for name in FILES if (ref.path / name).exists()]))
    path = data.draw(st.sampled_from(mutations(file)))
    mutate(file, path, data.draw(st.sampled_from(ODD)), delete=data.draw(st.booleans()))
    try:
        policy = Policy(damaged, lora_r=2)
        policy.sync()
        ids = policy.renderer.first("Say it.", "Say a.")
        policy.engine.generate([Request(ids, (1,))], Sampling(1.0, 2))
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_adapter_folder_is_refused_or_works(
    adapter: Path, server: Policy, tmp_path: Path, data: st.DataObject
) -> None:
    name = next(NAMES)
    damaged = tmp_path / name
    shutil.copytree(adapter, damaged)
    file = damaged / data.draw(st.sampled_from(["adapter_config.json", "base.json"]))
    path = data.draw(st.sampled_from(mutations(file)))
    mutate(file, path, data.draw(st.sampled_from([*ODD, 10**9])), delete=data.draw(st.booleans()))
    try:
        server.load_into_engine([damaged])
        server.engine.generate([Request(tiny.prompt(5, seed=1), (1,))], Sampling(1.0, 2))
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    try:
        server.add(damaged, f"adapter-{name}")
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.fixture(scope="module")
def server(ref: ModelRef) -> Policy:
    return tiny.policy(ref)


@pytest.fixture(scope="module")
def adapter(ref: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny.policy(ref, noise=0.1).save_adapter(folder)
    return folder
