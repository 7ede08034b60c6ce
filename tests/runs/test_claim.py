"""An adapter's claim is reproduced to the bit, and every change of what it rests on is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import envkit
from envkit.audit.certificate import valid
from envkit.env.taskfile import digest
from envkit.environments.code_editor import CodeEditorEnv, starter_tasks
from envkit.errors import StoreError
from envkit.models import weights_digest
from envkit.runs.before_after.run import BeforeAfter
from envkit.runs.before_after.setup import prepare, start
from envkit.runs.folder.claim import check_environment, read_claim
from envkit.runtime.display import Silent
from envkit.runtime.stop import never
from envkit.sandbox import SandboxBackend
from envkit.training.config import TrainConfig
from envkit.types import Task

TRAIN = [replace(task, split="train") for task in starter_tasks()[:4]]
HELDOUT = [replace(task, split="heldout") for task in starter_tasks()[4:7]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backend: SandboxBackend) -> Path:
    """The adapter of a small run that was evaluated."""
    folder = tmp_path_factory.mktemp("claim")
    config = TrainConfig(
        model=str(tiny.make(folder / "model").path),
        lora_r=2,
        sft_examples=8,
        sft_batch_size=4,
        max_steps=2,
        groups_per_step=2,
        num_generations=2,
        max_completion_length=6,
        save_steps=1,
    )
    planned = prepare(
        config,
        None,
        {CodeEditorEnv: TRAIN},
        {CodeEditorEnv: HELDOUT},
        backend=backend,
        display=Silent(),
        command="envkit train",
    )
    run = start(folder / "runs", planned)
    BeforeAfter(run, [CodeEditorEnv], backend, Silent(), never).run()
    return run.path / "checkpoints" / "step-000002"


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def edited(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    claim = json.loads((adapter / "claim.json").read_text())
    change(claim)
    (adapter / "claim.json").write_text(json.dumps(claim))


def findings(adapter: Path, tasks: list[Task] = HELDOUT) -> dict[str, str]:
    """Return the differences from the claim: subject -> detail."""
    result = envkit.verify(adapter, tasks=tasks, display="quiet")
    differing = {one.what: one.detail for one in result.findings if not one.ok}
    assert result.reproduced == (not differing)
    return differing


def test_a_claim_is_reproduced_to_the_bit(trained: Path) -> None:
    for named in (trained, trained.parents[1]):
        result = envkit.verify(named, tasks=HELDOUT, display="quiet")
        assert result.reproduced
        assert [one.what for one in result.findings] == [
            "adapter",
            "base model",
            "code-editor: code",
            "code-editor: tasks",
            "code-editor: tokens",
            "code-editor: verdicts",
        ]
        assert "6 episodes" in result.findings[4].detail
        assert result.findings[4].detail.endswith("every id and log-probability, to the bit")


def test_the_certificate_of_a_claim_is_told(adapter: Path) -> None:
    [claimed] = read_claim(adapter).environments
    here = valid(CodeEditorEnv)
    assert not isinstance(here, str)
    told = "as claimed; it had no valid certificate"
    for certificate, detail in (
        (here.seal, f"as claimed; the certificate that is here, {here.seal[:12]}"),
        ("ab" * 32, "as claimed; not the certificate that is here, abababababab"),
        ("it was never audited; run: envkit audit code-editor", told),
        ("none", told),
    ):
        [code, _] = check_environment(replace(claimed, certificate=certificate), CodeEditorEnv, {})
        assert (code.what, code.ok, code.detail) == ("code-editor: code", True, detail)


def flip_a_weight(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(name for name in weights if "lora_B" in name)
    weights[first].view(torch.int32).view(-1)[0] ^= 1 << 30
    save_file(weights, file)
    (adapter / "manifest.json").unlink()  # which has the file's digest


def test_one_flipped_weight_is_found(adapter: Path) -> None:
    flip_a_weight(adapter)
    assert list(findings(adapter)) == ["adapter"]
    # Even if its digest is claimed too: then another token is sampled, or with another probability.
    edited(adapter, lambda claim: claim.update(adapter=weights_digest(adapter)))
    assert "code-editor: tokens" in findings(adapter)


def test_changed_code_of_the_environment_is_found(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envkit.runs.folder.claim.code_digest", lambda kind: "another")
    assert findings(adapter) == {"code-editor: code": "it has changed since the claim"}


def test_a_changed_task_is_found(adapter: Path) -> None:
    changed = replace(HELDOUT[1], prompt="Do something else.")
    found = findings(adapter, [HELDOUT[0], changed, HELDOUT[2]])
    assert found == {"code-editor: tasks": f"{changed.id} has changed"}
    assert findings(adapter, HELDOUT[:2]) == {"code-editor: tasks": f"{HELDOUT[2].id} is not here"}


def test_tasks_to_train_on_prove_nothing(adapter: Path) -> None:
    known = [replace(task, split="train") for task in HELDOUT]

    def as_if_held_out(claim: dict[str, Any]) -> None:
        [part] = claim["environments"]
        part.update(split="train", tasks={task.id: digest([task]) for task in known})

    edited(adapter, as_if_held_out)
    wrong = f"{HELDOUT[0].id} is of split train, not held out"
    assert findings(adapter, known) == {"code-editor: tasks": wrong}


def steps_of(claim: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for episode in claim["environments"][0]["episodes"] for step in episode["steps"]]


def other_token(claim: dict[str, Any]) -> None:
    steps_of(claim)[2]["turn"]["tokens"]["completion_ids"][1] += 1


def other_logprob(claim: dict[str, Any]) -> None:
    steps_of(claim)[2]["turn"]["tokens"]["logprobs"][1] -= 1e-7


def other_observation(claim: dict[str, Any]) -> None:
    steps_of(claim)[1]["observation"] += " "


def other_text(claim: dict[str, Any]) -> None:
    """An answer that would solve the task, behind tokens that do not."""
    steps_of(claim)[2]["turn"]["text"] = CodeEditorEnv.oracle(HELDOUT[0])[0]


@pytest.mark.parametrize("here", [True, False], ids=["same hardware", "other hardware"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_token, ("token 1: claimed (", "its text is not what its tokens say")),
        (other_logprob, ("token 1: claimed (", "")),
        (other_observation, ("another observation", "its prompt does not match its observation")),
        (other_text, ("another text", "its text is not what its tokens say")),
    ],
)
def test_one_edited_episode_is_found(
    adapter: Path, change: Callable[[dict[str, Any]], None], words: tuple[str, str], here: bool
) -> None:
    edited(adapter, change)
    if not here:
        edited(adapter, lambda claim: claim["hardware"].update(device="cuda"))
    found = findings(adapter)
    if not here and change is other_logprob:  # a millionth of the tolerance
        assert found == {}
    else:
        assert words[not here] in found["code-editor: tokens"]


def no_environment(claim: dict[str, Any]) -> None:
    claim["environments"].clear()


def one_episode_less(claim: dict[str, Any]) -> None:
    claim["environments"][0]["episodes"].pop()


def an_empty_episode(claim: dict[str, Any]) -> None:
    claim["environments"][0]["episodes"][0]["steps"].clear()


def no_threads(claim: dict[str, Any]) -> None:
    claim["hardware"]["threads"] = 0


def cold(claim: dict[str, Any]) -> None:
    claim["sampling"]["temperature"] = -1.0


def another_dtype(claim: dict[str, Any]) -> None:
    claim["hardware"]["dtype"] = "int4"


@pytest.mark.parametrize(
    "change", [no_environment, one_episode_less, an_empty_episode, no_threads, cold, another_dtype]
)
def test_a_claim_of_less_or_of_what_cannot_be_is_refused(
    adapter: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edited(adapter, change)
    with pytest.raises(StoreError, match="is damaged: "):
        envkit.verify(adapter, tasks=HELDOUT, display="quiet")


def test_an_edited_verdict_is_found(adapter: Path) -> None:
    edited(adapter, lambda claim: claim["environments"][0]["episodes"][3].update(outcome="solved"))
    [(what, detail)] = findings(adapter).items()
    assert what == "code-editor: verdicts"
    assert "claimed solved, reward 0; found failed, reward 0" in detail


def test_on_other_hardware_log_probabilities_may_differ_a_little(adapter: Path) -> None:
    edited(adapter, lambda claim: claim["hardware"].update(cpu="another"))
    result = envkit.verify(adapter, tasks=HELDOUT, display="quiet")
    assert result.reproduced
    assert "on other hardware than claimed" in result.findings[4].detail

    def shifted(claim: dict[str, Any]) -> None:
        for step in steps_of(claim):
            tokens = step["turn"]["tokens"]
            tokens["logprobs"] = [logprob - 0.2 for logprob in tokens["logprobs"]]

    edited(adapter, shifted)
    assert list(findings(adapter)) == ["code-editor: tokens"]


def test_on_other_hardware_an_answer_must_be_what_its_random_numbers_draw(adapter: Path) -> None:
    edited(adapter, lambda claim: claim["hardware"].update(cpu="another"))

    def lucky(claim: dict[str, Any]) -> None:
        """The second sample's episode is claimed for the first one, too, as if it had been drawn twice."""
        first, second, *_ = claim["environments"][0]["episodes"]
        first.update({name: second[name] for name in ("steps", "outcome", "scores", "info")})

    edited(adapter, lucky)
    assert "not what the random numbers draw" in findings(adapter)["code-editor: tokens"]


def test_on_other_hardware_an_answer_must_end_where_the_settings_say(adapter: Path) -> None:
    edited(adapter, lambda claim: claim["hardware"].update(cpu="another"))
    edited(adapter, lambda claim: claim["sampling"].update(max_completion_length=7))
    assert "ends elsewhere than the settings say" in findings(adapter)["code-editor: tokens"]


def test_an_adapter_without_a_sound_claim_is_refused(adapter: Path) -> None:
    edited(adapter, lambda claim: claim.pop("sampling"))
    with pytest.raises(StoreError, match="is damaged"):
        envkit.verify(adapter, display="quiet")
    (adapter / "claim.json").write_text('{"schema": "x"}')
    with pytest.raises(StoreError, match=r"its schema is 'x'"):
        envkit.verify(adapter, display="quiet")
    (adapter / "claim.json").unlink()
    with pytest.raises(StoreError, match=r"has no claim.json; `envkit train` writes one"):
        envkit.verify(adapter, display="quiet")
