"""Claims: a few held-out episodes in an adapter's folder, and the replay that checks them."""

from __future__ import annotations

import itertools
import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import torch

from envkit.agents.local import LocalAgent
from envkit.agents.scripted import replay
from envkit.audit.certificate import valid
from envkit.engine.attention.packed_tree import PromptLayout
from envkit.engine.chat import Chats, Conversation
from envkit.engine.protocol import Sampling, uniforms
from envkit.env import Env
from envkit.env.taskfile import digest
from envkit.errors import ConfigError, ModelError, SandboxError, StoreError
from envkit.models import weights_digest
from envkit.rollout import EnvFactory, Rollouts
from envkit.runs.folder.machine import machine
from envkit.runs.folder.provenance import code_digest, commit
from envkit.runtime.files import read_json_object
from envkit.runtime.plain import decode, encode
from envkit.runtime.stop import ShouldStop, never
from envkit.runtime.store import trajectory_from_json, trajectory_to_json, write_atomic
from envkit.sandbox import SandboxBackend
from envkit.training.learner.logprobs import hidden_states
from envkit.training.learner.packing import pack, shared_prompt, training_row
from envkit.training.policy import Policy
from envkit.types import JSON, EpisodeKey, Outcome, Task, Trajectory

#: The file in an adapter's folder.
CLAIM: Final = "claim.json"
#: A certificate's digest. Where there is no certificate, claims and reports tell why instead.
DIGEST: Final = re.compile("[0-9a-f]{64}")
_SCHEMA: Final = "envkit.claim/1"
#: Held-out tasks of each environment, and episodes of each task. They are decoded in one batch of their own,
#: because the last bits of log-probabilities depend on what is decoded together.
_TASKS, _SAMPLES = 4, 2
_SEED: Final = 20_000
#: Largest mean difference of log-probabilities on other hardware, in nats per token.
TOLERANCE: Final = 0.05
#: Largest distance of a token from its draw on other hardware, in cumulative probability.
DRAW_TOLERANCE: Final = 0.05
#: Tokens whose probabilities of the whole vocabulary are held together.
_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class ClaimedHardware:
    """Hardware and software that decide the last bits of a computation.

    Args:
        cpu: name of the processor.
        threads: number of threads.
        dtype: of the base model.
        device: ``"cpu"`` or ``"cuda"``.
        torch: version of PyTorch.
    """

    cpu: str
    threads: int
    dtype: str
    device: str
    torch: str

    @classmethod
    def here(cls, dtype: str, device: str = "cpu") -> ClaimedHardware:
        """That of this process."""
        threads = torch.get_num_threads()
        return cls(machine(threads, dtype).cpu, threads, dtype, device, torch.__version__)


@dataclass(frozen=True, slots=True)
class ClaimedSampling:
    """Settings of the episodes; see `envkit.training.config.TrainConfig`."""

    temperature: float
    max_turns: int
    max_completion_length: int
    stop_strings: tuple[str, ...]
    max_context_length: int
    kv_cache_mb: int


@dataclass(frozen=True, slots=True)
class ClaimedEpisode:
    """One episode, stored as `envkit.runtime.store.trajectory_to_json` writes it."""

    trajectory: Trajectory

    def to_plain(self) -> JSON:
        """See `envkit.runtime.plain.HasPlainForm`."""
        return trajectory_to_json(self.trajectory)

    @classmethod
    def from_plain(cls, value: object) -> ClaimedEpisode:
        """See `envkit.runtime.plain.HasPlainForm`."""
        if not isinstance(value, dict):
            raise ValueError("expected an episode, an object")
        return cls(trajectory_from_json(cast("dict[str, Any]", value)))


