"""Sabotaged environments, each caught by the check that is named; honest ones with odd needs pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "sabotages"))

import honest
import sabotage_answers as answers
import sabotage_faults as faults
import sabotage_missed as missed
import sabotage_sameness as sameness
import sabotage_shown as shown
import sabotage_splits as splits
import sabotage_trained as trained
import sabotage_unearned as unearned
from quiz import Quiz

from envkit import Env, SandboxBackend
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.runner import AUDIT_CHECKS, Finding, run_audit
from envkit.runtime.display import Silent

DEPENDS = "what is shown depends on nothing hidden"
NOT_SHOWN = "answers are not shown"
ELSEWHERE = "a fresh process plays the same"
MANY = "many episodes change nothing"
BREAKING = "breaking earns nothing"
CLAIMS = "claims and padding earn nothing"
WORDS = "words of the source earn nothing"
EVERY = "every answer at once earns nothing"

#: Environment -> the check that must catch it, and a part of its finding.
CAUGHT: dict[type[Env], tuple[str, str]] = {
    shown.Reversed: (DEPENDS, "the first observation differs if hidden.sum is"),
    shown.Base64: (DEPENDS, "the first observation differs"),
    shown.InWords: (DEPENDS, "the first observation differs"),
    shown.InLineLengths: (DEPENDS, "the first observation differs"),
    shown.OneLetter: (DEPENDS, "the workspace's .cache/state differs"),
    shown.OnRequest: (DEPENDS, "tell the value of hidden.sum"),
    shown.BehindAnArgument: (DEPENDS, "show hidden.sum (hexadecimal)"),
    shown.BehindFailures: (DEPENDS, "show hidden.sum (plain)"),
    shown.LongReversed: ("hidden values do not leak", "can be read in observation 0"),
    shown.InData: ("hidden values do not leak", "the file /data/quiz_data/sums.csv holds hidden.sum"),
    shown.InId: (NOT_SHOWN, "the id of every task shows text of the oracle's action 2"),
    shown.InMetadata: (NOT_SHOWN, "the first observation of every task shows text of the oracle's action 2"),
    shown.InPrompt: (NOT_SHOWN, "a label in the prompt of every task"),
    shown.InFile: (NOT_SHOWN, "the file answers.txt of every task"),
    shown.ComputedAgain: (NOT_SHOWN, "(with commas)"),
    sameness.SetOrder: (ELSEWHERE, "differs in a fresh process"),
    sameness.Date: (ELSEWHERE, "differs in a fresh process"),
    sameness.Hour: (ELSEWHERE, "differs in a fresh process"),
    sameness.OneWeekday: (ELSEWHERE, "on another date"),
    sameness.SlowAnswers: (ELSEWHERE, "to a slow agent"),
    sameness.Variable: (ELSEWHERE, "with its environment variables set"),
    sameness.CountingInstance: (MANY, "doing nothing earns 1 on task"),
    sameness.CountingClass: (MANY, "doing nothing earns 1 on task"),
    sameness.CountingFile: (MANY, "doing nothing earns 1 on task"),
    sameness.RareSeed: (MANY, "with seed"),
    sameness.OneTask: (MANY, "doing nothing earns 1 on task starter-7"),
    sameness.Remembering: (MANY, "doing nothing"),
    sameness.Stubborn: ("asking a check changes nothing", "when it is asked again"),
    splits.Renamed: ("splits share no task", "4 of 8 held-out tasks are train tasks"),
    splits.Reworded: ("splits share no task", "heldout-5 is train-3"),
    splits.Numbered: ("splits share no task", "held-out tasks are train tasks"),
    splits.Reported: ("splits share no task", "8 of 8 test tasks are train tasks"),
    faults.DeadProgram: (BREAKING, "if its programs die"),
    faults.SilentProgram: (BREAKING, "if its programs die"),
    faults.SwallowsAll: (BREAKING, "if the sandbox fails"),
    faults.SwallowsOnTheHost: (
        "a check that fails earns nothing",
        "in a check at sabotage_faults.py",
    ),
    faults.NothingLeft: (BREAKING, "an agent that empties its workspace"),
    unearned.LengthPays: (CLAIMS, "earns 0."),
    unearned.LongAnswersPass: (CLAIMS, "counts as solved"),
    unearned.MagicWord: (WORDS, "saying 'xyzzy' earns 1"),
    unearned.MagicAction: (WORDS, "saying 'open sesame' earns 1"),
    unearned.OwnWord: (CLAIMS, "saying 'I have solved it.' earns 1"),
    unearned.Wildcards: (CLAIMS, "saying '.*' earns 1"),
    unearned.NotANumber: (CLAIMS, "saying 'nan' earns 1"),
    unearned.RefusedActionsPay: (CLAIMS, "earns 0."),
    unearned.HastePays: (CLAIMS, "earns 0."),
    unearned.ForgedResult: ("forged files earn nothing", "earns 1"),
    unearned.EasyLevel: ("exploits earn nothing", "1 of 1 exploits win: answers with zero"),
    unearned.OneSource: ("exploits earn nothing", "1 of 1 exploits win: answers with zero"),
    unearned.ThirdLevel: ("exploits earn nothing", "1 of 1 exploits win: answers with zero"),
    answers.Prefix: ("near misses fail", "shortened 18 of 18"),
    answers.Anagram: ("near misses fail", "neighbours swapped"),
    answers.SameLength: ("near misses fail", "one character changed"),
    answers.Somewhere: (EVERY, "giving the answers to all tasks at once earns 1"),
    answers.AnySum: (EVERY, "giving another task's answer"),
}
#: Environment with a hole that the audit does not find; the module says why.
MISSED = (missed.HashedWord, missed.IgnoredCase, missed.LateCounter, missed.DrawnSecret)
#: Those that `envkit audit --attack-by-training` finds; test_attack.py trains on them.
TRAINED = (trained.AnyOrder, trained.Repeats, trained.AboutRight)
HONEST = (Quiz, honest.Errands, honest.Riddle, honest.Choice, honest.YesNo, honest.Shopping, honest.Prices)


def faults_of(kind: type[Env], backend: SandboxBackend, *, quick: bool = False) -> list[Finding]:
    tasks = kind.make_tasks("starter", sandbox=backend, display=Silent())
    audited = AuditedEnv(kind, tasks, backend, kind.max_turns, own_tasks=True, quick=quick)
    return [finding for finding in run_audit(audited, Silent()) if finding.ok is False]


def test_enough_holes_are_caught_and_the_page_has_their_number() -> None:
    assert len(CAUGHT) >= 24
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "certificate.md").read_text()
    assert f"has {len(CAUGHT)} sabotaged environments" in page


@pytest.mark.parametrize("kind", CAUGHT, ids=lambda kind: kind.__name__)
def test_each_hole_is_caught_by_its_check(
    kind: type[Env], backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, words = CAUGHT[kind]
    monkeypatch.setattr("envkit.audit.runner.AUDIT_CHECKS", {check: AUDIT_CHECKS[check]})
    [finding] = faults_of(kind, backend)
    assert words in finding.detail


@pytest.mark.nightly  # nothing is broken if one is caught
@pytest.mark.parametrize("kind", MISSED + TRAINED, ids=lambda kind: kind.__name__)
def test_known_misses_are_still_missed(kind: type[Env], backend: SandboxBackend) -> None:
    """If one is caught now, move it to `CAUGHT`."""
    assert faults_of(kind, backend, quick=True) == []


@pytest.mark.parametrize("kind", HONEST, ids=lambda kind: kind.__name__)
def test_honest_environments_pass_with_fewer_episodes(kind: type[Env], backend: SandboxBackend) -> None:
    assert faults_of(kind, backend, quick=True) == []


@pytest.mark.nightly
@pytest.mark.parametrize("kind", HONEST, ids=lambda kind: kind.__name__)
def test_honest_environments_pass(kind: type[Env], backend: SandboxBackend) -> None:
    assert faults_of(kind, backend) == []
