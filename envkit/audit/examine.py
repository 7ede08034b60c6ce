"""Putting an environment to the test: does it pay for the work, and for nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import queue
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar, cast, final

from envkit.audit.reach import Lookout
from envkit.audit.unpack import unpacked
from envkit.display import Display
from envkit.env import Env
from envkit.errors import EnvkitError, SandboxError
from envkit.sandbox import Sandbox, SandboxBackend
from envkit.sandbox_check import ESSENTIAL, self_check
from envkit.tools import Tool, written
from envkit.types import JSON, Task

#: Tasks that are looked at, spread over all; exploits are tried on the first.
SAMPLE: Final = 6
#: Longest that one episode may take before it counts as one that never ends.
PATIENCE_S: Final = 120.0
#: What noise may earn on average: some answers are right by chance.
_FLOOR: Final = 0.1
#: Shorter hidden texts are found by chance.
_LEAST_SECRET: Final = 8
#: Shorter ones stand in a system's files by chance.
_LEAST_SENTENCE: Final = 16
_NOISE: Final = (
    *("", "yes", "I do not know.", "submit", "0", "{}", "```\nx\n```", "<|im_end|>", "\N{SNOWMAN} " * 50),
    *("reward = 1", "PASS", "print('3 passed')", "a" * 2000),
)

Check = Callable[["Subject"], str]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Args:
        check: its name.
        ok: whether the environment passed; ``None`` where the check does not apply.
        detail: numbers, or what is wrong, or why it does not apply.
    """

    check: str
    ok: bool | None
    detail: str


class Fault(Exception):
    """The environment does not pass a check; the message says how."""


class NotApplicable(Exception):
    """The check has nothing to look at; the message says why."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode as it looked from outside.

    Args:
        seen: observations, the first one included.
        rewards: of each step.
        info: of the last step.
        slowest_s: wall seconds of its slowest step.
    """

    seen: tuple[str, ...]
    rewards: tuple[float, ...]
    info: Mapping[str, Any]
    slowest_s: float

    @property
    def reward(self) -> float:
        return sum(self.rewards)


