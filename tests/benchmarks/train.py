"""Times sampling and learning beside TRL and transformers: equal weights, tokens, threads and dtype.

    generate short   32 answers of 64 tokens to one prompt of 20 tokens
    generate long    the same to one of 600
    learner          loss and gradient of one group: a prompt of 512 tokens, 16 answers of 64
    step             a whole step: 16 episodes of one turn (prompt about 500, answer 64), gradient, update
    multi-turn step  the same with three turns (prompt about 300, between answers about 60 tokens)
    adapters         64 answers of 16 tokens to 32 prompts of 20, each prompt with an adapter of its own

TRL samples by transformers' ``generate``. That is timed on plain weights, as is envkit's, without what an
adapter costs. A step is timed on the trainers themselves, with a LoRA adapter of rank 16 on all linear
layers; TRL's with the start of its loop, which is short beside it. TRL's part of the one with turns is put
together here as its loop over tools does it: sample, add to every row what was observed, sample from there;
then its own loss. Answers never end early. The dtype is the one that training would choose here, unless
``DTYPE`` names another. vLLM, in an environment of its own (`make test-vllm` makes it), samples compiled and
reads each prompt once for all answers. ``ONLY`` names operations to time, by how they begin. Writes
``runs/bench/train.json`` and ``.md``. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

sys.path.append(str(Path(__file__).parents[1]))  # for tiny.py

import tiny
from side_by_side import Measures, Ratio, compare

from envkit.checks import check
from envkit.engine.lora import Update, updates_of
from envkit.engine.protocol import Request, Sampling
from envkit.engine.torch_engine import TorchEngine
from envkit.env import Effect, Env
from envkit.models import DEFAULT_MODEL, resolve
from envkit.rollout import Rollouts
from envkit.store import Journal
from envkit.studies.plan import faster_dtype, use_threads
from envkit.train.checkpoint import CheckpointStore
from envkit.train.config import TrainConfig
from envkit.train.grpo import GRPOTrainer
from envkit.train.loss import StepSize, logprobs, policy_loss
from envkit.train.packing import Row, pack
from envkit.train.policy import Policy
from envkit.train.sft import remove_printer
from envkit.types import Task

ROUNDS: Final = max(int(os.environ.get("ROUNDS", "5")), 2)
NEW, GROUP = 64, 16
DTYPE: Final = os.environ.get("DTYPE") or faster_dtype()
ONLY: Final = os.environ.get("ONLY", "")
VLLM_PYTHON: Final = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
RATIOS: Final = {
    "generate_long_vs_trl": Ratio("generate long", "TRL", "envkit", 5.0),
    "generate_short_vs_trl": Ratio("generate short", "TRL", "envkit", 2.0),
    "generate_long_vs_vllm": Ratio("generate long", "vLLM", "envkit", 0.8),
    "generate_short_vs_vllm": Ratio("generate short", "vLLM", "envkit", 0.8),
    "learner_vs_trl": Ratio("learner", "TRL", "envkit", 5.0),
    "step_vs_trl": Ratio("step", "TRL", "envkit", 5.0),
    "multiturn_step_vs_trl": Ratio("multi-turn step", "TRL", "envkit", 2.5),
    "adapters32_vs_base": Ratio("adapters", "base", "32 of rank 4", 0.7),
    "adapters32_vs_sequential": Ratio("adapters", "32 one after another", "32 of rank 4", 5.0),
    "adapters32_r16_vs_base": Ratio("adapters", "base", "32 of rank 16", None),
    "adapters32_vs_peft": Ratio("adapters", "PEFT adapter_names", "32 of rank 4", None),
}
#: Counting every row's prompt as often as it is read.
TOKENS: Final = {
    ("generate long", "envkit"): 600 + 32 * NEW,
    ("generate long", "TRL"): 32 * (600 + NEW),
    ("generate long", "vLLM"): 600 + 32 * NEW,
    ("generate short", "envkit"): 20 + 32 * NEW,
    ("generate short", "vLLM"): 20 + 32 * NEW,
    ("generate short", "TRL"): 32 * (20 + NEW),
    ("learner", "envkit"): 512 + GROUP * NEW,
    ("learner", "TRL"): GROUP * (512 + NEW),
    ("step", "envkit"): 2 * (500 + GROUP * NEW),
    ("step", "TRL"): 2 * GROUP * (500 + NEW),
    ("multi-turn step", "envkit"): 2 * (300 + GROUP * (3 * NEW + 2 * 60)),
    ("multi-turn step", "TRL"): GROUP * ((300 + NEW) + (360 + 2 * NEW) + 2 * (420 + 3 * NEW)),
    **dict.fromkeys(
        [("adapters", way) for way in ("base", "32 of rank 4", "32 of rank 16", "32 one after another")],
        32 * 20 + 64 * 16,
    ),
    ("adapters", "PEFT adapter_names"): 64 * (20 + 16),
}


def reward(text: str) -> float:
    """Half of all answers are right, whatever they say."""
    return float(zlib.crc32(text.encode()) & 1)


class Coin(Env):
    """Any last answer, by `reward`."""

    id = "coin"
    #: What is observed between two answers.
    between = ""

    def setup(self, task: Task) -> str:
        self._said = ""
        return task.prompt

    def apply(self, action: str) -> Effect:
        self._said = action
        return Effect(self.between)

    @check()
    def is_heads(self) -> bool:
        """Whether the answer counts as right."""
        return bool(reward(self._said))


class VLLM:
    """vLLM in its own environment; see `vllm_side.py`. Ends with this process, which holds its input."""

    def __init__(self, model: Path, threads: int) -> None:
        side = Path(__file__).with_name("vllm_side.py")
        # With the allocator that its documentation asks for, where it is installed.
        preloaded = glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")[:1]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "LD_PRELOAD": ":".join(preloaded),
        }
        self._child = subprocess.Popen(
            [VLLM_PYTHON, side, model, DTYPE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def ask(self, prompt: Sequence[int], rows: int, new: int) -> int:
        """Tokens sampled."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"prompt": prompt, "rows": rows, "new": new}) + "\n")
        self._child.stdin.flush()
        return int(self._answer()["tokens"])

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            raise SystemExit(f"{VLLM_PYTHON} ended with status {self._child.wait()}; try it by hand")
        return json.loads(line)


