"""Packing a group into one sequence: the prompt once, then every token that rows do not share, once.

Rows of one group often begin alike, and equal ones are common. They are packed as a tree: a token that
several rows have, after the same tokens, is read once for all of them. What a row sees is the prompt and its
own path through the tree, so every row has the probabilities, and all together have the gradient, that they
would have one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from envkit.errors import ContractError
from envkit.types import Trajectory


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """What one trajectory adds after the shared prompt.

    Args:
        ids: completion and observation tokens of all turns, in order.
        trained: which of them were sampled, same length.
        logprobs: log-probability at sampling time; 0.0 where not sampled.
        advantages: the weight of each token's gradient; 0.0 where not sampled.
        kept: where the trajectory branches: index of a token -> how many of the ids in its context it and
            what follows still see, beside the prompt. Elsewhere a token sees all before it.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    kept: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One packed forward pass. S tokens, N trained tokens of R rows, K distinct ones among them.

    Args:
        ids_1S: token ids.
        positions_1S: how many tokens each one sees before it.
        prompt: tokens of the prompt, which come first.
        paths: places in S, one list for each way through the tree; see `envkit.engine.attention.PackedTree`.
        sources_K: places in S whose hidden states predict trained tokens.
        targets_K: the ids of those tokens.
        which_N: which of those each trained token is.
        old_logprobs_N: its log-probability when it was sampled.
        advantages_N: its advantage.
        rows_N: its row.
        rows: R.
    """

    ids_1S: Tensor
    positions_1S: Tensor
    prompt: int
    paths: Sequence[Sequence[int]]
    sources_K: Tensor
    targets_K: Tensor
    which_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor
    rows_N: Tensor
    rows: int


def training_row(trajectory: Trajectory, advantages: Sequence[float]) -> TrainingRow:
    """The trained row of a token-exact trajectory, given one advantage per turn.

    Raises:
        ContractError: a turn carries no tokens, so there is nothing to train on, or it forgets a part of what
            its episode began with.
    """
    ids: list[int] = []
    trained: list[bool] = []
    logprobs: list[float] = []
    weights: list[float] = []
    kept: dict[int, int] = {}
    prompt = 0
    for index, (step, advantage) in enumerate(zip(trajectory.steps, advantages, strict=True)):
        tokens = step.turn.tokens
        if tokens is None:
            raise ContractError(f"agent {trajectory.agent} records no tokens; it cannot be trained")
        seen = tokens.prompt_ids if index else ()
        prompt = prompt or len(tokens.prompt_ids)
        if index and tokens.kept is not None:
            if tokens.kept < prompt:
                raise ContractError(
                    f"turn {index} of agent {trajectory.agent} keeps {tokens.kept} ids of its context; "
                    f"expected those of its first prompt, {prompt}, at the least"
                )
            kept[len(ids)] = tokens.kept - prompt
        ids += [*seen, *tokens.completion_ids]
        trained += [False] * len(seen) + [True] * len(tokens.completion_ids)
        logprobs += [0.0] * len(seen) + list(tokens.logprobs)
        weights += [0.0] * len(seen) + [advantage] * len(tokens.completion_ids)
    return TrainingRow(tuple(ids), tuple(trained), tuple(logprobs), tuple(weights), kept)


def chunks(
    prompt: Sequence[int], rows: Sequence[TrainingRow], max_tokens: int
) -> Iterator[list[TrainingRow]]:
    """Split rows so that each part, packed, stays within ``max_tokens``; one row at the least.

    Attention reads every row in full, up to four times as many tokens: it keeps a quarter as much of each.
    """
    chunk: list[TrainingRow] = []
    tree = _Tree(prompt)
    longest = 0
    # Of like length, for they are padded to one in attention; then those that begin alike.
    for row in sorted(rows, key=lambda row: (-len(row.ids).bit_length(), row.ids)):
        longest = max(longest, len(row.ids))
        read = (len(chunk) + 1) * longest
        if chunk and (len(tree.ids) + tree.missing(row) > max_tokens or read > 4 * max_tokens):
            yield chunk
            chunk, tree, longest = [], _Tree(prompt), len(row.ids)
        chunk.append(row)
        tree.add(row)
    if chunk:
        yield chunk


def pack(
    prompt: Sequence[int], rows: Sequence[TrainingRow], device: torch.device | str = "cpu"
) -> PackedBatch:
    """Lay out the prompt, and behind it what the rows add, where the model is."""
    tree = _Tree(prompt)
    number_of: dict[tuple[int, int], int] = {}  # by place and the id that is predicted there
    which: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    owners: list[int] = []
    for owner, row in enumerate(rows):
        for index, source in enumerate(tree.add(row)):
            if row.trained[index]:
                which.append(number_of.setdefault((source, row.ids[index]), len(number_of)))
                old.append(row.logprobs[index])
                advantages.append(row.advantages[index])
                owners.append(owner)
    distinct = torch.tensor([*number_of], dtype=torch.long, device=device).view(-1, 2)
    return PackedBatch(
        ids_1S=torch.tensor(tree.ids, device=device)[None],
        positions_1S=torch.tensor(tree.positions, device=device)[None],
        prompt=len(prompt),
        paths=tree.paths(),
        sources_K=distinct[:, 0],
        targets_K=distinct[:, 1],
        which_N=torch.tensor(which, dtype=torch.long, device=device),
        old_logprobs_N=torch.tensor(old, device=device),
        advantages_N=torch.tensor(advantages, dtype=torch.float32, device=device),
        rows_N=torch.tensor(owners, device=device),
        rows=len(rows),
    )


@final
class _Tree:
    """Tokens by what stands before them. The prompt is its stem; a place is an index into ``ids``."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.ids = [*prompt]
        self.positions = [*range(len(prompt))]
        self._prompt = len(prompt)
        self._parents = [*range(-1, len(prompt) - 1)]
        self._children: dict[tuple[int, int], int] = {}

    def add(self, row: TrainingRow) -> list[int]:
        """Take in a row; returns the place before each of its tokens, which predicts it."""
        return self._before(row, self._place)

    def missing(self, row: TrainingRow) -> int:
        """How many tokens the row would add, or a few more if it branches."""
        unknown = len(self.ids)
        found: list[int] = []

        def place(parent: int, token: int) -> int:
            found.append(self._children.get((parent, token), unknown))
            return found[-1]

        self._before(row, place)
        return found.count(unknown)

    def paths(self) -> list[list[int]]:
        """Every way from behind the prompt to a last token."""
        ends = {*range(self._prompt, len(self.ids))} - {*self._parents}
        return [self._path(end) for end in sorted(ends)]

    def _before(self, row: TrainingRow, place: Callable[[int, int], int]) -> list[int]:
        """The place before each token; ``place`` says that of a token behind another."""
        context, last, before = [self._prompt - 1], list[int](), list[int]()
        for index, token in enumerate(row.ids):
            if (kept := row.kept.get(index)) is not None:
                last = last[: max(kept + 1 - len(context), 0)]
                del context[kept + 1 :]
            # A token needs no place before something follows it: what comes last predicts nothing.
            context += [place(context[-1], each) for each in last]
            before.append(context[-1])
            last = [token]
        return before

    def _place(self, parent: int, token: int) -> int:
        found = self._children.setdefault((parent, token), len(self.ids))
        if found == len(self.ids):
            self.ids.append(token)
            self.positions.append(self.positions[parent] + 1)
            self._parents.append(parent)
        return found

    def _path(self, end: int) -> list[int]:
        found: list[int] = []
        while end >= self._prompt:
            found.append(end)
            end = self._parents[end]
        return found[::-1]
