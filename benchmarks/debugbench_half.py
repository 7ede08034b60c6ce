"""Print the lines of one half of DebugBench's Python file.

    python benchmarks/debugbench_half.py PATH [development | reported] [COUNT] > half.jsonl

Grading was developed with the first half only; see `judge`. Results are reported on the second. With COUNT,
so many lines are drawn: the file is sorted by kind of bug, so its first lines are no sample.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from judge import HALVES, half_of

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("half", choices=HALVES, nargs="?", default="reported")
    parser.add_argument("count", type=int, nargs="?", help="default: all lines, in the order of the file")
    given = parser.parse_args()
    lines = given.path.read_text().splitlines(keepends=True)
    lines = [line for line in lines if half_of(json.loads(line)["slug"]) == given.half]
    if given.count is not None:
        random.Random(SEED).shuffle(lines)
        lines = lines[: given.count]
    sys.stdout.writelines(lines)


if __name__ == "__main__":
    main()
