"""`envkit study steering`: compute a steering vector from episodes, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envkit.cli.options import Json, complete_runs
from envkit.cli.output import emit, out
from envkit.runtime.plain import encode
from envkit.studies.steering import call as steering_call


def steering(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run of `envkit study support`, played by the base.",
            autocompletion=complete_runs,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The adapter's folder.")
    ] = Path("steering"),
    layer: Annotated[
        int, typer.Option(metavar="N", help="Layer whose output is shifted, from 1; 0 is the middle one.")
    ] = 0,
    strength: Annotated[
        float, typer.Option(metavar="NUMBER", help="Multiplies the vector; negative steers away.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Compute a steering vector from what the base has played, without training.

    It is the mean difference inside the base between episodes that solved a train task and those that failed
    it. It is written as an adapter, to be measured and served like any other.
    """
    result = steering_call.steer(run, output, layer=layer, strength=strength)
    found = result.found
    if as_json:
        emit({"adapter": str(result.adapter), "steering": encode(found)})
        return
    for line in (
        f"Layer {found.layer} of {found.layers}: the difference of {found.episodes} episodes of "
        f"{found.tasks} tasks, times {found.strength:g}, is {found.share:.1%} as long as the layer's "
        "outputs.",
        f"adapter: {result.adapter}",
    ):
        out.print(line, markup=False, soft_wrap=True)
