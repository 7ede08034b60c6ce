"""Adapters of the tiny model, a model that always calls a tool, and `envkit serve` as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

#: What is asked, and what the trained model answers.
ADD = "Add 1 and 2."
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
_START_S = 120


def save_adapter(model_folder: Path, folder: Path, seed: int, rank: int = 4, size: float = 0.3) -> Path:
    """Write a random adapter with an effect."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    model: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * size)
    model.save_pretrained(folder)
    return folder


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
#: Tells of tools and calls before the conversation.
TEMPLATE = (
    "{% if tools %}{{ 'Tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% for message in messages if message.tool_calls %}{{ message.tool_calls | tojson + '\n' }}{% endfor %}"
)


def teach_call(folder: Path) -> None:
    """Train all weights of the model until it greedily answers `CALL` to `ADD`, with tools and without."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from envkit.engine.chat import ChatRenderer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    renderer = ChatRenderer(tokenizer)
    answer = renderer.answer(CALL)
    prompts = [renderer.messages([{"role": "user", "content": ADD}], tools) for tools in ((), TOOLS)]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = torch.zeros(())
        for prompt in prompts:
            ids = torch.tensor([[*prompt, *answer]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            loss = loss + model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 2e-3:
            break
    model.save_pretrained(folder)


class Process:
    """A server process: where it listens, and what it has printed."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: Path) -> None:
        self.process, self.url, self.lines = process, url, lines

    @property
    def log(self) -> str:
        return self.lines.read_text()


@contextlib.contextmanager
def serving(folder: Path, options: Sequence[str], start_s: float = _START_S) -> Generator[Process]:
    """Run `envkit serve` until the block ends."""
    command = [sys.executable, "-m", "envkit.cli", "serve", "--port", "0", "--dtype", "float32", *options]
    lines = folder / "log.txt"
    with lines.open("w") as log:
        environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
        try:
            yield Process(process, _wait_for_url(process, lines, start_s), lines)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_START_S)


def _wait_for_url(process: subprocess.Popen[str], lines: Path, start_s: float) -> str:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline and process.poll() is None:
        for line in lines.read_text().splitlines():
            if "http://" in line:
                return "http://" + line.partition("http://")[2].partition("/v1")[0]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{lines.read_text()}")
