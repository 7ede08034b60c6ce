"""Verify trained adapters, and copies with one change each, which `envkit verify` must find.

    python benchmarks/verify.py ADAPTER...

An ADAPTER is a training run, or an adapter's folder with a ``claim.json``. Each is verified as it is: it must
be reproduced to the bit, so this is for the machine that trained it. Then follow three copies: one weight is
flipped, and the claim's digest is that of the new weights; one token of an episode is another; one line is
added to the environment's code, in a copy of envkit. None of them may be reproduced. Writes
``runs/bench/verify.json``; exits 1 if one of these is not so.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import side_by_side

from envkit.env import registry
from envkit.models import weights_digest
from envkit.models.adapter_folder import MANIFEST
from envkit.runs.adapter import adapter_folder
from envkit.runs.folder.claim import CLAIM
from envkit.runs.folder.provenance import commit
from envkit.runtime.store import write_atomic

_SAFETENSORS: Final[Any] = safetensors.torch  # without whole types
#: Packages of envkit that lie in folders of their own in a checkout.
_APART: Final = ("agents", "environments", "sandboxes")


def verify(adapter: Path, path: Path | None = None) -> dict[str, Any]:
    """Run ``envkit verify``; ``path`` is put before the installed packages."""
    environment = dict(os.environ) if path is None else {**os.environ, "PYTHONPATH": str(path)}
    command = [str(Path(sys.executable).with_name("envkit")), "verify", str(adapter), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout)


def flip_a_weight(adapter: Path) -> None:
    """Change the sign of one weight, and make the claim's digest that of the new weights."""
    file = adapter / "adapter_model.safetensors"
    weights = _SAFETENSORS.load_file(file)
    name = next(name for name in sorted(weights) if "lora_B" in name)
    weights[name].view(-1)[0] *= -1
    _SAFETENSORS.save_file(weights, file)
    (adapter / MANIFEST).unlink(missing_ok=True)  # it has the file's digest
    edit_claim(adapter, lambda claim: claim.update(adapter=weights_digest(adapter)))


def edit_an_episode(adapter: Path) -> None:
    """Replace one drawn token of a claimed episode by the next one of the vocabulary."""

    def change(claim: dict[str, Any]) -> None:
        tokens = claim["environments"][0]["episodes"][0]["steps"][0]["turn"]["tokens"]
        tokens["completion_ids"][0] += 1

    edit_claim(adapter, change)


def edit_claim(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an adapter's claim."""
    claim = json.loads((adapter / CLAIM).read_text())
    change(claim)
    (adapter / CLAIM).write_text(json.dumps(claim))


def copy_of_envkit(folder: Path, environment: str) -> None:
    """Copy envkit to a folder, with one line more in the module of an environment."""
    kind = registry.environment(environment)
    for name in ("envkit", *(f"envkit.{apart}" for apart in _APART)):
        source = Path(str(importlib.import_module(name).__file__)).parent
        target = folder / name.replace(".", "/")
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / (kind.__module__.replace(".", "/") + ".py")
    module.write_text(module.read_text() + "\n\n_ADDED = 1\n")


def check(adapter: Path) -> Mapping[str, str]:
    """Verify an adapter and its changed copies; returns what was found of each."""
    found: dict[str, str] = {}
    told = verify(adapter)
    found["as it is"] = summary(told)
    with tempfile.TemporaryDirectory() as folder:
        for change in (flip_a_weight, edit_an_episode):
            copy = Path(folder, change.__name__)
            shutil.copytree(adapter, copy)
            change(copy)
            found[change.__name__.replace("_", " ")] = summary(verify(copy))
        claim = json.loads((adapter / CLAIM).read_text())
        copy_of_envkit(Path(folder, "code"), claim["environments"][0]["name"])
        found["add a line to the environment"] = summary(verify(adapter, Path(folder, "code")))
    return found


def summary(told: Mapping[str, Any]) -> str:
    """Return "reproduced", or the first thing that differs."""
    if told["reproduced"]:
        return "reproduced"
    return next(f"{one['what']}: {one['detail']}" for one in told["findings"] if not one["ok"])


def main() -> None:
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    adapters = {name: adapter_folder(Path(name)).resolve() for name in sys.argv[1:]}
    results: dict[str, Mapping[str, str]] = {}
    for name, adapter in adapters.items():
        results[name] = check(adapter)
        print(name, *(f"  {change}: {said}" for change, said in results[name].items()), sep="\n", flush=True)
    folder = side_by_side.ROOT / "runs" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"commit": commit(), "machine": side_by_side.machine(), "adapters": results}
    write_atomic(folder / "verify.json", (json.dumps(whole, indent=1) + "\n").encode())
    as_it_should = all(
        (said == "reproduced") == (change == "as it is")
        for found in results.values()
        for change, said in found.items()
    )
    sys.exit(0 if as_it_should else 1)


if __name__ == "__main__":
    main()
