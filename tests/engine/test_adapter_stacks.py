"""The stacks of adapters against products computed one by one, and against each other."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from envkit.engine.adapters.stacks import AdapterStacks
from envkit.engine.adapters.updates import Update
from envkit.engine.attention.rectangle import Rectangle

INPUTS, OUTPUTS = 24, (16, 8)


def update(rank: int, outputs: int, seed: int, *, shift: bool = False) -> Update:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator) for shape in ((rank, INPUTS), (outputs, rank)))
    return Update(down, up, torch.randn(outputs, generator=generator) if shift else None)


def adapters(count: int, *, shift: bool = False) -> list[list[Update | None]]:
    """Adapters of other ranks, some of which leave a layer as it is."""
    return [
        [
            update(1 + number % 3, OUTPUTS[0], number, shift=shift and number % 2 == 0),
            None if number % 4 == 3 else update(2, OUTPUTS[1], 100 + number),
        ]
        for number in range(count)
    ]


def stacks_of(dtype: torch.dtype, given: Sequence[Sequence[Update | None]]) -> AdapterStacks:
    stacks = AdapterStacks(torch.empty(0, dtype=dtype), INPUTS, OUTPUTS)
    stacks.clear(len(given), given)
    for adapter in given:
        stacks.append(adapter)
    return stacks


def expected(x_SI: Tensor, adapter: Sequence[Update | None]) -> Tensor:
    """The update of one row, in float32."""
    parts = [
        torch.zeros(len(x_SI), outputs)
        if one is None
        else x_SI.float() @ one.down.T @ one.up.T + (0 if one.shift is None else one.shift)
        for one, outputs in zip(adapter, OUTPUTS, strict=True)
    ]
    return torch.cat(parts, -1)


def added(stacks: AdapterStacks, x_BSI: Tensor, owners: Sequence[int | None], positions: range) -> Tensor:
    """Return the term that adapters add to a base whose outputs are all 1."""
    rows = [row for row, owner in enumerate(owners) if owner is not None]
    chosen = [owner - positions.start for owner in owners if owner is not None]
    some: Tensor | slice | None = None
    if len(rows) < len(owners):
        is_slice = rows[-1] - rows[0] < len(rows)
        some = slice(rows[0], rows[-1] + 1) if is_slice else torch.tensor(rows)
    out_BSO = torch.ones(*x_BSI.shape[:2], sum(OUTPUTS), dtype=x_BSI.dtype)
    stacks.add(out_BSO, x_BSI, positions, some, Rectangle(chosen, len(positions)))
    return out_BSO.float() - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 7])
def test_each_row_gets_its_adapters_update(dtype: torch.dtype, rows: int, count: int) -> None:
    given = adapters(count + 2, shift=True)
    stacks, positions = stacks_of(dtype, given), range(1, count + 1)
    owners: list[list[int | None]] = [[at for at in positions for _ in range(rows)]]
    owners.append([None, *owners[0], None])  # adjacent rows
    owners.append([*itertools.chain.from_iterable((at, None) for at in reversed(owners[0]))])
    owners.append([*owners[0][1:], positions[0]])  # no rectangle in order
    for mine in owners:
        x_BSI = torch.randn(len(mine), 2, INPUTS, generator=torch.Generator().manual_seed(7)).to(dtype)
        found = added(stacks, x_BSI, mine, positions)
        for x_SI, one, owner in zip(x_BSI, found, mine, strict=True):
            theirs = torch.zeros(2, sum(OUTPUTS)) if owner is None else expected(x_SI, given[owner])
            tolerance = 1e-4 if dtype == torch.float32 else 0.03
            torch.testing.assert_close(one, theirs, rtol=tolerance, atol=tolerance * 10)


def test_one_adapter_for_all_rows() -> None:
    given = adapters(3, shift=True)
    stacks, x_BSI = stacks_of(torch.float32, given), torch.randn(4, 2, INPUTS)
    for position, adapter in enumerate(given):
        out_BSO = torch.zeros(4, 2, sum(OUTPUTS))
        stacks.add_one(out_BSO, x_BSI, position)
        torch.testing.assert_close(out_BSO.flatten(0, 1), expected(x_BSI.flatten(0, 1), adapter))


@pytest.mark.parametrize("broken", ["up", "down"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_broken_adapter_spoils_no_row_of_its_neighbours(broken: str, value: float) -> None:
    given = adapters(4)
    matrix = getattr(given[1][0], broken)
    matrix[0, 0] = value
    stacks = stacks_of(torch.bfloat16, given)
    found = added(stacks, torch.ones(8, 1, INPUTS).bfloat16(), [0, 0, 1, 1, 2, 2, 3, 3], range(4))
    assert [bool(row.isfinite().all()) for row in found] == [True, True, False, False, True, True, True, True]


def test_adapters_stay_the_same_when_others_come_and_go() -> None:
    given = adapters(4, shift=True)
    stacks = stacks_of(torch.bfloat16, given[:2])
    stacks.resize(3, given[2])
    stacks.append(given[2])
    stacks.swap(0, 2)
    stacks.pop()  # the first one
    stacks.resize(2)
    wide: list[Update | None] = [update(9, OUTPUTS[0], 5), update(1, OUTPUTS[1], 6)]
    assert not stacks.holds(wide)
    stacks.resize(5, wide)
    stacks.append(wide)
    stacks.append(given[3])
    order = [given[2], given[1], wide, given[3]]
    x_BSI = torch.randn(4, 1, INPUTS).bfloat16()
    found = added(stacks, x_BSI, range(4), range(4))
    fresh = stacks_of(torch.bfloat16, order)
    theirs = added(fresh, x_BSI, range(4), range(4))
    torch.testing.assert_close(found, theirs, rtol=0.03, atol=0.3)
    for x_SI, one, adapter in zip(x_BSI, found, order, strict=True):
        torch.testing.assert_close(one, expected(x_SI, adapter), rtol=0.03, atol=0.3)


def test_adapters_take_the_memory_of_their_own_numbers() -> None:
    adapter: list[Update | None] = [update(4, OUTPUTS[0], 1), update(4, OUTPUTS[1], 2)]
    numbers = sum(one.down.numel() + one.up.numel() for one in adapter if one is not None)
    stacks = stacks_of(torch.bfloat16, [adapter] * 3)
    assert stacks.bytes_alone(adapter) == stacks.bytes_each(adapter) == 2 * numbers
    assert stacks.bytes == 3 * 2 * numbers
    stacks.pop()
    stacks.resize(2)
    assert stacks.bytes == 2 * 2 * numbers
