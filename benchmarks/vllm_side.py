"""vLLM in its own environment, asked line by line: the peer of `train.py`, in its best settings."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer ``{"prompt": ids, "rows": R, "new": T}`` with ``{"tokens": sampled}``, after a first ``{}``."""
    model, dtype, new_out = sys.argv[1], sys.argv[2], os.dup(1)
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm: Any = LLM(model=model, dtype=dtype, max_model_len=1024, enable_prefix_caching=True)
    with os.fdopen(new_out, "w", buffering=1) as answers:
        print("{}", file=answers)
        for line in sys.stdin:
            asked = json.loads(line)
            # As our engine, which reads the prompt anew at each call; within a call it is read once.
            llm.reset_prefix_cache()
            sampling = SamplingParams(
                n=asked["rows"],
                temperature=1.0,
                max_tokens=asked["new"],
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
            )
            [found] = llm.generate([{"prompt_token_ids": asked["prompt"]}], sampling, use_tqdm=False)
            print(json.dumps({"tokens": sum(len(each.token_ids) for each in found.outputs)}), file=answers)


if __name__ == "__main__":
    main()
