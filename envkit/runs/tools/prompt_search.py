"""Search for a better system message: a model rewrites its own, and the reward decides."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from envkit.agents.local import LocalAgent
from envkit.agents.with_system import WithSystem
from envkit.engine.protocol import Sampling
from envkit.env import Env
from envkit.env.taskfile import digest, read_tasks
from envkit.errors import AgentError, StoreError, UsageError
from envkit.measure.number_text import number
from envkit.measure.stats import Interval, mean_interval
from envkit.models import resolve
from envkit.rollout import Rollouts
from envkit.runs.benchmark.eval_runner import EvalRunner
from envkit.runs.folder.machine import use_threads
from envkit.runs.folder.provenance import require_unchanged
from envkit.runs.folder.trial_run import TASKS_FILE, begin
from envkit.runs.tools.prompt_sizes import PromptSizes
from envkit.runtime.display import Display
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode, encode
from envkit.runtime.stop import ShouldStop, raise_if_stopped
from envkit.runtime.store import RunFolder, write_atomic
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig, from_manifest
from envkit.training.policy import Policy
from envkit.types import EpisodeKey, Outcome, Task, Trajectory

#: ``kind`` in the manifest of such a run.
KIND: Final = "prompt-search"
#: Files of a run: the message that was found, alone and with what it took.
PROMPT_FILE, FOUND_FILE = "prompt.txt", "prompt.json"
_MESSAGES, _ROUNDS = "messages", "rounds"
#: Every fourth task of a round is for failures that a rewriting sees: how many, and characters of each.
_EVERY: Final = 4
_SHOWN: Final = 3
_OBSERVATION, _ANSWER = 1_500, 800
#: Longest message, in characters, and tokens to write one.
_MESSAGE: Final = 2_000
_TOKENS: Final = 400
_SYSTEM: Final = "You write instructions for an assistant that works with an application."


@dataclass(frozen=True, slots=True)
class PromptFound:
    """A system message that was found, and what the search took.

    Args:
        system: the message; the environment's own, if no other was better on fresh train tasks.
        start: the environment's own.
        gain: mean reward of the best other message minus that of the environment's own, on fresh train tasks,
            paired by task; ``None`` if no other won a round. The interval resamples the tasks' sources.
        messages: that were played, the environment's own included.
        episodes: that were played.
        sampled_tokens: of all episodes and rewritings.
        environment: its id.
        model: id of the model that played and rewrote.
        model_digest: of its weights.
    """

    system: str
    start: str
    gain: Interval | None
    messages: int
    episodes: int
    sampled_tokens: int
    environment: str
    model: str
    model_digest: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say in sentences what was found."""
        tried = (
            f"Played {self.messages} messages in {number(self.episodes, 0)} episodes, "
            f"{number(self.sampled_tokens, 0)} sampled tokens."
        )
        if self.gain is None:
            return (tried, "None did better than the environment's own, which stays.")
        ends = f"[{number(self.gain.low, 3)}, {number(self.gain.high, 3)}]"
        return (
            tried,
            f"Mean reward of the best other one on fresh train tasks, minus that of the environment's own: "
            f"{number(self.gain.estimate, 3)} {ends}. {_verdict(self.gain)}",
        )


