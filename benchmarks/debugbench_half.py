"""Print the lines of one half of DebugBench's Python file.

    python benchmarks/debugbench_half.py PATH [development | reported] > reported.jsonl

Grading was developed with the first half only; see `judge`. Results are reported on the second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from judge import HALVES, half_of


def main() -> None:
    if len(sys.argv) not in (2, 3) or (sys.argv[2:] and sys.argv[2] not in HALVES):
        raise SystemExit(f"usage: {sys.argv[0]} PATH [{' | '.join(HALVES)}]")
    half = sys.argv[2] if sys.argv[2:] else "reported"
    for line in Path(sys.argv[1]).read_text().splitlines(keepends=True):
        if half_of(json.loads(line)["slug"]) == half:
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