@dataclass(frozen=True, slots=True)
class ClaimedEnvironment:
    """One environment's part of a claim.

    Args:
        name: the environment.
        code: digest of the code that decides verdicts.
        certificate: seal of its certificate, or why it has none.
        split: split of the tasks.
        tasks: task id -> digest.
        episodes: `_SAMPLES` of each task, in order.
    """

    name: str
    code: str
    certificate: str
    split: str
    tasks: Mapping[str, str]
    episodes: tuple[ClaimedEpisode, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """All that the replay needs.

    Args:
        schema: version of this form.
        adapter: digest of the adapter's weights.
        model: id, folder or hub id of the base model.
        model_digest: digest of its weights.
        seed: of the training.
        commit: version of envkit.
        python: version of Python.
        hardware, sampling: how the episodes were made.
        environments: the episodes.
    """

    schema: str
    adapter: str
    model: str
    model_digest: str
    seed: int
    commit: str
    python: str
    hardware: ClaimedHardware
    sampling: ClaimedSampling
    environments: tuple[ClaimedEnvironment, ...]


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """The result of one check of a claim.

    Args:
        what: the subject, such as ``"weights"``.
        ok: True if it is as claimed.
        detail: what was found.
    """

    what: str
    ok: bool
    detail: str


def make_claim(
    folder: Path,
    policy: Policy,
    model: str,
    tasks: Mapping[type[Env], Sequence[Task]],
    sampling: ClaimedSampling,
    seed: int,
    hardware: ClaimedHardware,
    backend: SandboxBackend,
    should_stop: ShouldStop,
) -> None:
    """Play a few held-out episodes with a policy's adapter, and write them to the adapter's folder.

    Args:
        folder: the saved adapter.
        policy: holds the same adapter.
        model: id, folder or hub id of its base.
        tasks: held-out tasks by environment; the first ones are played.
        sampling: settings of the episodes.
        seed: of the training.
        hardware: what the policy runs on.
        backend: sandbox backend.
        should_stop: polled while the episodes are played.

    Raises:
        Stopped: the user asked to stop; nothing is written.
        SandboxError: an episode could not be played; nothing is written.
    """
    environments: list[ClaimedEnvironment] = []
    for kind, some in tasks.items():
        chosen = some[:_TASKS]
        certificate = valid(kind, kind.equip(backend).lock, sampling.max_turns)
        environments.append(
            ClaimedEnvironment(
                kind.id,
                code_digest(kind),
                certificate if isinstance(certificate, str) else certificate.seal,
                chosen[0].split,
                {task.id: digest([task]) for task in chosen},
                tuple(map(ClaimedEpisode, _played(policy, kind, chosen, sampling, backend, should_stop))),
            )
        )
    claim = Claim(
        _SCHEMA,
        weights_digest(folder),
        model,
        policy.ref.digest,
        seed,
        commit(),
        platform.python_version(),
        hardware,
        sampling,
        tuple(environments),
    )
    write_claim(claim, folder)


def write_claim(claim: Claim, folder: Path) -> None:
    """Write a claim to an adapter's folder.

    Raises:
        StoreError: the disk refused.
    """
    write_atomic(folder / CLAIM, (json.dumps(encode(claim), indent=1) + "\n").encode())


def without_evidence(claim: Claim) -> Claim:
    """Return a claim without what may quote a hidden value: graders' notes, and why an audit failed.

    The replay compares nothing of them.
    """
    environments = tuple(
        replace(
            part,
            certificate=part.certificate if DIGEST.fullmatch(part.certificate) else "none",
            episodes=tuple(ClaimedEpisode(replace(one.trajectory, info={})) for one in part.episodes),
        )
        for part in claim.environments
    )
    return replace(claim, environments=environments)


def read_claim(folder: Path) -> Claim:
    """Read an adapter's claim.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    path = folder / CLAIM
    try:
        fields = read_json_object(path)
    except FileNotFoundError:
        raise StoreError(f"{folder} has no {CLAIM}; `envkit train` writes one at its end") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error})") from error
    if (found := fields.get("schema")) != _SCHEMA:
        raise StoreError(f"{path}: its schema is {found!r}; expected {_SCHEMA!r}")
    try:
        claim = decode(Claim, fields, "claim")
        _require_whole(claim)
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    return claim


def _require_whole(claim: Claim) -> None:
    """Raise if a claim lacks environments, tasks or episodes.

    Raises:
        ValueError: see above.
    """
    if claim.hardware.threads < 1:
        raise ValueError(f"threads is {claim.hardware.threads}; expected at least 1")
    if claim.sampling.temperature < 0:
        raise ValueError(f"temperature is {claim.sampling.temperature}; expected at least 0")
    if claim.hardware.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {claim.hardware.dtype!r}; expected float32 or bfloat16")
    if not claim.environments:
        raise ValueError("it names no environment")
    for part in claim.environments:
        keys = [episode.trajectory.key for episode in part.episodes]
        if not part.tasks or keys != _keys(part.tasks):
            raise ValueError(
                f"expected {_SAMPLES} episodes of each task of {part.name}, and at least one task"
            )
        if any(not episode.trajectory.steps for episode in part.episodes):
            raise ValueError(f"an episode of {part.name} has no turn")


def _keys(tasks: Iterable[str]) -> list[EpisodeKey]:
    return [
        EpisodeKey(_SEED, 0, group, row, task) for group, task in enumerate(tasks) for row in range(_SAMPLES)
    ]


def check_environment(
    claimed: ClaimedEnvironment, kind: type[Env], tasks: Mapping[str, Task]
) -> list[ClaimCheck]:
    """Compare an environment's code and tasks with a claim.

    Args:
        claimed: that environment's part.
        kind: the environment as it is here.
        tasks: the tasks that are here, by id.
    """
    same = code_digest(kind) == claimed.code
    seal = "as claimed; it had no valid certificate"
    if DIGEST.fullmatch(claimed.certificate):  # else it says why there is none
        certificate = valid(kind)
        known = not isinstance(certificate, str) and certificate.seal == claimed.certificate
        which = "the" if known else "not the"
        seal = f"as claimed; {which} certificate that is here, {claimed.certificate[:12]}"
    found = [ClaimCheck(f"{kind.id}: code", same, seal if same else "it has changed since the claim")]
    here = {name: tasks[name] for name in claimed.tasks if name in tasks}
    wrong = [f"{name} is not here" for name in claimed.tasks if name not in here]
    wrong += [f"{name} has changed" for name, task in here.items() if digest([task]) != claimed.tasks[name]]
    wrong += [
        f"{name} is of split train, not held out" for name, task in here.items() if task.split == "train"
    ]
    detail = wrong[0] if wrong else f"{len(claimed.tasks)} as claimed"
    return [*found, ClaimCheck(f"{kind.id}: tasks", not wrong, detail)]


def replay_environment(
    claimed: ClaimedEnvironment,
    claim: Claim,
    policy: Policy,
    kind: type[Env],
    tasks: Sequence[Task],
    backend: SandboxBackend,
) -> list[ClaimCheck]:
    """Play a claim's episodes of one environment again.

    On hardware as claimed, every text, token, log-probability and verdict must be the same, to the bit. On
    other hardware, the claimed tokens must be those of the claimed texts, and those that the same random
    numbers draw here, but for `DRAW_TOLERANCE` of the probability. Their log-probabilities are computed here,
    and may differ by `TOLERANCE` on average. The claimed actions are graded again.

    Args:
        claimed: that environment's part of the claim.
        claim: the whole.
        policy: the base model with the adapter, on the CPU.
        kind: the environment.
        tasks: the claimed tasks, in the claim's order.
        backend: sandbox backend.
    """
    episodes = [episode.trajectory for episode in claimed.episodes]
    if ClaimedHardware.here(claim.hardware.dtype) == claim.hardware:
        found = _played(policy, kind, tasks, claim.sampling, backend, never)
        sampled = _compared(episodes, found)
    else:
        sampled = _within_tolerance(episodes, policy, kind, claim.sampling)
        with Rollouts(_factory(kind, tasks, claim.sampling, backend)) as rollouts:
            agent = replay("claimed", episodes, kind.noop_action)
            found = rollouts.play(agent, [episode.key for episode in episodes])
    differing = [
        f"task {was.key.task}: claimed {_verdict(was)}; found {_verdict(now)}"
        for was, now in zip(episodes, found, strict=True)
        if (_verdict(was), dict(was.scores)) != (_verdict(now), dict(now.scores))
        or [step.observation for step in was.steps] != [step.observation for step in now.steps]
    ]
    solved = sum(episode.solved for episode in episodes)
    verdicts = differing[0] if differing else f"{solved} of {len(episodes)} solved, as claimed"
    return [
        ClaimCheck(f"{kind.id}: tokens", *sampled),
        ClaimCheck(f"{kind.id}: verdicts", not differing, verdicts),
    ]


def _verdict(episode: Trajectory) -> str:
    return f"{episode.outcome.value}, reward {episode.reward:g}"


def _factory(
    kind: type[Env], tasks: Sequence[Task], sampling: ClaimedSampling, backend: SandboxBackend
) -> EnvFactory:
    return lambda: kind(tasks=tasks, sandbox=backend, max_turns=sampling.max_turns)


def _played(
    policy: Policy,
    kind: type[Env],
    tasks: Sequence[Task],
    sampling: ClaimedSampling,
    backend: SandboxBackend,
    should_stop: ShouldStop,
) -> list[Trajectory]:
    """Play the claim's episodes of these tasks, in one batch.

    Raises:
        SandboxError: an episode is void.
    """
    policy.sync()
    policy.engine.forget()
    agent = LocalAgent(
        "claimed",
        policy.engine,
        policy.renderer,
        Sampling(sampling.temperature, sampling.max_completion_length, stop_strings=sampling.stop_strings),
        sampling.max_turns,
        max_context_length=sampling.max_context_length,
        should_stop=should_stop,
    )
    with Rollouts(_factory(kind, tasks, sampling, backend), should_stop=should_stop) as rollouts:
        played = rollouts.play(agent, _keys(task.id for task in tasks))
    if void := next((episode for episode in played if episode.outcome is Outcome.VOID), None):
        raise SandboxError(f"task {void.key.task} cannot be played: {void.info.get('error')}")
    return played


def _compared(claimed: Sequence[Trajectory], found: Sequence[Trajectory]) -> tuple[bool, str]:
    """Compare episodes token by token; says the first one that differs."""
    tokens = 0
    for was, now in zip(claimed, found, strict=True):
        if len(was.steps) != len(now.steps):
            return False, f"task {was.key.task}: {len(was.steps)} turns claimed, {len(now.steps)} found"
        for number, (old, new) in enumerate(zip(was.steps, now.steps, strict=True), 1):
            where = f"task {was.key.task}, sample {was.key.row}, turn {number}"
            if old.observation != new.observation:
                return False, f"{where}: another observation"
            before, after = old.turn.tokens, new.turn.tokens
            if before is None or after is None or before.prompt_ids != after.prompt_ids:
                return False, f"{where}: another prompt"
            pairs = itertools.zip_longest(
                zip(before.completion_ids, before.logprobs, strict=True),
                zip(after.completion_ids, after.logprobs, strict=True),
            )
            for place, (one, other) in enumerate(pairs):
                if one != other:
                    return (
                        False,
                        f"{where}, token {place}: claimed {one}, found {other} (id, log-probability)",
                    )
                tokens += 1
            if (old.turn.text, old.turn.stop) != (new.turn.text, new.turn.stop):
                return False, f"{where}: another text"
    return True, f"{len(claimed)} episodes, {tokens} tokens: every id and log-probability, to the bit"


def _within_tolerance(
    claimed: Sequence[Trajectory], policy: Policy, kind: type[Env], sampling: ClaimedSampling
) -> tuple[bool, str]:
    """Compare the claimed tokens with their texts, and their log-probabilities with those computed here."""
    total = tokens = 0.0
    for episode in claimed:
        if fault := _fault(episode, policy, kind, sampling):
            return False, f"task {episode.key.task}, sample {episode.key.row}: {fault}"
        prompt = shared_prompt([episode])
        row = training_row(episode, [1.0] * len(episode.steps), len(prompt))
        with torch.no_grad():
            found_N = policy.logprobs(pack(prompt, [row], policy.device), sampling.temperature or 1.0)
        claimed_N = torch.tensor([x for x, ok in zip(row.logprobs, row.trained, strict=True) if ok])
        total += float((found_N.cpu() - claimed_N).abs().sum())
        tokens += len(claimed_N)
    mean = total / max(tokens, 1)
    detail = (
        f"on other hardware than claimed: log-probabilities of {tokens:.0f} tokens differ by {mean:.4f} nats "
        f"on average (at most {TOLERANCE} are accepted)"
    )
    return mean <= TOLERANCE, detail


def _fault(episode: Trajectory, policy: Policy, kind: type[Env], sampling: ClaimedSampling) -> str:
    """Return why an episode's answers are not the adapter's; empty if they may be.

    Their tokens must be those of their texts, and what the episode's random numbers draw here, as closely as
    other hardware computes probabilities.
    """
    renderer, longest = policy.renderer, sampling.max_context_length or sys.maxsize
    if kind.harness is None:
        talk: Conversation | Chats = Conversation(renderer, kind.system, longest, policy.engine.longest)
    else:
        talk = Chats(renderer, longest, policy.engine.longest)
    for number, step in enumerate(episode.steps, 1):
        turn, tokens = step.turn, step.turn.tokens
        try:
            talk.observe(step.observation)
        except ModelError:  # too long for the model, which was not asked then
            if tokens is None or tokens.prompt_ids or tokens.completion_ids or turn.text:
                return f"turn {number}: an answer to what the model cannot read"
            continue
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"turn {number}: its observation is no chat"
        if tokens is None or not tokens.completion_ids:
            return f"turn {number} has no tokens"
        if renderer.text(tokens.completion_ids) != turn.text:
            return f"turn {number}: its text is not what its tokens say"
        if (tokens.prompt_ids, tokens.kept) != (talk.new_ids, talk.kept):
            return f"turn {number}: its prompt does not match its observation"
        *before, last = tokens.completion_ids
        ended = last == renderer.stop_id or any(stop in turn.text for stop in sampling.stop_strings)
        most = min(sampling.max_completion_length, policy.engine.longest - len(talk.ids))
        if renderer.stop_id in before or len(before) >= most or not (ended or len(before) + 1 == most):
            return f"turn {number}: its answer ends elsewhere than the settings say"
        key = episode.key
        rng_key = (key.seed, key.step, key.group, key.row, talk.turns)
        distances = _distances(policy, talk.ids, tokens.completion_ids, rng_key, sampling)
        if (far := float(distances.max())) > DRAW_TOLERANCE:
            return (
                f"turn {number}, token {int(distances.argmax())}: not what the random numbers draw: off by "
                f"{far:.2f} of the probability (at most {DRAW_TOLERANCE} is accepted)"
            )
        talk.answer(tokens.completion_ids)
    return ""


def _distances(
    policy: Policy,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    rng_key: Sequence[int],
    sampling: ClaimedSampling,
) -> torch.Tensor:
    """Measure how far each token of an answer is from the draw that chose it.

    Tokens are drawn by inverse CDF. A distance is the cumulative probability between the random number and
    the token, or at temperature 0 the probability by which another token is more likely. It is 0 if the token
    would be drawn here.

    Args:
        policy: the base model with the adapter.
        prompt_ids: the whole context of the answer.
        ids: the answer, T tokens.
        rng_key: addresses the answer's random numbers.
        sampling: settings of the episodes.

    Returns:
        Shape (T,), in [0, 1].
    """
    context = torch.tensor([[*prompt_ids, *ids[:-1]]], device=policy.device)
    found: list[torch.Tensor] = []
    with torch.no_grad():
        hidden = hidden_states(policy.model, context, PromptLayout())[-len(ids) :]
        uniform = torch.from_numpy(uniforms(rng_key, len(ids)))
        for start in range(0, len(ids), _ROWS):
            piece = slice(start, start + _ROWS)
            logits = policy.head(hidden[piece]).double()
            token = torch.tensor(ids[piece], device=logits.device)[:, None]
            probs = torch.softmax(logits / (sampling.temperature or 1.0), dim=-1)
            chosen = probs.gather(1, token)[:, 0]
            if sampling.temperature:
                end = probs.cumsum(dim=-1).gather(1, token)[:, 0]
                drawn = uniform[piece].to(end.device)
                found.append(torch.maximum(end - chosen - drawn, drawn - end).clamp(min=0))
            else:
                found.append(probs.amax(dim=-1) - chosen)
    return torch.cat(found).cpu()
