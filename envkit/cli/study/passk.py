"""`envkit study passk`: compare rows by pass@k, before and after training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import Json, complete_runs
from envkit.cli.output import emit, out, print_table
from envkit.runs import measuring


def passk(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of bench, train or demo.", autocompletion=complete_runs
        ),
    ],
    row: Annotated[
        str | None, typer.Option(metavar="ROW", help="Row to look at. Default: each trained adapter's.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="ROW", help="Row to compare with. Default: the untouched model's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare rows by pass@k, before and after training, with as many samples as they have.

    RL may make rare solutions frequent: then it gains most at k = 1, and the untouched model comes closer
    with every further try. Or it solves what the untouched model never did.
    """
    from envkit.measure.passk import sentences, table_of

    found = measuring.pass_at_k(runs, row=row, against=against)
    if as_json:
        emit([{**asdict(one), "crossing": one.crossing} for one in found])
        return
    for one in found:
        print_table(table_of(one))
        for sentence in sentences(one):
            out.print(sentence, markup=False, soft_wrap=True)