@final
class Subject:
    """An environment under audit.

    Args:
        kind: its class.
        tasks: all of its tasks that there are; a few are looked at.
        backend: where it keeps its episodes.
        max_turns: budget that the oracle must do with.
    """

    def __init__(
        self, kind: type[Env], tasks: Sequence[Task], backend: SandboxBackend, max_turns: int
    ) -> None:
        self.kind, self.backend, self.max_turns = kind, backend, max_turns
        stride = max(len(tasks) // SAMPLE, 1)
        self.tasks = tasks[::stride][:SAMPLE]

    def make(self, tasks: Sequence[Task], backend: SandboxBackend | None = None) -> Env:
        """A fresh instance; the caller closes it."""
        return self.kind(tasks=tasks, sandbox=backend or self.backend, max_turns=self.max_turns)

    def play(
        self, task: Task, actions: Sequence[str], *, seed: int = 0, backend: _Watched | None = None
    ) -> Played:
        """Play one episode; the last action is said again until it ends.

        Raises:
            Fault: it does not end in time.
        """
        watched = backend or _Watched(self.backend)

        def episode() -> Played:
            with contextlib.closing(self.make([task], watched)) as env:
                seen = [env.reset(seed=seed, options={"task": task.id})[0]]
                rewards: list[float] = []
                slowest_s = 0.0
                for action in itertools.chain(actions, itertools.repeat(actions[-1])):
                    began = time.monotonic()
                    observation, reward, terminated, truncated, info = env.step(action)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    seen.append(observation)
                    rewards.append(reward)
                    if terminated or truncated:
                        return Played(tuple(seen), tuple(rewards), info, slowest_s)
                raise AssertionError("repeat ended")

        return _in_time(episode, f"task {task.id}", watched.close)

    def oracle(self, task: Task, **options: Any) -> Played:
        return self.play(task, self.kind.oracle(task), **options)

    def noise(self, task: Task, number: int) -> list[str]:
        """What somebody says who knows nothing: loose words, and calls of tools with nothing in them."""
        draw = random.Random(f"{task.id} {number}")
        calls = [_empty_call(tool) for tool in self.kind.tools]
        return [draw.choice([*_NOISE, *calls]) for _ in range(self.max_turns)]


def examine(subject: Subject, display: Display) -> list[Finding]:
    """Every check, in order; what one raises is its finding."""
    findings: list[Finding] = []
    display.phase(f"audit {subject.kind.id}", len(CHECKS))
    for number, (name, check) in enumerate(CHECKS.items(), 1):
        try:
            finding = Finding(name, True, check(subject))
        except Fault as fault:
            finding = Finding(name, False, str(fault))
        except NotApplicable as reason:
            finding = Finding(name, None, str(reason))
        except EnvkitError as error:
            finding = Finding(name, False, f"{type(error).__name__}: {error}")
        except Exception as error:  # whatever an author's code raises is a finding about it
            finding = Finding(name, False, f"a bug: {type(error).__name__}: {error}")
        findings.append(finding)
        display.advance(number, name)
    return findings


def _gymnasium(subject: Subject) -> str:
    from gymnasium.utils.env_checker import check_env

    with contextlib.closing(subject.make(subject.tasks)) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces that it does not know
        try:
            check_env(env, skip_render_check=True)
        except AssertionError as error:
            raise Fault(f"Gymnasium's check_env says: {error}") from error
    return "Gymnasium's own checks pass"


def _isolated(subject: Subject) -> str:
    with contextlib.closing(subject.make(subject.tasks)) as env:
        backend = env.backend
    if not backend.isolated:
        raise Fault(f"its sandbox, {backend.name}, does not isolate: network, files and processes are open")
    failed = [one for one in self_check(backend, ESSENTIAL) if not one.ok]
    if failed:
        raise Fault(f"its sandbox, {backend.name}, lets programs out: {failed[0].name}: {failed[0].detail}")
    if subject.kind.isolation != "sandbox":
        raise NotApplicable(f"isolation {subject.kind.isolation}: what an agent works with runs elsewhere")
    return f"{backend.name}: {len(ESSENTIAL)} essential checks of the sandbox pass"


def _oracle(subject: Subject) -> str:
    for task in subject.tasks:
        played = subject.oracle(task)
        if played.reward != 1 or not played.info["solved"]:
            raise Fault(f"the oracle earns {played.reward:g} on task {task.id}: {_why(played)}")
    return (
        f"the oracle solves {len(subject.tasks)} of {len(subject.tasks)} tasks in {subject.max_turns} turns"
    )


def _idle(subject: Subject) -> str:
    for task in subject.tasks:
        played = subject.play(task, [subject.kind.idle])
        if played.reward != 0:
            raise Fault(f"doing nothing earns {played.reward:g} on task {task.id}: {_why(played)}")
    return f"doing nothing earns 0 on {len(subject.tasks)} tasks"


def _noise(subject: Subject) -> str:
    rewards: list[float] = []
    for task in subject.tasks:
        rewards += [
            subject.play(task, subject.noise(task, number), seed=number).reward for number in range(5)
        ]
    if (mean := sum(rewards) / len(rewards)) > _FLOOR:
        raise Fault(f"noise earns {mean:.2f} on average over {len(rewards)} episodes, more than {_FLOOR}")
    return f"noise earns {mean:.2f} on average over {len(rewards)} episodes"


def _range(subject: Subject) -> str:
    seen: list[float] = []
    for task in subject.tasks:
        for actions in (subject.kind.oracle(task), [subject.kind.idle], subject.noise(task, 0)):
            seen += subject.play(task, actions).rewards
    if wrong := [reward for reward in seen if not (math.isfinite(reward) and 0 <= reward <= 1)]:
        raise Fault(f"a reward of {wrong[0]}; expected numbers from 0 to 1")
    return f"{len(seen)} rewards, all from 0 to 1"


def _repeats(subject: Subject) -> str:
    count = 0
    for task in subject.tasks:
        for actions in (subject.kind.oracle(task), subject.noise(task, 1)):
            first, again = (subject.play(task, actions, seed=7) for _ in range(2))
            for turn, (one, other) in enumerate(itertools.zip_longest(first.seen, again.seen)):
                if one != other:
                    raise Fault(
                        f"task {task.id}: equal episodes differ in observation {turn}: {one!r}, {other!r}"
                    )
            for name in ("solved", "scores", "verdict"):
                if first.info[name] != again.info[name]:
                    pair = f"{first.info[name]}, {again.info[name]}"
                    raise Fault(f"task {task.id}: equal episodes differ in {name}: {pair}")
            count += 1
    return f"{count} episodes, played twice in instances of their own, are equal in every word and reward"


def _hidden(subject: Subject) -> str:
    hidden = [_secrets(subject, task) for task in subject.tasks]
    everywhere = _everywhere(subject, [secret for _, secrets in hidden for secret in secrets])
    for task, secrets in hidden:
        spelled = {text: secret for secret in secrets for text in _spellings(secret)}
        for place, data in _visible(subject, task):
            if text := next((text for text in spelled if text in data), None):
                raise _leak(task, spelled[text], place)
        sought = [text for text, secret in spelled.items() if secret not in everywhere]
        for text, place in _reachable(subject, task, sought).items():
            raise _leak(task, spelled[text], place)
    if not (count := sum(len(secrets) for _, secrets in hidden)):
        raise NotApplicable(f"no task hides a number, or a text of {_LEAST_SECRET} or more characters")
    return f"{count} hidden values, in no observation, and in no file, git history or process of a sandbox"


def _void(subject: Subject) -> str:
    task = subject.tasks[0]
    broken = _Watched(subject.backend, breaks=True)
    try:
        played = subject.oracle(task, seed=99, backend=broken)
    except SandboxError:
        return "an episode whose sandbox breaks ends in SandboxError, not in a verdict"
    if broken.broke:
        raise Fault(f"a broken sandbox became verdict {played.info['verdict']}, reward {played.reward:g}")
    raise NotApplicable("the oracle's episode runs nothing in a sandbox")


def _exploits(subject: Subject) -> str:
    task = subject.tasks[0]
    exploits = subject.kind.exploits(task)
    if not exploits:
        raise NotApplicable("it names no exploits; see Env.exploits")
    tried = [exploit for exploit in exploits if not exploit.inapplicable]
    won: list[str] = []
    for exploit in tried:
        for _ in range(2):  # a second breakdown counts as a failure, as it does in rollouts
            try:
                played = subject.play(task, exploit.actions, seed=3)
            except SandboxError:
                continue
            if played.reward:
                won.append(f"{exploit.name} earns {played.reward:g}")
            break
    if won:
        raise Fault(f"{len(won)} of {len(tried)} exploits win: {'; '.join(won[:5])}")
    left = [f"{exploit.name}: {exploit.inapplicable}" for exploit in exploits if exploit.inapplicable]
    return f"{len(tried)} exploits earn nothing" + (f"; not applicable: {'; '.join(left)}" if left else "")


def _pace(subject: Subject) -> str:
    slowest = [subject.oracle(task, seed=5).slowest_s for task in subject.tasks]
    return f"slowest step of an oracle's episode: {1000 * sorted(slowest)[len(slowest) // 2]:.0f} ms (median)"


#: In this order: what comes first makes what follows worth looking at.
CHECKS: Final[Mapping[str, Check]] = {
    "gymnasium accepts it": _gymnasium,
    "its sandbox isolates": _isolated,
    "the oracle earns all": _oracle,
    "doing nothing earns nothing": _idle,
    "noise earns nothing": _noise,
    "rewards are numbers from 0 to 1": _range,
    "equal episodes are equal": _repeats,
    "what is hidden stays hidden": _hidden,
    "broken machinery is no verdict": _void,
    "exploits earn nothing": _exploits,
    "steps end in time": _pace,
}


def _in_time(work: Callable[[], Result], what: str, end: Callable[[], None]) -> Result:
    """What ``work`` returns or raises; ``end`` ends what it waits for, if that takes too long."""
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        result, error = done.get(timeout=PATIENCE_S)
    except queue.Empty:
        end()
        worker.join(PATIENCE_S)  # what does not wait for a sandbox is left behind
        raise Fault(
            f"{what}: an episode has not ended within {PATIENCE_S:g} s; is a time limit ignored?"
        ) from None
    if error is not None:
        raise error
    return cast("Result", result)


def _why(played: Played) -> str:
    """The checks' own words, or their scores."""
    evidence = cast("Mapping[str, str]", played.info.get("evidence") or {})
    return (
        "; ".join(f"{name}: {text}" for name, text in evidence.items()) or f"scores {played.info['scores']}"
    )


def _empty_call(tool: Tool) -> str:
    """A call with the least that its schema allows."""
    least: Mapping[str, JSON] = {"string": "", "integer": 0, "number": 0.0, "boolean": False, "array": []}
    parameters = tool.schema()["function"]["parameters"]
    needed = {name: parameters["properties"][name] for name in parameters.get("required", ())}
    return written(
        tool.name,
        {
            name: each["enum"][0] if "enum" in each else least.get(each.get("type", ""))
            for name, each in needed.items()
        },
    )


def _texts(value: object) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[str, object]", value).values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in cast("Sequence[object]", value):
            yield from _texts(part)


def _secrets(subject: Subject, task: Task) -> tuple[Task, list[str]]:
    """The task to pose, and what of it nobody may see who does not solve it."""
    shown = (task.prompt, *task.files, *task.files.values(), *_texts(task.metadata))
    public = "\n".join(shown).encode(errors="surrogatepass")
    secrets = [
        text
        for text in _texts(task.hidden)
        if len(text) >= _LEAST_SECRET and not any(spelled in public for spelled in _spellings(text))
    ]
    if marked := _marked(subject, task):
        return marked[0], [*secrets, *marked[1]]
    return task, secrets


def _marked(subject: Subject, task: Task) -> tuple[Task, list[str]] | None:
    """The task with hidden numbers that nothing else holds, and those; ``None`` if it cannot be posed so."""
    marks: list[str] = []

    def mark(value: JSON) -> JSON:
        if isinstance(value, Mapping):
            return {key: mark(part) for key, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [mark(part) for part in value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        marks.append(str(7_310_000_000 + 7919 * len(marks)))
        return int(marks[-1])

    hidden = cast("Mapping[str, JSON]", mark(task.hidden))
    if not marks:
        return None
    posed = dataclasses.replace(task, hidden=hidden)
    try:
        subject.play(posed, [subject.kind.idle])
    except Exception:  # its hidden numbers are more than answers
        return None
    return posed, marks


def _spellings(secret: str) -> set[bytes]:
    """How a text may stand in files and memory: as it is, in JSON, in Python's code, in wide characters."""
    texts = {secret, repr(secret)[1:-1], *(json.dumps(secret, ensure_ascii=a)[1:-1] for a in (True, False))}
    found: set[bytes] = set()
    for text, code in itertools.product(texts, ("utf-8", "latin-1", "utf-16-le", "utf-32-le")):
        with contextlib.suppress(UnicodeEncodeError):  # latin-1 has few letters, and none has half a pair
            found.add(text.encode(code))
    return found


def _leak(task: Task, secret: str, place: str) -> Fault:
    return Fault(f"task {task.id}: what is hidden, {secret[:40]!r}, can be read in {place}")


def _visible(subject: Subject, task: Task) -> Iterator[tuple[str, bytes]]:
    """All that an agent may see of a task that it does not solve: place, and what is there."""
    for number, actions in enumerate(([subject.kind.idle], subject.noise(task, 2))):
        for turn, text in enumerate(subject.play(task, actions).seen):
            yield f"observation {turn} of episode {number}", text.encode(errors="surrogatepass")
    with contextlib.closing(subject.make([task])) as env:
        env.reset(seed=0, options={"task": task.id})
        for path, data in env.sandbox.export(["**"], 2**26).items():
            yield f"the workspace's {path}", data
            for part in unpacked(data):
                is_git = ".git" in path.split("/")
                yield f"the {'git history' if is_git else 'compressed data'} in the workspace's {path}", part


def _everywhere(subject: Subject, secrets: Sequence[str]) -> set[str]:
    """Which of these are mere words: an interpreter knows them in a sandbox in which nobody has been.

    Raises:
        Fault: one stands in a file there.
    """
    if not (subject.backend.isolated and secrets):
        return set()
    spelled = {text: secret for secret in secrets for text in _spellings(secret)}
    with subject.backend.create() as sandbox:
        found = Lookout(sandbox).find([*spelled])
    for text, place in found.items():
        if place.startswith("the file ") and len(text) >= _LEAST_SENTENCE:
            raise Fault(f"what is hidden, {spelled[text][:40]!r}, can be read in every sandbox, in {place}")
    return {spelled[text] for text in found}


def _reachable(subject: Subject, task: Task, texts: Sequence[bytes]) -> Mapping[bytes, str]:
    """Which of these a program in the sandbox of a task can reach, in processes and files: text -> where."""
    if not texts:
        return {}
    calls = [_empty_call(tool) for tool in subject.kind.tools if not tool.ends]
    found = _looked(subject, task, calls, texts)
    # If they have ended the episode, what there was before them is looked at.
    return (found if found is not None else _looked(subject, task, [], texts)) or {}


def _looked(
    subject: Subject, task: Task, actions: Sequence[str], texts: Sequence[bytes]
) -> Mapping[bytes, str] | None:
    """What `Lookout.find` finds after these actions; ``None`` if they end the episode."""
    watched = _Watched(subject.backend, looks=True)

    def look() -> Mapping[bytes, str] | None:
        with contextlib.closing(
            subject.kind(tasks=[task], sandbox=watched, max_turns=len(actions) + 1)
        ) as env:
            env.reset(seed=0, options={"task": task.id})
            if any(any(env.step(action)[2:4]) for action in actions):
                return None
            if not env.backend.isolated:  # a look around in there would be one around this machine
                return {}
            return (watched.lookout or Lookout(env.sandbox)).find(texts)

    return _in_time(look, f"task {task.id}", watched.close)


@final
class _Watched(SandboxBackend):
    """Sandboxes of another backend, which can all be closed at once.

    Args:
        inner: makes them.
        breaks: nothing can be run in them.
        looks: the first one, which is the episode's, can be looked into, if it isolates.
    """

    def __init__(self, inner: SandboxBackend, *, breaks: bool = False, looks: bool = False) -> None:
        self._inner, self._breaks, self._looks = inner, breaks, looks
        self.name, self.isolated, self.packages = inner.name, inner.isolated, inner.packages
        self._made: list[Sandbox] = []
        #: How often one was asked to run something that breaks.
        self.broke = 0
        #: Of the first one.
        self.lookout: Lookout | None = None

    def available(self) -> str | None:
        return self._inner.available()

    def create(self) -> Sandbox:
        sandbox: Any = self._inner.create()
        self._made.append(sandbox)
        if self._breaks:
            sandbox.run = sandbox.open = self._break
        if self._looks and self.isolated and self.lookout is None:
            self.lookout = Lookout(sandbox)
            sandbox.open, sandbox.run = self.lookout.open, self.lookout.run
        return sandbox

    def close(self) -> None:
        """Close all, whoever is in them."""
        for sandbox in self._made:
            with contextlib.suppress(Exception):
                sandbox.close()

    def _break(self, *_: object, **__: object) -> NoReturn:
        self.broke += 1
        raise SandboxError("broken on purpose")