def generating(policy: Policy, plain: Any, length: int, vllm: VLLM | None) -> dict[str, Callable[[], None]]:
    """Sample 32 answers to one prompt, without any adapter."""
    engine = TorchEngine(tiny.plain(policy.ref, DTYPE), [])
    prompt = tiny.prompt(length, seed=length)
    requests = [Request(prompt, (0, row)) for row in range(32)]
    ids = torch.tensor(prompt).repeat(32, 1)
    from transformers import GenerationConfig

    asked = GenerationConfig(
        max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )

    def ours() -> None:
        drawn = engine.generate(requests, Sampling(1.0, NEW))
        expect(sum(len(each.ids) for each in drawn), 32 * NEW)

    def theirs() -> None:
        with torch.no_grad():
            found = plain.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=asked
            )
        expect(found[:, length:].numel(), 32 * NEW)

    def vllms() -> None:
        assert vllm is not None
        expect(vllm.ask(prompt, 32, NEW), 32 * NEW)

    ways = {"envkit": ours, "TRL": theirs}
    return ways if vllm is None else {**ways, "vLLM": vllms}


def learning(policy: Policy, trainer: Any) -> dict[str, Callable[[], object]]:
    """Loss and gradient of one group of equal shape."""
    prompt = tiny.prompt(512, seed=1)
    rows = [
        Row(tiny.prompt(NEW, seed=10 + row), (True,) * NEW, (-8.0,) * NEW, ((-1.0) ** row,) * NEW)
        for row in range(GROUP)
    ]
    size, settings, batch = StepSize(GROUP * NEW, GROUP), TrainConfig(), pack(prompt, rows)
    padded = {
        "prompt_ids": torch.tensor(prompt).repeat(GROUP, 1),
        "prompt_mask": torch.ones(GROUP, 512, dtype=torch.long),
        "completion_ids": torch.tensor([row.ids for row in rows]),
        "completion_mask": torch.ones(GROUP, NEW, dtype=torch.long),
        "old_per_token_logps": torch.tensor([row.logprobs for row in rows]),
        "advantages": torch.tensor([row.advantages[0] for row in rows]),
        "num_items_in_batch": torch.tensor(GROUP * NEW),
    }
    exact = copy.deepcopy(trainer.model).float()

    def ours() -> list[torch.Tensor]:
        loss = policy_loss(logprobs(policy.model, batch, 1.0), batch, size, settings).total
        return gradients(loss, policy.model)

    def theirs() -> list[torch.Tensor]:
        return gradients(trainer._compute_loss(trainer.model, padded), trainer.model)

    wanted = torch.cat(gradients(trainer._compute_loss(exact, padded), exact))
    apart = {
        way: float((torch.cat(found()) - wanted).norm() / wanted.norm())
        for way, found in (("envkit", ours), ("TRL", theirs))
    }
    print("gradients, distance from TRL's in float32:", apart)
    # In bfloat16 both are mostly rounding, of which one batch is a noisy measure.
    if apart["envkit"] > max(1e-4, 1.1 * apart["TRL"]):
        raise SystemExit("another gradient is not a faster one")
    return {"envkit": ours, "TRL": theirs}


