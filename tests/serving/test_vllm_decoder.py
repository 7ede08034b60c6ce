"""`envkit serve --engine vllm` on the real vLLM, in a separate environment: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai import OpenAI
from served import Process, save_adapter, serving

from envkit.cli.main import run as command
from envkit.models import SMALL_MODEL, ModelRef, resolve

HAS_VLLM = importlib.util.find_spec("vllm") is not None
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM has an environment of its own: make test-vllm"),
    #: PEFT uses what transformers warns of.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
PROMPT, NEW = "Once upon a time", 8
_START_S = 900
#: Size of adapters' weights. Larger ones amplify the rounding of float32 in a model of 30 layers.
SIZE = 0.05


@pytest.fixture(scope="module")
def ref() -> ModelRef:
    return resolve(SMALL_MODEL)


@pytest.fixture(scope="module")
def folder(ref: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("red", "blue")):
        save_adapter(ref.path, folder / name, seed, size=SIZE)
    save_adapter(ref.path, folder / "wide", 3, rank=9)
    return folder


@pytest.fixture(scope="module")
def server(ref: ModelRef, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Process]:
    options = ["--engine", "vllm", "--model", str(ref.path), "--name", "base", "--adapters", str(folder)]
    options += ["--kv-cache-mb", "512", "--adapters-mb", "128", "--max-rank", "8", "--max-rows", "8"]
    with serving(tmp_path_factory.mktemp("vllm"), options, start_s=_START_S) as process:
        yield process


@pytest.fixture
def client(server: Process) -> Generator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def greedy(ref: ModelRef, adapter: Path | None) -> tuple[str, list[float]]:
    """The most likely continuation of `PROMPT` in plain transformers and PEFT, and its log-probabilities."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(ref.path)
    model: Any = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids, logprobs = list(tokenizer(PROMPT).input_ids), list[float]()
    start = len(ids)
    with torch.no_grad():
        for _ in range(NEW):
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
            ids.append(int(scores.argmax()))
            logprobs.append(float(scores.max()))
    return str(tokenizer.decode(ids[start:])), logprobs


def test_mixed_requests_answer_as_each_model_alone(client: OpenAI, ref: ModelRef, folder: Path) -> None:
    names = ["base", "red", "blue"] * 3

    def ask(name: str) -> tuple[str, list[float]]:
        reply = client.completions.create(
            model=name, prompt=PROMPT, temperature=0, max_tokens=NEW, logprobs=1
        )
        [choice] = reply.choices
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        return choice.text, [float(value) for value in choice.logprobs.token_logprobs]

    with ThreadPoolExecutor(len(names)) as threads:
        found = [*threads.map(ask, names)]
    expected = {name: greedy(ref, None if name == "base" else folder / name) for name in names}
    assert [text for text, _ in found] == [expected[name][0] for name in names]
    for name, (_, logprobs) in zip(names, found, strict=True):
        assert logprobs == pytest.approx(expected[name][1], abs=2e-4), name
    assert len({text for text, _ in found}) == 3


def test_a_seed_repeats_an_answer_and_a_stream_has_its_text(client: OpenAI) -> None:
    options: Any = {"model": "base", "prompt": PROMPT, "max_tokens": 12, "seed": 5, "n": 2}
    whole = client.completions.create(**options)
    assert whole.choices[0].text != whole.choices[1].text
    texts = ["", ""]
    for chunk in client.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    stop = texts[0][6:9]
    cut = client.completions.create(**options, stop=stop)
    assert cut.choices[0].text == texts[0][: texts[0].index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_chat_ends_at_the_end_of_its_turn(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Say yes."}],
        temperature=0,
        max_tokens=60,
        logprobs=True,
        top_logprobs=3,
    )
    [choice] = reply.choices
    assert choice.message.content
    assert "<|im_end|>" not in choice.message.content
    assert choice.logprobs is not None
    for token in choice.logprobs.content or ():
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob


def test_adapters_come_change_and_go(client: OpenAI, ref: ModelRef, folder: Path) -> None:
    def ask() -> str:
        reply = client.completions.create(model="late", prompt=PROMPT, temperature=0, max_tokens=NEW)
        return reply.choices[0].text

    with pytest.raises(openai.NotFoundError):
        ask()
    for seed in (7, 8):
        save_adapter(ref.path, folder / "late", seed, size=SIZE)
        assert ask() == greedy(ref, folder / "late")[0]
    shutil.rmtree(folder / "late")
    with pytest.raises(openai.NotFoundError):
        ask()


def test_adapters_that_do_not_fit_fail_their_own_requests_only(
    server: Process, client: OpenAI, folder: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = folder / "broken"
    shutil.copytree(folder / "red", broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    cut = {key: value[:, :-1].clone() if "lora_A" in key else value for key, value in tensors.items()}
    save_file(cut, broken / "adapter_model.safetensors")
    try:
        for name, problem in (("wide", "has rank 9"), ("broken", "an adapter of shape")):
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model=name, prompt=PROMPT, max_tokens=2)
            assert problem in server.log
        for name in ("red", "base"):
            assert client.completions.create(model=name, prompt=PROMPT, max_tokens=2).choices
    finally:
        shutil.rmtree(broken)


def metric(server: Process, name: str) -> float:
    text = httpx2.get(server.url + "/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


def test_a_client_that_leaves_frees_its_rows(server: Process, client: OpenAI) -> None:
    with client.completions.create(model="red", prompt=PROMPT, max_tokens=2000, n=4, stream=True) as stream:
        next(iter(stream))
        assert metric(server, "envkit_rows_running") > 0
    for _ in range(600):
        if not metric(server, "envkit_rows_running") + metric(server, "envkit_rows_waiting"):
            return
        time.sleep(0.1)
    raise AssertionError("rows did not end")


def test_sigterm_lets_an_answer_end_and_leaves_no_process(server: Process, client: OpenAI) -> None:
    """Last in this file, as it ends the server."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert children
    stream = client.completions.create(model="red", prompt=PROMPT, max_tokens=30, n=2, stream=True)
    chunks = [next(iter(stream))]
    server.process.send_signal(signal.SIGTERM)
    chunks += [*stream]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(ends) == 2
    assert server.process.wait(120) == 128 + signal.SIGTERM
    while [child for child in children if os.path.exists(f"/proc/{child}")]:
        time.sleep(0.1)  # Python's own tracker of resources ends after the process


def test_too_little_memory_for_adapters_is_refused(ref: ModelRef, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--engine", "vllm", "--model", str(ref.path), "--port", "0"]
    assert command(["serve", *options, "--adapters-mb", "1"]) == 2
    assert "room for two" in capsys.readouterr().err
