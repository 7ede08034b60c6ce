"""Packing a group into one sequence: the prompt once, every row after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from envkit.errors import ContractError
from envkit.types import Trajectory


@dataclass(frozen=True, slots=True)
class Row:
    """What one trajectory adds after the shared prompt.

    Args:
        ids: completion and observation tokens of all turns, in order.
        trained: which of them were sampled, same length.
        logprobs: log-probability at sampling time; 0.0 where not sampled.
        advantages: the weight of each token's gradient; 0.0 where not sampled.
        count: how many equal rows this one stands for. Equal rows are merged into one whose
            advantages are sums: every loss is linear in them as long as their signs stay, so the
            gradient is the same and the forward pass is paid once.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed forward pass. S tokens, N trained tokens.

    Args:
        ids_1S: token ids.
        positions_1S: each row continues at the prompt's length.
        prompt: tokens of the prompt; the rows follow it and see it and themselves.
        lengths: tokens of each row, in order.
        sources_N: index into S whose hidden state predicts a trained token.
        targets_N: the trained token's id.
        old_logprobs_N: its log-probability when it was sampled.
        advantages_N: its advantage, summed over merged rows.
        counts_N: how many rows were merged there.
        rows_N: its row.
    """

    ids_1S: Tensor
    positions_1S: Tensor
    prompt: int
    lengths: tuple[int, ...]
    sources_N: Tensor
    targets_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor
    counts_N: Tensor
    rows_N: Tensor


def row_of(trajectory: Trajectory, advantages: Sequence[float]) -> Row:
    """The trained row of a token-exact trajectory, given one advantage per turn.

    Raises:
        ContractError: a turn carries no tokens, so there is nothing to train on.
    """
    ids: list[int] = []
    trained: list[bool] = []
    logprobs: list[float] = []
    weights: list[float] = []
    for index, (step, advantage) in enumerate(zip(trajectory.steps, advantages, strict=True)):
        tokens = step.turn.tokens
        if tokens is None:
            raise ContractError(f"agent {trajectory.agent} records no tokens; it cannot be trained")
        seen = tokens.prompt_ids if index else ()
        ids += [*seen, *tokens.completion_ids]
        trained += [False] * len(seen) + [True] * len(tokens.completion_ids)
        logprobs += [0.0] * len(seen) + list(tokens.logprobs)
        weights += [0.0] * len(seen) + [advantage] * len(tokens.completion_ids)
    return Row(tuple(ids), tuple(trained), tuple(logprobs), tuple(weights))


def merge(rows: Sequence[Row]) -> list[Row]:
    """Rows of equal ids and signs made one, first come first; see `Row.count`."""
    merged: dict[tuple[tuple[int, ...], tuple[bool, ...], tuple[bool, ...]], Row] = {}
    for row in rows:
        key = (row.ids, row.trained, tuple(advantage > 0 for advantage in row.advantages))
        if seen := merged.get(key):
            both = zip(seen.advantages, row.advantages, strict=True)
            merged[key] = replace(seen, advantages=tuple(map(sum, both)), count=seen.count + row.count)
        else:
            merged[key] = row
    return list(merged.values())


def chunks(prompt: Sequence[int], rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Split rows so that prompt plus rows stay within ``max_tokens``, one row at the least."""
    chunk: list[Row] = []
    used = len(prompt)
    for row in sorted(rows, key=lambda row: (-len(row.ids), row.ids)):
        if chunk and used + len(row.ids) > max_tokens:
            yield chunk
            chunk, used = [], len(prompt)
        chunk.append(row)
        used += len(row.ids)
    if chunk:
        yield chunk


def pack(prompt: Sequence[int], rows: Sequence[Row]) -> Batch:
    """Lay out the prompt and then every row; a row sees the prompt and itself, never another row."""
    ids = list(prompt)
    positions = list(range(len(prompt)))
    sources: list[int] = []
    targets: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    counts: list[int] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        start = len(ids)
        for offset, (token, trained) in enumerate(zip(row.ids, row.trained, strict=True)):
            if trained:
                sources.append(start + offset - 1 if offset else len(prompt) - 1)
                targets.append(token)
                old.append(row.logprobs[offset])
                advantages.append(row.advantages[offset])
                counts.append(row.count)
                owners.append(index)
        ids += row.ids
        positions += range(len(prompt), len(prompt) + len(row.ids))
    return Batch(
        ids_1S=torch.tensor(ids)[None],
        positions_1S=torch.tensor(positions)[None],
        prompt=len(prompt),
        lengths=tuple(len(row.ids) for row in rows),
        sources_N=torch.tensor(sources),
        targets_N=torch.tensor(targets),
        old_logprobs_N=torch.tensor(old),
        advantages_N=torch.tensor(advantages, dtype=torch.float32),
        counts_N=torch.tensor(counts, dtype=torch.float32),
        rows_N=torch.tensor(owners),
    )