def gradients(loss: torch.Tensor, model: Any) -> list[torch.Tensor]:
    """Of the adapter's parameters, each as a row."""
    loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def trl_trainer(policy: Policy, prompt: str, folder: Path) -> Any:
    """TRL's trainer with the fastest settings that train the same: no checkpointing, no reference model."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    library: Any = trl
    trainer: Any = library.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            policy.ref.path, dtype=getattr(torch, DTYPE), attn_implementation="sdpa"
        ),
        processing_class=policy.tokenizer,
        reward_funcs=lambda completions, **_: [reward(text) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 64),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=library.GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=NEW,
            generation_kwargs={"min_new_tokens": NEW},
            loss_type="dapo",
            scale_rewards="none",
            beta=0.0,
            max_steps=1,
            learning_rate=1e-6,
            logging_steps=10**6,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    remove_printer(trainer)
    set_peft_model_state_dict(trainer.model, get_peft_model_state_dict(policy.model))
    return trainer


def our_trainer(policy: Policy, prompt: str, folder: Path, max_turns: int = 1) -> GRPOTrainer:
    """This project's trainer on one group at a time."""
    tasks = [Task(str(number), "train", prompt, {}) for number in range(ROUNDS + 8)]
    config = TrainConfig(
        max_steps=10**6,
        max_turns=max_turns,
        groups_per_step=1,
        num_generations=GROUP,
        max_completion_length=NEW,
        learning_rate=1e-6,
        save_steps=10**6,
    )
    rollouts = Rollouts(lambda: Coin(tasks=tasks, sandbox=tiny.MemoryBackend(), max_turns=max_turns))
    folder.mkdir()
    metrics, episodes = (Journal(folder / name) for name in ("metrics.jsonl", "episodes.jsonl"))
    store = CheckpointStore(folder / "checkpoints")
    return GRPOTrainer(policy, tasks, rollouts, config, metrics, episodes, store)


def stepping(policy: Policy, trainer: Any, prompt: str, folder: Path) -> dict[str, Callable[[], None]]:
    """One step of each trainer."""
    mine = our_trainer(policy, prompt, folder / "one turn")

    def ours() -> None:
        expect(mine._one_step().completion_tokens, GROUP * NEW)

    def theirs() -> None:
        trainer.train()

    return {"envkit": ours, "TRL": theirs}


def turning(policy: Policy, trainer: Any, folder: Path) -> dict[str, Callable[[], None]]:
    """One step of three turns of each trainer."""
    words = policy.tokenizer.decode(tiny.prompt(265, seed=4))
    Coin.between = policy.tokenizer.decode(tiny.prompt(45, seed=6))
    mine = our_trainer(policy, words, folder / "three turns", max_turns=3)
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6)
    prompt = torch.tensor(policy.renderer.first(words)).repeat(GROUP, 1)
    seen = torch.tensor(policy.renderer.following(Coin.between, closed=False)).repeat(GROUP, 1)

    def ours() -> None:
        expect(mine._one_step().completion_tokens, 3 * GROUP * NEW)

    def theirs() -> None:
        ids, sampled = prompt, [torch.zeros_like(prompt)]
        for turn in range(3):
            before = ids.shape[1]
            with torch.no_grad():
                ids = trainer.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=trainer.generation_config,
                )
            sampled.append(torch.ones_like(ids[:, before:]))
            if turn < 2:
                ids = torch.cat([ids, seen], dim=1)
                sampled.append(torch.zeros_like(seen))
        mask, start = torch.cat(sampled, dim=1), prompt.shape[1]
        expect(int(mask.sum()), 3 * GROUP * NEW)
        texts = policy.tokenizer.batch_decode(ids[:, -NEW:])
        rewards = torch.tensor([reward(text) for text in texts])
        trainer._compute_loss(
            trainer.model,
            {
                "prompt_ids": prompt,
                "prompt_mask": torch.ones_like(prompt),
                "completion_ids": ids[:, start:],
                "completion_mask": torch.ones_like(ids[:, start:]),
                "tool_mask": mask[:, start:],
                "advantages": rewards - rewards.mean(),
                "num_items_in_batch": mask.sum(),
            },
        ).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"envkit": ours, "TRL": theirs}


