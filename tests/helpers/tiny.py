"""A two-layer language model with random weights, and a minimal environment to train it on."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import torch

from envkit.engine.torch_engine import TorchEngine
from envkit.env import Env
from envkit.env.authored import ActionResult
from envkit.env.checks import check
from envkit.errors import SandboxError
from envkit.models import SMALL_MODEL, ModelRef, resolve, weights_digest
from envkit.sandbox import ExecResult, Limits, Peer, SandboxBackend
from envkit.training import sft
from envkit.training.config import TrainConfig
from envkit.training.learner.packing import TrainingRow
from envkit.training.policy import Policy
from envkit.types import Task

FAMILIES = ("llama", "qwen2", "qwen3")

#: A short training run of the tiny model on `LetterEnv`.
TRAINING = TrainConfig(
    seed=5,
    max_turns=2,
    max_steps=4,
    learning_rate=3e-3,
    groups_per_step=3,
    num_generations=4,
    max_completion_length=3,
    save_steps=1,
)


#: Tokens of the tiny model. A vocabulary of 49,152 takes most of the time of loading and of computing.
VOCABULARY = 2_048


@functools.cache
def tokenizer() -> Any:
    """The small model's tokenizer with its first tokens only, so a text takes more of them."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(resolve(SMALL_MODEL).path).save_pretrained(folder)
        path = Path(folder, "tokenizer.json")
        stored = json.loads(path.read_text())
        bpe = stored["model"]  # byte pair encoding: merge number n makes the token after that of number n - 1
        bpe["vocab"] = {text: number for text, number in bpe["vocab"].items() if number < VOCABULARY}
        bpe["merges"] = [pair for pair in bpe["merges"] if "".join(pair) in bpe["vocab"]]
        path.write_text(json.dumps(stored))
        return AutoTokenizer.from_pretrained(folder)


def config(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    settings = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1_024,
        "initializer_range": 0.2,  # large, so that some next tokens are much more probable than others
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer().bos_token_id,
        "eos_token_id": tokenizer().eos_token_id,
        "pad_token_id": tokenizer().pad_token_id,
    }
    return AutoConfig.for_model(family, **settings | changes)


def make(folder: Path, family: str = "llama", **changes: Any) -> ModelRef:
    """Save a model with random weights, which are fixed for a family."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(family, **changes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return ModelRef(f"tiny-{family}", folder, weights_digest(folder))


def plain(ref: ModelRef, dtype: str = "float32") -> Any:
    """Return the model in plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        ref.path, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    return model.eval()


def engine(ref: ModelRef, stop_ids: Sequence[int] = (), max_rows: int = 128) -> TorchEngine:
    return TorchEngine(plain(ref), stop_ids, max_rows)


def policy(ref: ModelRef, *, seed: int = 0, noise: float = 0.0, device: str = "cpu") -> Policy:
    """Return a policy with a new adapter, or with ``noise`` added to it so that it has an effect."""
    made = Policy(ref, lora_r=4, lora_alpha=8, seed=seed, device=device)
    if noise:
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in made.trainable():
                parameter.add_((torch.randn(parameter.shape) * noise).to(parameter))
    return made


def weights(made: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in made.trainable()]


def equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def prompt(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(17, len(tokenizer()), (length,), generator=generator).tolist())


def example(prompt: tuple[int, ...], answer: tuple[int, ...]) -> sft.SftExample:
    """A demonstration of one turn."""
    zeros = (0.0,) * len(answer)
    row = TrainingRow(answer, (True,) * len(answer), zeros, zeros)
    return sft.SftExample(prompt, row, len(prompt) + len(answer))


class MemorySandbox:
    """Files in a dict; runs nothing."""

    python = "python"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def read(self, path: str, limit_bytes: int) -> bytes:
        return self.files[path][:limit_bytes]

    def export(self, globs: Sequence[str], limit_bytes: int) -> Mapping[str, bytes]:
        return dict(self.files)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limits: Limits = Limits()) -> ExecResult:
        raise SandboxError("runs nothing")

    def open(self, argv: Sequence[str], *, limits: Limits = Limits()) -> Peer:
        raise SandboxError("runs nothing")

    def snapshot(self) -> str:
        raise SandboxError("keeps nothing")

    def fork(self, snapshot: str | None = None) -> MemorySandbox:
        raise SandboxError("keeps nothing")

    def reset(self, snapshot: str | None = None) -> None:
        self.files.clear()

    def close(self) -> None:
        self.files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryBackend(SandboxBackend):
    """Makes memory sandboxes; fails on the calls with the numbers in ``broken``, counted from 0."""

    name = "memory"
    isolated = True

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self._broken = broken
        self._made = -1

    def available(self) -> str | None:
        return None

    def create(self) -> MemorySandbox:
        self._made += 1
        if self._made in self._broken:
            raise SandboxError(f"broken on call {self._made}")
        return MemorySandbox()


class LetterEnv(Env):
    """Gives reward 1 if the last answer contains the task's letter."""

    id: ClassVar[str] = "letter"
    system: ClassVar[str] = "Say it."

    def setup(self, task: Task) -> str:
        self._said = ""
        return task.prompt

    def apply(self, action: str) -> ActionResult:
        self._said = action
        return ActionResult(f"You said {action[:40]!r}. Again.")

    @check()
    def says_it(self) -> bool:
        return str(self.task.metadata["letter"]) in self._said


def letter_tasks(letters: str) -> list[Task]:
    return [Task(letter, "train", f"Say {letter}.", {}, {"letter": letter}) for letter in letters]
