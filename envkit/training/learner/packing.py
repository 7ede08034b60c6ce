"""Packing a group of rows into one sequence: the shared prompt once, then a prefix tree of the answers.

Rows of one group often begin alike, and equal rows are common. A token that several rows have after the same
tokens is computed once. Each row attends to the prompt and to its own path through the tree. So
log-probabilities and gradients are the same as row by row.
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
    """The tokens of one trajectory after the shared prompt.

    Args:
        ids: completion and observation tokens of all turns, in order.
        trained: True for sampled tokens; same length as ``ids``.
        logprobs: log-probability when sampled; 0.0 for other tokens.
        advantages: of sampled tokens; 0.0 for others.
        kept: context truncations: index of a token -> how many ids after the prompt it and the following
            tokens still see. Without an entry, a token sees all before it.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    kept: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One packed forward pass: a prompt of P tokens and a tree of S tokens, with N trained tokens of R rows.

    Args:
        prompt_1P: the prompt.
        ids_1S: the tree's token ids.
        positions_1S: position of each: how many tokens it sees before it, those of the prompt included.
        paths: indices in S of each path through the tree; see `envkit.engine.attention.packed_tree`.
        sources_K: where the hidden state of each of the K distinct pairs (node, next id) that are trained
            stands. Node 0 is the prompt's last token, node n the tree's n-th.
        targets_K: the next id of each pair.
        index_N: index in K of each trained token.
        old_logprobs_N: log-probability of each when sampled.
        advantages_N: advantage of each.
        rows_N: row of each.
        rows: R.
    """

    prompt_1P: Tensor
    ids_1S: Tensor
    positions_1S: Tensor
    paths: Sequence[Sequence[int]]
    sources_K: Tensor
    targets_K: Tensor
    index_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor
    rows_N: Tensor
    rows: int


def shared_prompt(trajectories: Sequence[Trajectory]) -> tuple[int, ...]:
    """The ids that every turn of these trajectories sees: their first prompt, or its beginning.

    It is the beginning only if a turn sees less, because a harness began another chat.

    Args:
        trajectories: have tokens, and the same first prompt.

    Raises:
        ContractError: there is a turn that shares no id with the first one.
    """
    turns = [step.turn.tokens for trajectory in trajectories for step in trajectory.steps]
    first = next(tokens.prompt_ids for tokens in turns if tokens is not None)
    kept = [tokens.kept for tokens in turns if tokens is not None and tokens.kept is not None]
    shared = first[: min(kept, default=len(first))]
    if not shared:
        raise ContractError(
            f"a turn of agent {trajectories[0].agent} shares no id with the first one; expected a chat "
            "template that begins all chats alike"
        )
    return shared


def training_row(
    trajectory: Trajectory, advantages: Sequence[float], prompt: int | None = None
) -> TrainingRow:
    """Turn a trajectory with tokens into a training row, given one advantage per turn.

    Args:
        trajectory: the episode.
        advantages: one per turn.
        prompt: number of ids that stand before the row, see `shared_prompt`; by default its first prompt.

    Raises:
        ContractError: a turn has no tokens, or its context lacks a part of the prompt.
    """
    ids: list[int] = []
    trained: list[bool] = []
    logprobs: list[float] = []
    advantages_out: list[float] = []
    kept: dict[int, int] = {}
    for index, (step, advantage) in enumerate(zip(trajectory.steps, advantages, strict=True)):
        tokens = step.turn.tokens
        if tokens is None:
            raise ContractError(f"agent {trajectory.agent} records no tokens; it cannot be trained")
        prompt = len(tokens.prompt_ids) if prompt is None else prompt
        seen = tokens.prompt_ids if index else tokens.prompt_ids[prompt:]
        if index and tokens.kept is not None:
            if tokens.kept < prompt:
                raise ContractError(
                    f"turn {index} of agent {trajectory.agent} keeps {tokens.kept} ids of its context; "
                    f"expected those of its prompt, {prompt}, at the least"
                )
            kept[len(ids)] = tokens.kept - prompt
        ids += [*seen, *tokens.completion_ids]
        trained += [False] * len(seen) + [True] * len(tokens.completion_ids)
        logprobs += [0.0] * len(seen) + list(tokens.logprobs)
        advantages_out += [0.0] * len(seen) + [advantage] * len(tokens.completion_ids)
    return TrainingRow(tuple(ids), tuple(trained), tuple(logprobs), tuple(advantages_out), kept)


def chunks(
    prompt: Sequence[int], rows: Sequence[TrainingRow], max_tokens: int
) -> Iterator[list[TrainingRow]]:
    """Split rows into chunks that are packed separately. The prompt is read once for all of them.

    A chunk has room for ``max_tokens`` packed tokens less the prompt's, but at least for a quarter of
    ``max_tokens``, and it has at least one row.

    Attention pads every row to the longest one. The padded rows of a chunk may hold up to four times
    ``max_tokens``, because attention keeps little memory per token.
    """
    room = max(max_tokens - len(prompt), max_tokens // 4)
    chunk: list[TrainingRow] = []
    tree = _Tree(len(prompt))
    longest = 0
    # Rows of similar length together, because attention pads them; then rows that begin alike.
    for row in sorted(rows, key=lambda row: (-len(row.ids).bit_length(), row.ids)):
        longest = max(longest, len(row.ids))
        attended = (len(chunk) + 1) * longest
        if chunk and (len(tree.ids) + tree.missing(row) > room or attended > 4 * max_tokens):
            yield chunk
            chunk, tree, longest = [], _Tree(len(prompt)), len(row.ids)
        chunk.append(row)
        tree.add(row)
    if chunk:
        yield chunk


def pack(
    prompt: Sequence[int], rows: Sequence[TrainingRow], device: torch.device | str = "cpu"
) -> PackedBatch:
    """Pack the prefix tree of the rows, which follow the prompt, into one forward pass on ``device``."""
    tree = _Tree(len(prompt))
    number_of: dict[tuple[int, int], int] = {}  # by node and the id predicted there
    indices: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    owners: list[int] = []
    for owner, row in enumerate(rows):
        for index, source in enumerate(tree.add(row)):
            if row.trained[index]:
                indices.append(number_of.setdefault((source, row.ids[index]), len(number_of)))
                old.append(row.logprobs[index])
                advantages.append(row.advantages[index])
                owners.append(owner)
    distinct = torch.tensor([*number_of], dtype=torch.long, device=device).view(-1, 2)
    return PackedBatch(
        prompt_1P=torch.tensor([*prompt], device=device)[None],
        ids_1S=torch.tensor(tree.ids, dtype=torch.long, device=device)[None],
        positions_1S=torch.tensor(tree.positions, dtype=torch.long, device=device)[None],
        paths=tree.paths(),
        sources_K=distinct[:, 0],
        targets_K=distinct[:, 1],
        index_N=torch.tensor(indices, dtype=torch.long, device=device),
        old_logprobs_N=torch.tensor(old, device=device),
        advantages_N=torch.tensor(advantages, dtype=torch.float32, device=device),
        rows_N=torch.tensor(owners, device=device),
        rows=len(rows),
    )


@final
class _Tree:
    """Prefix tree of tokens. Node 0 is the last token of a prompt, node n the n-th token after it.

    Args:
        prompt: its length.
    """

    def __init__(self, prompt: int) -> None:
        #: Of nodes 1, 2, ...
        self.ids: list[int] = []
        self.positions: list[int] = []
        self._parents: list[int] = []
        self._root_position = prompt - 1
        self._children: dict[tuple[int, int], int] = {}

    def add(self, row: TrainingRow) -> list[int]:
        """Add a row; returns the node that predicts each of its tokens: the one before it."""
        return self._predictors(row, self._node)

    def missing(self, row: TrainingRow) -> int:
        """Count the tokens that the row would add; an upper bound if its context is truncated."""
        new_node = len(self.ids) + 1
        nodes: list[int] = []

        def find(parent: int, token: int) -> int:
            nodes.append(self._children.get((parent, token), new_node))
            return nodes[-1]

        self._predictors(row, find)
        return nodes.count(new_node)

    def paths(self) -> list[list[int]]:
        """All paths from the first token after the prompt to a leaf, as indices into ``ids``."""
        ends = {*range(1, len(self.ids) + 1)} - {*self._parents}
        return [self._path(end) for end in sorted(ends)]

    def _predictors(self, row: TrainingRow, find: Callable[[int, int], int]) -> list[int]:
        """The node before each token. ``find(parent, token)`` finds or creates a node."""
        # The nodes that the next token sees. The first is the prompt's last token, which is never cut.
        context = [0]
        # The token before, if it has no node yet: a row's last token predicts nothing, so a token gets a node
        # only when another one follows.
        pending: list[int] = []
        predictors: list[int] = []
        for index, token in enumerate(row.ids):
            if (kept := row.kept.get(index)) is not None:  # this turn sees only so many earlier tokens
                pending = pending[: max(kept + 1 - len(context), 0)]
                del context[kept + 1 :]
            context += [find(context[-1], previous) for previous in pending]
            predictors.append(context[-1])
            pending = [token]
        return predictors

    def _node(self, parent: int, token: int) -> int:
        new_node = len(self.ids) + 1
        node = self._children.setdefault((parent, token), new_node)
        if node == new_node:
            self.ids.append(token)
            self.positions.append((self.positions[parent - 1] if parent else self._root_position) + 1)
            self._parents.append(parent)
        return node

    def _path(self, end: int) -> list[int]:
        path: list[int] = []
        while end:
            path.append(end - 1)
            end = self._parents[end - 1]
        return path[::-1]
