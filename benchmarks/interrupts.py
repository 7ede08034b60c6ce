"""Time how soon Ctrl-C is answered, in every phase of ``envkit demo``.

Begins a demo of three minutes in an empty folder with an empty cache of tasks, sends SIGINT in each phase in
turn, and resumes the run for the next phase. Two times are taken: until the line that says what is kept, and
until the process has ended by itself. In phases of a run, a second SIGINT is timed too. Writes
``runs/bench/interrupts.json``; exits 1 if an answer, or the end after a second SIGINT, takes longer than
two seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from envkit.runtime.cache import cache_dir

ROOT = Path(__file__).parents[1]
BAR_S = 2.0
#: First words of the line with which a phase begins, in the order of a demo.
BEFORE_A_RUN = ("mine algorithms", "making the held-out tasks", "timing the model")
OF_A_RUN = (
    "evaluate oracle",
    "evaluate base",
    "SFT warm start",
    "evaluate SFT",
    "reinforcement learning",
    "evaluate SFT+RL",
)
#: First words of the answer: of a run, and of work that leaves nothing.
ANSWERS = ("stopping:", "interrupted by")


@dataclass(frozen=True, slots=True)
class StopTimes:
    """Seconds after SIGINT.

    Args:
        phase: when it was sent.
        signals: 1, or 2 with a second one as soon as the first was answered.
        answered_s: until the answer was printed.
        ended_s: until the process ended, from the last SIGINT.
        code: exit status.
    """

    phase: str
    signals: int
    answered_s: float
    ended_s: float
    code: int


def interrupt(command: list[str], phases: tuple[str, ...], signals: int, folder: Path) -> StopTimes | None:
    """Run a command and interrupt it in the first of these phases that it shows.

    A short phase may be over when the signal comes, so a resumed run may not show it again. ``None`` if the
    command ended before it could answer.
    """
    environment = {**os.environ, "ENVKIT_CACHE": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    wait_s = random.uniform(0.2, 1.5)
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if shown := [phase for phase in phases if line.startswith(phase)]:
                phase = max(shown, key=len)
                break
        else:
            raise SystemExit(f"{' '.join(command)}: ended without any phase of {phases}")
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        answered = None
        for line in process.stderr:
            if line.startswith(ANSWERS):
                answered = time.monotonic()
                break
        if answered is None:
            return None
        if signals == 2:
            process.send_signal(signal.SIGINT)
        last = answered if signals == 2 else sent
        process.stderr.read()
        code = process.wait()
        return StopTimes(phase, signals, answered - sent, time.monotonic() - last, code)


def main() -> None:
    envkit = str(Path(sys.executable).with_name("envkit"))
    answers: list[StopTimes] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        (folder / "cache" / "models").symlink_to(cache_dir() / "models")
        demo = [envkit, "demo", "--minutes", "3"]
        plan = [((phase,), 1) for phase in BEFORE_A_RUN]
        plan += [(OF_A_RUN[i:], signals) for i in range(len(OF_A_RUN)) for signals in (2, 1)]
        for phases, signals in plan:
            runs = sorted((folder / "runs").glob("before-after-*"))
            command = [envkit, "train", "--resume", str(runs[0])] if runs else demo
            answer = interrupt(command, phases, signals, folder)
            if answer is None:
                print(f"{phases[0]:26} over before the signal came")
                continue
            answers.append(answer)
            print(
                f"{answer.phase:26} {signals} SIGINT: answered after {answer.answered_s:.2f} s, "
                f"ended after {answer.ended_s:.2f} s, exit status {answer.code}",
                flush=True,
            )
    output = ROOT / "runs" / "bench" / "interrupts.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([asdict(answer) for answer in answers], indent=1) + "\n")
    late = [a for a in answers if a.answered_s > BAR_S or (a.signals == 2 and a.ended_s > BAR_S)]
    raise SystemExit(1 if late else 0)


if __name__ == "__main__":
    main()
