"""Compute a steering vector from episodes, without training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envkit.errors import UsageError
from envkit.runs.rich_display import DisplayChoice, open_display

if TYPE_CHECKING:
    from envkit.studies.steering.vector import Steering


@dataclass(frozen=True, slots=True)
class SteerResult:
    """The result of `envkit.steer`.

    Args:
        adapter: the folder of the steering vector.
        found: what it was computed from.
    """

    adapter: Path
    found: Steering


def steer(
    run: Path | str,
    output: Path | str,
    *,
    layer: int = 0,
    strength: float = 1.0,
    display: DisplayChoice = "rich",
) -> SteerResult:
    """Compute a steering vector: what the base's episodes that solved a train task have in common inside.

    It is the mean difference, at one layer's output, from episodes that failed the same task, over the tokens
    of their first turns. As an adapter it is added to that output, whatever the input. Nothing is trained.

    Args:
        run: a run of `envkit study support` of the untouched base, which has played train tasks in groups.
        output: the adapter's folder, which must not exist.
        layer: the layer, from 1; 0 is the middle one.
        strength: multiplies the difference; a negative one steers away from what solves.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: bad input, found before any long work; for instance, no task was solved sometimes only.
        ModelError: the base cannot be had.
    """
    from envkit.models import require_training, resolve
    from envkit.runtime.store import RunFolder

    require_training()
    from envkit.runs.folder.machine import resolve_dtype, use_threads
    from envkit.studies.steering.vector import contrasts, count_sampled, make_vector, read_config

    if Path(output).exists():
        raise UsageError(f"{output} exists; name another folder, or remove it first")
    if not math.isfinite(strength) or not strength:
        raise UsageError(f"strength is {strength}; expected a number other than 0")
    folder = RunFolder.open(Path(run))
    config, tasks = read_config(folder), contrasts(folder)
    with open_display(display) as progress:
        ref = resolve(config.model, progress)
        if ref.digest != folder.manifest.get("model_digest"):
            raise UsageError(f"{folder.path} was played by other weights than {ref.id} has now")
        use_threads()
        found = make_vector(
            ref,
            resolve_dtype(config, progress.say),
            tasks,
            count_sampled(folder),
            Path(output),
            layer,
            strength,
            progress,
        )
    return SteerResult(Path(output), found)
