"""Verify an adapter: replay the episodes that its folder claims."""

from __future__ import annotations

import os
from pathlib import Path

from envkit.env import Env
from envkit.runs.common import Tasks, isolated_backend, load_tasks
from envkit.runs.results import VerifyResult
from envkit.runs.rich_display import DisplayChoice, open_display
from envkit.sandbox import SandboxBackend
from envkit.types import Task


def verify(
    adapter: Path | str,
    *,
    tasks: Tasks | None = None,
    model: Path | str | None = None,
    sandbox: SandboxBackend | str = "auto",
    display: DisplayChoice = "rich",
) -> VerifyResult:
    """Check what a trained adapter claims, offline and on a CPU: replay its episodes token by token.

    `train` writes the claim: digests of weights, base model, environment code and tasks, and a few held-out
    episodes with every token id and log-probability. On the same hardware all must be the same to the bit. On
    other hardware, log-probabilities may differ by a stated tolerance.

    Args:
        adapter: a training run's folder, whose newest checkpoint is checked, or an adapter's own folder.
        tasks: the held-out tasks, or their file, if they are not the environment's own.
        model: the base model, if it is no longer where it was; its weights must be the same.
        sandbox: a backend or its registered name.
        display: ``"rich"``, ``"quiet"`` or a display of your own.

    Raises:
        UsageError: the folder holds no adapter, or the adapters of several seeds.
        StoreError: the adapter has no claim, or it is damaged.
        ModelError: the base model cannot be had.
    """
    from envkit.env import registry
    from envkit.models import require_training, resolve, weights_digest
    from envkit.models.adapter_folder import recorded_control
    from envkit.runs.adapter import adapter_folder, lora_settings

    folder = adapter_folder(Path(adapter))
    require_training()
    from envkit.runs.folder.claim import (
        ClaimCheck,
        ClaimedEnvironment,
        check_environment,
        read_claim,
        replay_environment,
    )
    from envkit.runs.folder.machine import use_threads
    from envkit.training.checkpoint import load_adapter
    from envkit.training.policy import Policy

    claim = read_claim(folder)
    with open_display(display) as progress:
        backend = isolated_backend(sandbox, progress)
        found = weights_digest(folder)
        same = found == claim.adapter
        detail = "as claimed" if same else f"digest {found[:12]}, claimed {claim.adapter[:12]}"
        origin = f"seed {claim.seed}, envkit {claim.commit}, Python {claim.python}"
        findings = [ClaimCheck("adapter", same, f"{detail}; {origin}")]
        ref = resolve(claim.model if model is None else str(model), progress)
        same = ref.digest == claim.model_digest
        detail = f"{ref.id}, {'as claimed' if same else 'other weights than claimed'}"
        findings.append(ClaimCheck("base model", same, detail))
        played: list[tuple[ClaimedEnvironment, type[Env], list[Task]]] = []
        for part in claim.environments:
            kind = registry.environment(part.name)
            here = {task.id: task for task in load_tasks(kind, tasks, part.split, backend, progress)}
            findings += check_environment(part, kind, here)
            played.append((part, kind, [here[name] for name in part.tasks if name in here]))
        if all(finding.ok for finding in findings):
            # With more threads than cores it would take many times as long.
            use_threads(min(claim.hardware.threads, os.cpu_count() or 1))
            rank, alpha = lora_settings(folder)
            policy = Policy(
                ref,
                lora_r=rank,
                lora_alpha=alpha,
                control=recorded_control(folder),
                dtype=claim.hardware.dtype,
                kv_cache_mb=claim.sampling.kv_cache_mb,
            )
            try:
                load_adapter(policy, folder)
                for part, kind, some in played:
                    progress.phase(f"replay {kind.id}", len(part.episodes))
                    findings += replay_environment(part, claim, policy, kind, some, backend)
            finally:
                policy.close()
    return VerifyResult(folder, tuple(findings))
