"""Publish an adapter on the model hub: `push_adapter`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from envkit.errors import UsageError
from envkit.runs.adapter import adapter_folder
from envkit.runs.results import PushResult


def push_adapter(
    adapter: Path | str,
    repo: str,
    *,
    private: bool = False,
    claim: bool = True,
    measured_in: Path | str | None = None,
    dry_run: Path | str | None = None,
) -> PushResult:
    """Upload an adapter to the Hugging Face Hub, with a model card of what was trained and measured.

    Only the adapter's own files go up: weights, configuration, the base model's digest, the claim that
    `verify` replays, and the card. The repository is made if there is none.

    Args:
        adapter: a training run's folder, whose newest checkpoint is taken, or an adapter's own folder.
        repo: ``owner/name``.
        private: make the repository private. One that is public already is refused.
        claim: publish the claim too. It shows the prompts of a few held-out tasks and the adapter's answers,
            but no hidden value.
        measured_in: a run of `bench` or `evaluate` that measured the adapter, whose table the card shows
            beside that of the adapter's own run.
        dry_run: write the files to this new folder, and upload nothing.

    Raises:
        UsageError: no adapter there, no token, or the hub refused.
        ModelError: the adapter is damaged.
        StoreError: its claim, its run or its report is damaged.
    """
    from envkit.models import require_training

    folder = adapter_folder(Path(adapter))
    require_training()
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from envkit.runs.folder.claim import CLAIM
    from envkit.runs.folder.publishing import write_publication

    def write(made: Path) -> None:
        run = None if measured_in is None else Path(measured_in)
        write_publication(folder, repo, made, with_claim=claim, measured_in=run)

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"repository {repo!r}: {error}") from error
    if "/" not in repo:
        raise UsageError(f"repository {repo!r} has no owner; expected owner/name")
    if dry_run is not None:
        write(Path(dry_run))
        return PushResult(folder, "", _sizes(Path(dry_run)))
    if get_token() is None:
        raise UsageError(
            "there is no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN to a "
            "token that may write"
        )
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "adapter"
        write(made)
        api = HfApi()
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise UsageError(f"{repo} is public already; make it private on the hub, or push elsewhere")
            # An older claim is of other weights.
            api.upload_folder(
                repo_id=repo,
                folder_path=made,
                commit_message="Adapter trained with envkit",
                delete_patterns=[CLAIM],
            )
        except UsageError:
            raise
        except Exception as error:  # of the network too, by whatever library
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"the hub did not take {repo} ({type(error).__name__}: {reason})") from error
        return PushResult(folder, f"{api.endpoint}/{repo}", _sizes(made))


def _sizes(folder: Path) -> dict[str, int]:
    """Path of a file in the folder -> size in bytes."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}
