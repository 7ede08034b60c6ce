"""Adapter folders: PEFT files, the base model's digest, and a manifest that reveals damaged files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from envkit.errors import ModelError
from envkit.models.known import KNOWN
from envkit.models.reference import ModelRef
from envkit.runtime.files import file_digest, read_json_object

#: File with the id and digest of the weights that the adapter was trained on.
BASE = "base.json"
#: File with the digests of all other files.
MANIFEST = "manifest.json"
#: Files of an adapter itself. A checkpoint has files of the training beside them.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", BASE)

#: Highest rank of an adapter that is loaded. PEFT allocates what its settings say.
_MAX_RANK = 4096
#: Settings of a plain LoRA adapter. The engine adds LoRA's update to the base, or puts whole weights in place
#: of the base's, and supports nothing else.
_PLAIN_LORA = {
    "peft_type": "LORA",
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
    "layer_replication": None,
    "use_bdlora": None,
}
#: Ways to begin that change the base as well: beside the plain base, such an adapter is another one.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: The control of adapters that are whole weights; see `recorded_control`.
FULL = "full"
#: Controls of adapters that are no LoRA, so that neither rank nor alpha matters for them.
WITHOUT_RANK = ("steering", FULL)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the digests of all files in a folder, beside ``facts``, to its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": digests}, indent=1))


def manifest_files(folder: Path) -> dict[str, str]:
    """File digests of a folder's manifest; empty if it has no manifest of envkit's.

    Raises:
        OSError: the manifest cannot be read.
        ValueError: it is not a JSON object.
    """
    if not (folder / MANIFEST).exists():
        return {}
    files = read_json_object(folder / MANIFEST).get("files")
    return cast("dict[str, str]", files) if isinstance(files, dict) else {}


def damaged_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of files that differ from their digests.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    return [name for name, digest in digests.items() if file_digest(folder / name) != digest]


def damaged_adapter_files(folder: Path) -> list[str]:
    """Names of an adapter's own files that differ from its manifest. What else lies beside them is not read.

    Raises:
        OSError: one is missing or cannot be read.
        ValueError: the manifest cannot be read.
    """
    saved = manifest_files(folder)
    return damaged_files(folder, {name: saved[name] for name in ADAPTER_FILES if name in saved})


def recorded_base(folder: Path) -> str:
    """Return the id of the base model that an adapter's folder names; empty if it names none.

    Raises:
        ModelError: the model was a folder, of which only the name is known.
    """
    try:
        name = str(read_json_object(folder / BASE).get("model", ""))
    except (OSError, ValueError):
        return ""
    if name and name not in KNOWN and "/" not in name:
        raise ModelError(f"{folder} was trained on a model in a folder {name!r}; name it with --model")
    return name


def require_fit(folder: Path, ref: ModelRef) -> None:
    """Refuse an adapter that is damaged, trained on other weights, or neither plain LoRA nor whole weights.

    Raises:
        ModelError: see above; says which.
    """
    try:
        settings = read_json_object(folder / "adapter_config.json")
        note = folder / BASE
        base = read_json_object(note) if note.exists() else None
        damaged = damaged_adapter_files(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not an adapter ({error}); expected a PEFT folder") from error
    if damaged:
        raise ModelError(f"{folder / damaged[0]} differs from its manifest: the file is damaged")
    is_full = base is not None and base.get("control") == FULL
    for key, expected in _PLAIN_LORA.items():
        if key == "modules_to_save" and is_full:
            continue
        if (found := settings.get(key, expected)) != expected and found:
            raise ModelError(f"{folder}: {key} is {found!r}; expected {expected!r}, a plain LoRA adapter")
    if str(begun := settings.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        raise ModelError(
            f"{folder}: init_lora_weights is {begun!r}, which changed the base, too; expected a plain "
            "LoRA adapter of the base as it was; PEFT saves some kinds so, see its "
            "path_initial_model_for_weight_conversion"
        )
    ranks = [settings.get("r"), *_values(settings.get("rank_pattern"))]
    if wrong := [rank for rank in ranks if not isinstance(rank, int) or not 1 <= rank <= _MAX_RANK]:
        raise ModelError(f"{folder}: the rank is {wrong[0]!r}; expected a number from 1 to {_MAX_RANK}")
    if base is None:
        return
    if not {"model", "digest"} <= base.keys():
        raise ModelError(f"{folder / BASE}: expected the keys 'model' and 'digest' of the base model")
    if base["digest"] != ref.digest:
        raise ModelError(
            f"{folder} was trained on {base['model']} with weights {str(base['digest'])[:12]}, "
            f"and {ref.id} has {ref.digest[:12]}; name its own base with --model"
        )


def recorded_control(folder: Path) -> str:
    """Return what an adapter changes, as `envkit.training.config.TrainConfig` names it.

    Folders of other tools and of older versions do not name it: they hold LoRA on all linear layers.
    """
    try:
        return str(read_json_object(folder / BASE).get("control", "all-linear"))
    except (OSError, ValueError):
        return "all-linear"


def require_all_layers(folder: Path, layers: Iterable[str], changed: Collection[str]) -> None:
    """Refuse an adapter whose file lacks a layer that its settings name.

    Args:
        folder: has the settings.
        layers: paths of all layers that an adapter can change.
        changed: paths of those in its file.

    Raises:
        ModelError: see above.
    """
    settings = read_json_object(folder / "adapter_config.json")
    if any(settings.get(key) for key in ("layers_to_transform", "exclude_modules")):
        return  # PEFT's rules for them are not repeated here
    named = settings.get("modules_to_save") or settings.get("target_modules")
    if not isinstance(named, list):
        return
    ends = tuple(f".{name}" for name in cast("list[object]", named))
    if missing := sorted(path for path in layers if f".{path}".endswith(ends) and path not in changed):
        raise ModelError(f"{folder}: the weights lack {missing[0]}, which adapter_config.json names")


def require_scale(folder: Path, control: str, lora_r: int, lora_alpha: int) -> None:
    """Refuse an adapter whose update is scaled otherwise than in these settings, or is of another kind.

    Raises:
        ModelError: see above.
    """
    found = recorded_control(folder)
    if found != control and {found, control} & {*WITHOUT_RANK}:
        raise ModelError(
            f"{folder} is of control {found!r}, and control is {control!r}; begin with an adapter of the same"
        )
    settings = read_json_object(folder / "adapter_config.json")
    for key in ("use_rslora", "alpha_pattern", "rank_pattern"):
        if settings.get(key):
            raise ModelError(f"{folder}: {key} is set; expected one rank and one plain scale of all layers")
    for setting, key, wanted in (("lora_r", "r", lora_r), ("lora_alpha", "lora_alpha", lora_alpha)):
        if (found := settings.get(key)) != wanted:
            raise ModelError(f"{folder}: {key} is {found!r}, and {setting} is {wanted}; set {setting} to it")


def shape_difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Say which tensor a file and a model's adapter do not both have in one shape; "" if they agree."""
    found, wanted = ({name: [*tensor.shape] for name, tensor in part.items()} for part in (saved, own))
    name = min((name for name in found | wanted if found.get(name) != wanted.get(name)), default="")
    shapes = [shape.get(name, "none") for shape in (found, wanted)]
    return name and f"{name} has shape {shapes[0]} in the file and {shapes[1]} in the model"


def _values(pattern: Any) -> list[Any]:
    return [*cast("dict[str, Any]", pattern).values()] if isinstance(pattern, dict) else []