def _verdict(gain: Interval) -> str:
    if gain.estimate <= 0:
        return "The environment's own stays."
    if not gain.excludes_zero:
        return "It is taken, though the interval includes zero: a gain is not shown."
    return "It is taken."


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that was tried.

    Args:
        round: in which it was written; -1 for the environment's own.
        text: the message; empty if it was cut off.
        tokens: that were sampled to write it.
    """

    round: int
    text: str
    tokens: int


def start(
    root: Path,
    config: TrainConfig,
    sizes: PromptSizes,
    kind: type[Env],
    tasks: Sequence[Task],
    *,
    backend: SandboxBackend,
    display: Display,
    command: str,
) -> RunFolder:
    """Create the run folder of a search.

    Args:
        root: parent of the folder.
        config: its model plays and rewrites; its temperature, lengths and turns are those of episodes.
        sizes: of the search.
        kind: the environment.
        tasks: train tasks; some are drawn from them.
        backend: isolates the episodes.
        display: shows what was chosen.
        command: the command line, for the manifest.

    Raises:
        UsageError: there are too few tasks, or a harness writes the messages.
        ModelError: the model cannot be had.
    """
    if config.warm_start:
        raise UsageError(
            f"warm_start is {config.warm_start!r}; a message is searched for the base: leave it out"
        )
    if kind.harness is not None:
        raise UsageError(
            f"{kind.id}: the harness writes its own system message; name an environment without one"
        )
    if len(tasks) < sizes.needed:
        raise UsageError(
            f"found {len(tasks)} train tasks; {sizes.rounds} rounds of {sizes.tasks_per_round} and "
            f"{sizes.checked} to check take {sizes.needed}: ask for fewer with --rounds, --tasks-per-round "
            "or --checked"
        )
    run, _, _ = begin(
        root,
        KIND,
        config,
        kind,
        tasks,
        sizes.needed,
        backend=backend,
        display=display,
        command=command,
        facts={"sizes": asdict(sizes)},
    )
    return run


def play(
    run: RunFolder, kind: type[Env], backend: SandboxBackend, display: Display, should_stop: ShouldStop
) -> PromptFound:
    """Search, or go on with a search that was stopped; writes what was found to the run folder.

    Raises:
        Stopped: finished episodes and messages stay in the folder.
        StoreError: not such a run, another process works on it, or the environment, its tasks or the weights
            have changed.
        SandboxError, ContractError: the environment or its sandboxes broke; see `EvalRunner.play`.
    """
    with run.locked():
        if (run.path / FOUND_FILE).exists():
            return read_prompt(run.path)
        config, sizes, tasks = _opened(run, kind, backend)
        use_threads(int(run.manifest["machine"]["threads"]))
        ref = resolve(config.model, display)
        if ref.digest != run.manifest["model_digest"]:
            raise StoreError(f"the weights of {config.model} have changed since the run began; restore them")
        with contextlib.closing(Policy.of(ref, config)) as policy:
            policy.sync()
            return _Search(run, config, sizes, kind, tasks, policy, backend, display, should_stop).search()


def read_prompt(path: Path) -> PromptFound:
    """Read what a search has found.

    Args:
        path: its run folder.

    Raises:
        StoreError: it is no such folder, or the search is not finished.
    """
    file = path / FOUND_FILE
    try:
        return decode(PromptFound, read_json_object(file), FOUND_FILE)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{file} cannot be read ({error}); expected a finished run of `envkit study prompt`"
        ) from error


def _opened(
    run: RunFolder, kind: type[Env], backend: SandboxBackend
) -> tuple[TrainConfig, PromptSizes, list[Task]]:
    """Read a run's settings and tasks."""
    manifest = run.manifest
    if manifest.get("kind") != KIND:
        raise StoreError(
            f"{run.path} is a run of kind {manifest.get('kind')!r}; expected one of `envkit study prompt`"
        )
    run.require_unedited()
    require_unchanged(kind, kind.equip(backend).lock, run)
    try:
        config = from_manifest(manifest["train"], str(run.path / "manifest.json"))
        sizes = decode(PromptSizes, manifest["sizes"], "sizes")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{run.path / 'manifest.json'}: damaged ({error!r}); start a new run") from error
    tasks = read_tasks(run.path / TASKS_FILE)
    if digest(tasks) != manifest["tasks"]:
        raise StoreError(f"{run.path / TASKS_FILE} has changed since the run began; start a new run")
    return config, sizes, tasks