def adapting(policy: Policy) -> dict[str, Callable[[], None]]:
    """Sample with 32 adapters at once, or one after another."""
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    peft: Any = get_peft_model(tiny.plain(policy.ref, DTYPE), config, adapter_name="0")
    for number in range(1, 32):
        peft.add_adapter(str(number), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.01)
    peft.eval()
    adapters = [updates_of(peft, str(number)) for number in range(32)]
    wider = [
        {name: Update(each.down.repeat(4, 1), each.up.repeat(1, 4)) for name, each in adapter.items()}
        for adapter in adapters
    ]
    engine = TorchEngine(tiny.plain(policy.ref, DTYPE), [])
    prompts = [tiny.prompt(20, seed=100 + number) for number in range(32)]
    asked = [
        Request(prompt, (number, row), adapter=number)
        for number, prompt in enumerate(prompts)
        for row in range(2)
    ]
    plainly = [Request(request.prompt_ids, request.rng_key) for request in asked]
    ids = torch.tensor([request.prompt_ids for request in asked])
    names = [str(request.adapter) for request in asked]
    settings = GenerationConfig(
        max_new_tokens=16, do_sample=True, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )

    def ours(loaded: Sequence[Mapping[str, Update]], requests: Sequence[Request]) -> Callable[[], None]:
        def measure() -> None:
            engine.load(loaded)
            drawn = engine.generate(requests, Sampling(1.0, 16))
            expect(sum(len(each.ids) for each in drawn), 64 * 16)

        return measure

    def one_after_another() -> None:
        for number, adapter in enumerate(adapters):
            engine.load([adapter])
            drawn = engine.generate(plainly[2 * number : 2 * number + 2], Sampling(1.0, 16))
            expect(sum(len(each.ids) for each in drawn), 2 * 16)

    def theirs() -> None:
        with torch.no_grad():
            found = peft.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=names,
                generation_config=settings,
            )
        expect(found[:, 20:].numel(), 64 * 16)

    return {
        "base": ours([], plainly),
        "32 of rank 4": ours(adapters, asked),
        "32 of rank 16": ours(wider, asked),
        "32 one after another": one_after_another,
        "PEFT adapter_names": theirs,
    }


def expect(found: int, wanted: int) -> None:
    """A way that does less is not faster."""
    if found != wanted:
        raise SystemExit(f"{found} tokens sampled, expected {wanted}")


@contextlib.contextmanager
def measures() -> Generator[Measures]:
    """What to time, with all that it needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = Policy(resolve(DEFAULT_MODEL), system="You are a helpful assistant.", dtype=DTYPE)
        with torch.no_grad():  # an adapter that does something
            for parameter in policy.trainable():
                parameter.add_(torch.randn_like(parameter) * 1e-3)
        policy.engine = TorchEngine(tiny.plain(policy.ref, DTYPE), [])
        words = policy.tokenizer.decode(tiny.prompt(460, seed=3))
        trainer = trl_trainer(policy, words, folder)
        vllm = VLLM(policy.ref.path, torch.get_num_threads()) if VLLM_PYTHON.exists() else None
        yield {
            (operation, way): measure
            for operation, ways in {
                "generate short": generating(policy, tiny.plain(policy.ref, DTYPE), 20, vllm),
                "generate long": generating(policy, tiny.plain(policy.ref, DTYPE), 600, vllm),
                "learner": learning(policy, trainer),
                "step": stepping(policy, trainer, words, folder),
                "multi-turn step": turning(policy, trainer, folder),
                "adapters": adapting(policy),
            }.items()
            for way, measure in ways.items()
            if operation.startswith(ONLY)
        }


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    threads = use_threads()
    facts = {"model": DEFAULT_MODEL, "dtype": DTYPE, "threads": threads}
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    if not VLLM_PYTHON.exists():
        print("vLLM is not measured: make test-vllm would install it")
    with measures() as wanted:
        ratios = {
            name: ratio
            for name, ratio in RATIOS.items()
            if {(ratio.operation, ratio.slower), (ratio.operation, ratio.faster)} <= wanted.keys()
        }
        compare("train", wanted, ratios, ROUNDS, {**facts, **versions}, TOKENS)


if __name__ == "__main__":
    main()
