"""Run folders of made-up episodes, shaped like those of training and evaluation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from envkit.measure.evaluation import EVALUATION_STEP
from envkit.runtime.store import RunFolder, trajectory_to_json
from envkit.types import EpisodeKey, Outcome, StepRecord, Tokens, Trajectory, Turn, Usage

LINES = ("def total(numbers):", "    found = 0", "    for number in numbers:", "        found {} number")
CODE = "\n".join((*LINES, "    return found\n"))
SEEN = f"Sum of a list of numbers.\ntotal([1, 2, 3]) -> 6\nFix the bug:\n```python\n{CODE.format('-=')}```"
ANSWER = f"```python\n{CODE.format('+=')}```"

#: Model output that attacks a reader's browser.
HOSTILE = (
    "</pre></script><script>window.hacked = 1</script>"
    "<img src=x onerror=\"window.hacked = 2\"><svg onload='window.hacked = 3'>\n"
    "<a href='javascript:window.hacked = 4'>&lt;b&gt;</a> \u202egnp.exe\u2066 \u200b\ud800 ${7*7} {{7*7}}"
    "\x00\x1b[31m"
)


def played(
    task: str,
    outcome: Outcome = Outcome.SOLVED,
    turns: Sequence[StepRecord] | None = None,
    *,
    agent: str = "base",
    step: int = EVALUATION_STEP,
    group: int = 0,
    row: int = 0,
    evidence: str = "all 16 calls answered as expected",
) -> Trajectory:
    """Return an episode with the scores and info that belong to its outcome."""
    taken = turns if turns is not None else (turn(reward=float(outcome is Outcome.SOLVED)),)
    key = EpisodeKey(1, step, group, row, task)
    if outcome is Outcome.VOID:
        return Trajectory(key, "code-editor", agent, tuple(taken), outcome, {}, {"error": evidence})
    passed = outcome is Outcome.SOLVED
    info = {"verdict": "PASS" if passed else "FAIL", "evidence": {"answers_as_original": evidence}}
    return Trajectory(
        key, "code-editor", agent, tuple(taken), outcome, {"answers_as_original": float(passed)}, info
    )


def turn(
    observation: str = SEEN,
    text: str = ANSWER,
    reward: float = 0.0,
    tokens: Tokens | None = None,
    stop: str = "stop",
) -> StepRecord:
    """Return one turn; its usage counts the tokens if there are any."""
    read, written = (len(tokens.prompt_ids), len(tokens.completion_ids)) if tokens else (0, 0)
    return StepRecord(observation, Turn(text, tokens, Usage(read, written, 0.25), stop), reward)


def make(root: Path, journals: dict[str, Iterable[Trajectory]], model: str = "tiny") -> RunFolder:
    """Create a run folder with these journals: ``eval-<row>`` or ``episodes``."""
    manifest = {
        "kind": "before-after",
        "environment": "code-editor",
        "model": model,
        "command": "envkit demo",
    }
    run = RunFolder.create(root, "before-after", manifest)
    with run.journal("metrics") as journal:
        journal.append({"phase": "rl", "step": 1, "reward": 0.5})
    for name, episodes in journals.items():
        extra = {"seconds": 0.5} if name.startswith("eval-") else {"phase": "rl"}
        with run.journal(name) as journal:
            for trajectory in episodes:
                journal.append({**extra, **trajectory_to_json(trajectory)})
    return run


def large(root: Path, episodes: int) -> RunFolder:
    """Create a run with half evaluation and half training episodes of realistic size (3.5 kB)."""
    draw = random.Random(0)

    def made(agent: str, evaluation: bool) -> Iterable[Trajectory]:
        for index in range(episodes // 2):
            logprobs = tuple(-math.exp(draw.uniform(-9, 2)) for _ in range(draw.randint(40, 110)))
            ids = tuple(draw.randrange(49152) for _ in logprobs)
            tokens = Tokens(tuple(draw.randrange(49152) for _ in range(110)), ids, logprobs)
            solved = draw.random() < 0.3
            yield played(
                f"library/module.function_{index // 8}/arguments-{index // 8:06x}",
                Outcome.SOLVED if solved else Outcome.FAILED,
                [turn(reward=float(solved), tokens=tokens)],
                agent=agent,
                step=EVALUATION_STEP if evaluation else index // 96,
                group=index // 8,
                row=index % 8,
            )

    return make(root, {"eval-base": made("base", True), "episodes": made("policy", False)})