class _Search:
    """A search in progress; see `play`."""

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        sizes: PromptSizes,
        kind: type[Env],
        tasks: Sequence[Task],
        policy: Policy,
        backend: SandboxBackend,
        display: Display,
        should_stop: ShouldStop,
    ) -> None:
        self._run, self._config, self._sizes, self._kind, self._tasks = run, config, sizes, kind, tasks
        self._policy, self._backend = policy, backend
        self._display, self._should_stop = display, should_stop
        self._messages = [_Message(-1, kind.system, 0)]
        self._messages += [decode(_Message, _content(each), _MESSAGES) for each in run.records(_MESSAGES)]
        #: Best message of each finished round. It stays, though episodes that were void may be played again.
        self._best = [int(each["best"]) for each in run.records(_ROUNDS)]
        #: Episodes by the purpose and number of a message, in the order of their keys.
        self._played: dict[tuple[str, int], list[Trajectory]] = {}

    def search(self) -> PromptFound:
        """Search; see `play`."""
        for round_number in range(self._sizes.rounds):
            self._round(round_number)
        best = self._best[-1]
        if best == 0:
            return self._found(0, None)
        fresh = self._tasks[self._sizes.rounds * self._sizes.tasks_per_round :]
        own, other = self._rewards("check", 0, fresh), self._rewards("check", best, fresh)
        both = [task for task in fresh if task.id in own and task.id in other]
        rises = [other[task.id] - own[task.id] for task in both]
        gain = mean_interval(rises, [task.source for task in both])
        return self._found(best if gain.estimate > 0 else 0, gain)

    def _round(self, round_number: int) -> None:
        """Play a round, and note its best message."""
        name, size = f"round {round_number + 1}", self._sizes.tasks_per_round
        tasks = self._tasks[round_number * size :][:size]
        before = self._best[round_number - 1] if round_number else 0
        rewards = {index: self._rewards(name, index, tasks) for index in dict.fromkeys((0, before))}
        examples = examples_of([task.id for task in tasks])
        played = [each for each in self._played[name, before] if each.key.task in examples]
        shown = _failed(played, self._config.seed)
        for index in self._rewritten(round_number, _request(self._messages[before].text, shown, self._kind)):
            rewards[index] = self._rewards(name, index, tasks)
        if len(self._best) > round_number:
            return
        best = best_message(rewards, before, [task.id for task in tasks])
        with self._run.journal(_ROUNDS) as journal:
            journal.append({"round": round_number, "best": best})
        self._best.append(best)

    def _found(self, best: int, gain: Interval | None) -> PromptFound:
        """Write down what was found."""
        tokens = sum(each.tokens for each in self._messages)
        for played in self._played.values():
            tokens += sum(step.turn.usage.completion_tokens for episode in played for step in episode.steps)
        result = PromptFound(
            self._messages[best].text,
            self._kind.system,
            gain,
            len({index for _, index in self._played}),
            sum(map(len, self._played.values())),
            tokens,
            self._kind.id,
            self._config.model,
            str(self._run.manifest["model_digest"]),
        )
        write_atomic(self._run.path / PROMPT_FILE, result.system.encode())
        write_atomic(self._run.path / FOUND_FILE, (json.dumps(encode(result), indent=1) + "\n").encode())
        return result

    def _rewards(self, purpose: str, index: int, tasks: Sequence[Task]) -> dict[str, float]:
        """Reward of a message on each task, as far as its episode is not void."""
        row, config = f"{purpose}, message {index}", self._config
        agent = WithSystem(
            LocalAgent(
                row,
                self._policy.engine,
                self._policy.renderer,
                Sampling(config.temperature, config.max_completion_length, stop_strings=config.stop_strings),
                config.turns,
                max_context_length=config.max_context_length,
                should_stop=self._should_stop,
            ),
            self._messages[index].text,
        )

        def make() -> Env:
            return self._kind(tasks=tasks, sandbox=self._backend, max_turns=config.turns)

        runner = EvalRunner(self._run, tasks, self._display)
        with Rollouts(make, should_stop=self._should_stop) as rollouts:
            runner.play(rollouts, agent, row, 1)
        played = self._played[purpose, index] = runner.counted(row, 1)
        return {each.key.task: each.reward for each in played if each.outcome is not Outcome.VOID}

    def _rewritten(self, round_number: int, request: str) -> list[int]:
        """Numbers of a round's new messages; those that are not written yet are written."""
        known = [n for n, each in enumerate(self._messages) if each.round == round_number]
        for rewriting in range(len(known), self._sizes.rewritings):
            raise_if_stopped(self._should_stop)
            message = self._write(round_number, rewriting, request)
            with self._run.journal(_MESSAGES) as journal:
                journal.append(asdict(message))
            known.append(len(self._messages))
            self._messages.append(message)
        texts = [each.text for each in self._messages]
        # An empty message, or one that was written before, is not played.
        return [n for n in known if texts[n] and texts.index(texts[n]) == n]

    def _write(self, round_number: int, rewriting: int, request: str) -> _Message:
        """Let the model write a message."""
        agent = LocalAgent(
            "rewriting",
            self._policy.engine,
            self._policy.renderer,
            Sampling(1.0, _TOKENS),
            should_stop=self._should_stop,
        )
        key = EpisodeKey(self._config.seed, round_number, rewriting, 0, "rewriting")
        session = agent.start(key, _SYSTEM)
        agent.submit(session, request)
        [(_, turn)] = agent.collect()
        if isinstance(turn, AgentError):
            raise turn
        text = turn.text.strip()
        is_whole = turn.stop != "length" and len(text) <= _MESSAGE
        return _Message(round_number, text if is_whole else "", turn.usage.completion_tokens)


