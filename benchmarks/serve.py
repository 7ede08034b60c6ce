"""Measure `envkit serve`: many adapters in one batch, exactness, HTTP beside vLLM, and memory.

    mixed        decode 64 rows: of the base, of 32 adapters of rank 8 together, and of one after another
    logits       each row of 32 adapters in one batch against the same row alone, in float32
    http         streams over HTTP in bfloat16: one client and sixteen; tokens/s, time to the first token
    registered   peak memory of a server with 1,000 adapters of rank 8, all of them asked once
    specialists  peak memory of a server with 8 adapters of rank 4

``mixed`` times decoding only, after all prompts are read. Beside ``http``, vLLM's own server answers the same
requests in alternating rounds: compiled, without adapters, from the environment of `make test-vllm`. The
server that is not asked is paused. Memory is the process's peak, weights and mapped files included.

``MODEL`` is the model (default: qwen2.5-coder-0.5b-q4; smollm2-135m-q4 is quick), ``ONLY`` selects parts by
the beginnings of their names (``ONLY=mixed,http``), and ``ROUNDS`` sets the number of rounds (3). ``ROWS``,
``TICKS``, ``NEW`` and ``ASKED`` make parts smaller. Writes ``runs/bench/serve.json`` and ``.md``, which keep
the results of other parts. Exits 1 if a bound is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # for tiny.py

from bounds import Bound, Part, measure
from serve_batch import ADAPTERS, ROWS, TICKS, logits, mixed
from serve_http import CLIENTS, NEW, http
from serve_memory import ASKED, SPECIALISTS, registered, specialists
from serve_shared import ROUNDS, served_model
from train_shared import dtype, selected_operations

from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.provenance import commit

PARTS: Final[Mapping[str, Part]] = {
    "mixed": mixed,
    "logits": logits,
    "http": http,
    "registered": registered,
    "specialists": specialists,
}
_TOGETHER: Final = f"{ADAPTERS} adapters together, tokens/s"
_MANY: Final = f"{CLIENTS} clients"
BOUNDS: Final = {
    "mixed_vs_base": Bound("mixed", _TOGETHER, "base, tokens/s", least=0.75),
    "mixed_vs_one_after_another": Bound("mixed", _TOGETHER, "one after another, tokens/s", least=6),
    "logits_vs_alone": Bound("logits", "largest difference", most=1e-4),
    "http_16_clients_vs_vllm": Bound(
        "http", f"{_MANY}, envkit, tokens/s", f"{_MANY}, vLLM, tokens/s", least=0.8
    ),
    "http_1_client_vs_vllm": Bound("http", "1 client, envkit, tokens/s", "1 client, vLLM, tokens/s"),
    "http_16_clients_p99_vs_vllm": Bound(
        "http", f"{_MANY}, envkit, p99 first token, ms", f"{_MANY}, vLLM, p99 first token, ms"
    ),
    "registered_vs_base_and_budget": Bound("registered", "peak, MB", "base and budget, MB", most=1.0),
    "specialists_vs_base": Bound("specialists", f"with {SPECIALISTS} specialists, MB", "base, MB", most=1.1),
}


def main() -> None:
    chosen = selected_operations(PARTS)
    facts = {"commit": commit(), "model": served_model().id, "dtype": dtype(), "threads": use_threads()}
    sizes = {"rounds": ROUNDS, "rows": ROWS, "ticks": TICKS, "new": NEW, "asked": ASKED}
    measure("serve", chosen, BOUNDS, facts | sizes | {"torch": version("torch")})


if __name__ == "__main__":
    main()
