"""Write the folder of an adapter that goes to the model hub: its own files, its claim, a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from envkit.env import registry
from envkit.errors import ModelError, StoreError, UsageError
from envkit.measure.report.data import ReportData, Scalar
from envkit.measure.report.model_card import ModelCard, TrainedOn, render_card, rows_of
from envkit.measure.report.page import load_report, load_reports
from envkit.models import weights_digest
from envkit.models.adapter_folder import (
    ADAPTER_FILES,
    BASE,
    MANIFEST,
    damaged_adapter_files,
    manifest_files,
    recorded_control,
    write_manifest,
)
from envkit.runs.folder.build_report import flat_settings
from envkit.runs.folder.claim import CLAIM, DIGEST, Claim, read_claim, without_evidence, write_claim
from envkit.runs.folder.provenance import code_digest
from envkit.runs.folder.run_records import environments_of, training_run_of
from envkit.runtime.files import read_json_object
from envkit.runtime.store import RunFolder, folder_name, whole_folder
from envkit.training.config import from_manifest, to_mapping


def write_publication(
    adapter: Path, repo: str, folder: Path, *, with_claim: bool = True, measured_in: Path | None = None
) -> None:
    """Write a new folder with an adapter as it is published.

    It has the adapter's own files, without the state of its optimizer and of its training. Left out are paths
    of this machine, and evidence of the graders, which may quote hidden values.

    Args:
        adapter: the adapter's folder. If it lies in the run that trained it, the card has its settings and
            what the run measured.
        repo: where it will be, ``owner/name``, for the card.
        folder: the folder to write; it must not exist.
        with_claim: also publish the claim, if there is one. It shows the prompts of a few held-out tasks and
            the adapter's answers.
        measured_in: a run that measured the adapter later.

    Raises:
        UsageError: ``measured_in`` did not measure it, or a harness that a claim names lies elsewhere or is
            another now.
        ConfigError: the file of such a harness is gone.
        ModelError: the adapter is damaged or has no note of its base model.
        StoreError: the claim, the run or its report is damaged, or the folder cannot be written.
    """
    try:
        files = {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}
        saved = manifest_files(adapter)
        damaged = damaged_adapter_files(adapter)
        facts = read_json_object(adapter / MANIFEST) if saved else {}
        base, lora = (read_json_object(adapter / name) for name in (BASE, "adapter_config.json"))
        model, model_digest = str(base["model"]), str(base["digest"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{adapter}: not an adapter of envkit ({error})") from error
    if damaged:
        raise ModelError(f"{adapter / damaged[0]} differs from its manifest: the file is damaged")
    digest = weights_digest(adapter)
    # A warm start that was copied from elsewhere has no base in its manifest: this run did not train it.
    run = training_run_of(adapter) if "base" in facts else None
    claim = without_evidence(read_claim(adapter)) if (adapter / CLAIM).exists() else None
    if claim and claim.adapter != digest:
        raise ModelError(f"{adapter / CLAIM} is of other weights; move it away, or restore the weights")
    reports = [report for report in _reports(run) if rows_of(report, digest)] if run else []
    if measured_in:
        later = [report for report in load_reports(measured_in) if rows_of(report, digest)]
        if not later:
            raise UsageError(f"{measured_in} did not measure the adapter {adapter}; name a run that did")
        reports += later
    environments = _environments(run, claim, reports)
    programs = _programs(environments) if claim and with_claim else {}
    card = ModelCard(
        repo=repo,
        adapter=digest,
        model=model,
        model_digest=model_digest,
        steps=facts.get("step", 0 if "base" in facts else None),
        environments=tuple(environments),
        control=recorded_control(adapter),
        settings=_settings(run) if run else {},
        reports=tuple(reports),
        claimed_episodes=sum(len(part.episodes) for part in claim.environments)
        if claim and with_claim
        else 0,
        commit=str(run.manifest.get("commit", "")) if run else claim.commit if claim else "",
        programs=tuple(programs),
    )
    # PEFT looks this name up on the hub. Without one, it takes the name of the model that it is given.
    lora["base_model_name_or_path"] = model if "/" in model else None
    files["adapter_config.json"] = json.dumps(lora, indent=2).encode()
    with whole_folder(folder) as making:
        for name, content in (files | programs).items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            (making / name).write_bytes(content)
        write_manifest(making, {name: facts[name] for name in ("step", "model", "base") if name in facts})
        (making / "README.md").write_bytes(render_card(card))
        if claim and with_claim:
            write_claim(replace(claim, model=_without_folder(claim.model)), making)


def _environments(
    run: RunFolder | None, claim: Claim | None, reports: Sequence[ReportData]
) -> list[TrainedOn]:
    """List the environments of the training, from the run's manifests and else from the claim."""
    claimed = {part.name: part for part in claim.environments} if claim else {}
    parts = _parts(run) if run else {}
    found: list[TrainedOn] = []
    for name in parts or claimed:
        part, manifest = claimed.get(name), parts[name].manifest if parts else {}
        seals = [report.certificate for report in reports if report.environment == name]
        if part:
            seals.insert(0, part.certificate)
        code = str(manifest.get("code", part.code if part else ""))
        tasks = cast("dict[str, str]", manifest.get("tasks", {}))
        found.append(TrainedOn(name, next(filter(DIGEST.fullmatch, seals), ""), code, tasks))
    return found