def examples_of(tasks: Sequence[str]) -> set[str]:
    """Return the tasks of a round whose failures a rewriting may see. They compare no messages.

    They are chosen beforehand: to leave out tasks that the best message so far has failed would favour it.
    """
    return {*tasks[::_EVERY]}


def best_message(rewards: Mapping[int, Mapping[str, float]], before: int, tasks: Sequence[str]) -> int:
    """Return the message with the highest reward on the tasks that compare; of equals, ``before``.

    Args:
        rewards: message -> task -> reward; a task that is void for any message counts for none.
        before: the message that was best until then.
        tasks: all tasks of the round.
    """
    examples = examples_of(tasks)
    common = [each for each in tasks if each not in examples and all(each in got for got in rewards.values())]

    def total(message: int) -> tuple[float, bool]:
        return sum(rewards[message][task] for task in common), message == before

    return max(rewards, key=total)


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    """A journal's record without what the journal adds."""
    return {name: value for name, value in record.items() if name != "schema"}


def _failed(episodes: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """Draw some of the episodes that failed, to be shown."""
    failed = [each for each in episodes if each.outcome is Outcome.FAILED and each.steps]
    return random.Random(seed).sample(failed, min(_SHOWN, len(failed)))


def _request(message: str, shown: Sequence[Trajectory], kind: type[Env]) -> str:
    """Ask for a better message, with some episodes that failed."""
    paying = {check.name for check in kind.checks if (check.weight or check.gate) and not check.held_out}
    parts = [f"The assistant's instructions are now:\n\n{message}\n"]
    for place, episode in enumerate(shown, 1):
        first, last = episode.steps[0], episode.steps[-1]
        missed = ", ".join(name for name, score in episode.scores.items() if name in paying and score < 1)
        parts.append(
            f"It failed at task {place}. The task:\n\n{first.observation[:_OBSERVATION]}\n\nIt answered:\n\n"
            f"{first.turn.text[:_ANSWER]}\n"
        )
        if last is not first:
            parts.append(
                f"In the end it saw:\n\n{last.observation[:_ANSWER]}\n\nand answered:\n\n"
                f"{last.turn.text[:_ANSWER]}\n"
            )
        if missed:
            parts.append(f"What it failed: {missed}.\n")
    parts.append(
        "Write better instructions: general ones, which help with other tasks of this kind too, in at most "
        "150 words. Keep what the application needs, such as the form of answers. Answer with the "
        "instructions alone."
    )
    return "\n".join(parts)
