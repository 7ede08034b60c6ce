"""Time sampling and learning of envkit, TRL and transformers with equal weights, tokens, threads and dtype.

    generate short   32 answers of 64 tokens to one prompt of 20 tokens
    generate long    the same to one of 600
    learner          loss and gradient of one group: a prompt of 512 tokens, 16 answers of 64
    step             a whole step: 16 episodes of one turn (prompt about 500, answer 64), gradient, update
    multi-turn step  the same with three turns (prompt about 300, between answers about 60 tokens)
    products         a decode step's matrix products, of 1 row and of 32, 8 times
    adapters         64 answers of 16 tokens to 32 prompts of 20, each prompt with an adapter of its own
    sft              a step of supervised fine-tuning: 12 examples, prompt 220 (90 of them shared), answer 80
    engine start     a process from its start to the first token, weights on disk

These are timed on SmolLM2-135M, and those that begin with "qwen05" on Qwen2.5-Coder-0.5B, whose vocabulary is
three times as large.

TRL samples with transformers' ``generate``. Sampling is timed on plain weights for both, without the cost of
an adapter. A step is timed on the trainers themselves, with a LoRA adapter of rank 16 on all linear layers;
TRL's time includes the start of its loop, which is short. TRL's multi-turn step is reproduced here after its
loop over tools: sample, append the observation to every row, and sample again; then TRL's loss. Answers never
end early. vLLM runs compiled in a separate environment (made by `make test-vllm`) and reads each prompt once
for all answers.

``DTYPE`` replaces the dtype that training would choose here. ``ONLY`` selects operations by the beginning of
their name, and ``ROUNDS`` sets the number of rounds (5). Each operation is in memory only while it is timed.
Writes ``runs/bench/train.json`` and ``.md``, which keep the results of other operations with their dates.
Exits 1 if a bar is missed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # for tiny.py

from side_by_side import Operation, Ratio, compare_each
from train_adapters import adapter_ways
from train_generate import VLLM_PYTHON, engine_start_ways, generate_ways
from train_learn import learner_ways
from train_products import product_ways
from train_sft import sft_ways
from train_shared import GROUP, NEW, ROUNDS, dtype, on_model, selected_operations
from train_steps import multi_turn_ways, step_ways

from envkit.models import DEFAULT_MODEL
from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.provenance import commit

_ON_BOTH: Final[Mapping[str, Operation]] = {
    "generate short": functools.partial(generate_ways, 20),
    "generate long": functools.partial(generate_ways, 600),
    "learner": learner_ways,
    "step": step_ways,
    "sft": sft_ways,
    "engine start": engine_start_ways,
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    **_ON_BOTH,
    "multi-turn step": multi_turn_ways,
    "products": product_ways,
    "adapters": adapter_ways,
    **{f"qwen05 {name}": on_model(DEFAULT_MODEL, operation) for name, operation in _ON_BOTH.items()},
}
RATIOS: Final = {
    "generate_long_vs_trl": Ratio("generate long", "TRL", "envkit", 5.0),
    "generate_short_vs_trl": Ratio("generate short", "TRL", "envkit", 2.0),
    "generate_long_vs_vllm": Ratio("generate long", "vLLM", "envkit", 0.8),
    "generate_short_vs_vllm": Ratio("generate short", "vLLM", "envkit", 0.8),
    "learner_vs_trl": Ratio("learner", "TRL", "envkit", 5.0),
    "step_vs_trl": Ratio("step", "TRL", "envkit", 5.0),
    "sft_vs_trl": Ratio("sft", "TRL", "envkit", 3.0),
    "qwen05_generate_long_vs_vllm": Ratio("qwen05 generate long", "vLLM", "envkit", 1.0),
    "qwen05_generate_short_vs_vllm": Ratio("qwen05 generate short", "vLLM", "envkit", 1.0),
    "qwen05_learner_vs_trl": Ratio("qwen05 learner", "TRL", "envkit", 5.0),
    "qwen05_step_vs_trl": Ratio("qwen05 step", "TRL", "envkit", 5.0),
    "qwen05_sft_vs_trl": Ratio("qwen05 sft", "TRL", "envkit", 3.0),
    "multiturn_step_vs_trl": Ratio("multi-turn step", "TRL", "envkit", 2.5),
    "products1_vs_plain": Ratio("products", "1 rows, as they are", "1 rows, copied", None),
    "products32_vs_plain": Ratio("products", "32 rows, as they are", "32 rows, copied", None),
    "adapters32_vs_base": Ratio("adapters", "base", "32 of rank 4", 0.7),
    "adapters32_vs_sequential": Ratio("adapters", "32 one after another", "32 of rank 4", 5.0),
    "adapters32_r16_vs_base": Ratio("adapters", "base", "32 of rank 16", None),
    "adapters32_vs_peft": Ratio("adapters", "PEFT adapter_names", "32 of rank 4", None),
}
#: Tokens forwarded, counting a prompt each time it is read.
_TOKENS: Final = {
    ("generate long", "envkit"): 600 + 32 * NEW,
    ("generate long", "TRL"): 32 * (600 + NEW),
    ("generate long", "vLLM"): 600 + 32 * NEW,
    ("generate short", "envkit"): 20 + 32 * NEW,
    ("generate short", "vLLM"): 20 + 32 * NEW,
    ("generate short", "TRL"): 32 * (20 + NEW),
    # The last token predicts nothing and is not read.
    ("learner", "envkit"): 512 + GROUP * (NEW - 1),
    ("learner", "TRL"): GROUP * (512 + NEW),
    ("step", "envkit"): 2 * (500 + GROUP * NEW) - GROUP,
    ("step", "TRL"): 2 * GROUP * (500 + NEW),
    ("multi-turn step", "envkit"): 2 * (300 + GROUP * (3 * NEW + 2 * 60)) - GROUP,
    ("multi-turn step", "TRL"): GROUP * ((300 + NEW) + (360 + 2 * NEW) + 2 * (420 + 3 * NEW)),
    **dict.fromkeys(
        [("adapters", way) for way in ("base", "32 of rank 4", "32 of rank 16", "32 one after another")],
        32 * 20 + 64 * 16,
    ),
    ("adapters", "PEFT adapter_names"): 64 * (20 + 16),
}
TOKENS: Final = _TOKENS | {(f"qwen05 {name}", way): count for (name, way), count in _TOKENS.items()}


def main() -> None:
    chosen = selected_operations(OPERATIONS)
    if not VLLM_PYTHON.exists():
        print("vLLM is not measured: make test-vllm would install it")
    threads = use_threads()
    facts = {"commit": commit(), "dtype": dtype(), "threads": threads}
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    compare_each("train", chosen, RATIOS, ROUNDS, facts | versions, TOKENS)


if __name__ == "__main__":
    main()
