"""Serve vLLM for `train.py` from a separate environment, with its fastest settings, one request per line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Print ``{}``, then answer ``{"prompt": ids, "rows": R, "new": T}`` with ``{"tokens": sampled}``."""
    model, dtype, output = sys.argv[1], sys.argv[2], os.dup(1)
    os.dup2(2, 1)  # vLLM's own output goes to stderr
    from vllm import LLM, SamplingParams

    llm: Any = LLM(model=model, dtype=dtype, max_model_len=1024, enable_prefix_caching=True)
    with os.fdopen(output, "w", buffering=1) as answers:
        print("{}", file=answers)
        for line in sys.stdin:
            request = json.loads(line)
            # As in envkit's engine: the prompt is read once per call and not kept between calls.
            llm.reset_prefix_cache()
            sampling = SamplingParams(
                n=request["rows"],
                temperature=1.0,
                max_tokens=request["new"],
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
            )
            [found] = llm.generate([{"prompt_token_ids": request["prompt"]}], sampling, use_tqdm=False)
            print(json.dumps({"tokens": sum(len(each.token_ids) for each in found.outputs)}), file=answers)


if __name__ == "__main__":
    main()