def _programs(environments: Sequence[TrainedOn]) -> dict[str, bytes]:
    """Files of harnesses, by the paths at which a claim's verification looks for them.

    Raises:
        UsageError: one lies outside of the current folder, or is not the one that the claim was made with.
        ConfigError: one is gone, or wrong.
    """
    found: dict[str, bytes] = {}
    for one in environments:
        path = Path(one.name.partition("@")[2])
        if path.suffix != ".toml":  # none, or one that envkit ships
            continue
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(
                f"{one.name}: the claim could not be verified elsewhere, where {path} is not; publish "
                "without it (--no-claim), or train with a path below the current folder"
            )
        if code_digest(registry.environment(one.name)) != one.code:
            raise UsageError(
                f"{one.name}: {path} here, or this version of envkit, is another than the claim was made "
                "with; restore it, or publish without the claim (--no-claim)"
            )
        found[str(path)] = path.read_bytes()
    return found


def _parts(run: RunFolder) -> dict[str, RunFolder]:
    """The folder of each environment's tasks and report, by its name; with one environment, the run's."""
    names = environments_of(run)
    if len(names) == 1:
        return {names[0]: run}
    return {name: RunFolder.open(run.path / folder_name(name)) for name in names}


def _reports(run: RunFolder) -> list[ReportData]:
    """Load the reports of a training run, without paths of this machine in their warnings."""
    folders = [part.path for part in _parts(run).values()]
    warm_start = str(_plan(run).get("warm_start", ""))

    def clean(warning: str) -> str:
        return warning.replace(warm_start, _without_folder(warm_start)) if warm_start else warning

    found = [load_report(folder) for folder in folders if (folder / "report.json").exists()]
    return [replace(report, warnings=tuple(map(clean, report.warnings))) for report in found]


def _settings(run: RunFolder) -> dict[str, Scalar]:
    """Settings of the training, flat, without paths of this machine."""
    flat = flat_settings(to_mapping(from_manifest(_plan(run), str(run.path / "manifest.json"))))
    return {name: _without_folder(value) if isinstance(value, str) else value for name, value in flat.items()}


def _plan(run: RunFolder) -> Mapping[str, Any]:
    """The settings in a run's manifest.

    Raises:
        StoreError: there are none.
    """
    plan: Any = run.manifest.get("plan")
    if not isinstance(plan, dict) or "train" not in plan:
        raise StoreError(f"{run.path / 'manifest.json'}: no plan in it; it is damaged")
    return cast("dict[str, Any]", plan)["train"]


def _without_folder(text: str) -> str:
    """The last part of an absolute path; other texts as they are."""
    return Path(text).name if text.startswith("/") else text
