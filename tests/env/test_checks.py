"""Finding, running and combining checks."""

from __future__ import annotations

from typing import Any

import pytest

from envkit.env.checks import Check, check, find_checks, run_checks, run_turn_checks
from envkit.env.grade import Grade
from envkit.env.submission import SubmissionRejected
from envkit.errors import CheckError, ConfigError, ContractError, SandboxError, TooLargeError, UsageError
from envkit.types import Verdict


def score_of(*results: object, weights: tuple[float, ...] = (), gates: tuple[int, ...] = ()):
    """Return the combined score of checks that return these results."""
    weights = weights or (1.0,) * len(results)
    members = {
        f"check{i}": check(weight=weights[i], gate=i in gates)(lambda self, result=result: result)
        for i, result in enumerate(results)
    }
    made = type("Made", (), members)
    return run_checks(made(), find_checks(made))


def grade(verdict: Verdict) -> Grade:
    return Grade(verdict, "because")


def test_checks_are_found_base_class_first_in_order_of_definition() -> None:
    class Base:
        @check()
        def second_by_name(self) -> bool:
            return True

        @check(weight=2, gate=True)
        def first_by_name(self) -> bool:
            return True

    class Derived(Base):
        @check()
        def own(self) -> bool:
            return True

        @check(weight=5)
        def second_by_name(self) -> bool:
            return False

    assert find_checks(Derived) == (
        Check("second_by_name", 5, False),
        Check("first_by_name", 2, True),
        Check("own", 1, False),
    )


class OneCheck:
    @check()
    def right(self) -> bool:
        return True


def test_an_override_without_the_decorator_is_refused() -> None:
    class Derived(OneCheck):
        def right(self) -> bool:
            return False

    said = "Derived.right replaces a check .* @check; mark it, or drop the check with right = None"
    with pytest.raises(ContractError, match=said):
        find_checks(Derived)


def test_none_drops_a_check_and_frees_its_name() -> None:
    class Without(OneCheck):
        right = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    class Helped(Without):
        def right(self) -> bool:  # type: ignore[override]
            return True

    class Again(Helped):
        @check(weight=2)
        def right(self) -> bool:
            return True

    assert find_checks(Without) == find_checks(Helped) == ()
    assert find_checks(Again) == (Check("right", 2, False),)


def test_a_class_between_that_lacks_the_decorator_does_not_matter() -> None:
    class Mixin:
        def right(self) -> bool:
            return True

    class Derived(Mixin, OneCheck):
        @check(weight=3)
        def right(self) -> bool:
            return super().right()

    assert find_checks(Derived) == (Check("right", 3, False),)


def test_the_reward_is_the_weighted_mean_of_scores() -> None:
    score = score_of(1.0, 0.5, False, weights=(1, 2, 1))
    assert score.reward == 0.5
    assert score.scores == {"check0": 1.0, "check1": 0.5, "check2": 0.0}
    assert not score.solved
    assert score.verdict is Verdict.FAIL


def test_full_scores_count_as_solved() -> None:
    score = score_of(True, 1, grade(Verdict.PASS))
    assert (score.reward, score.solved, score.verdict) == (1.0, True, Verdict.PASS)
    assert score.evidence == {"check2": "because"}


def test_a_grade_may_have_partial_credit() -> None:
    score = score_of(Grade(score=0.5, evidence="3 of 6"), True)
    assert (score.reward, score.solved, score.verdict) == (0.75, False, Verdict.FAIL)
    assert score.evidence == {"check0": "3 of 6"}


def test_only_required_checks_decide_whether_a_task_is_solved() -> None:
    class Made:
        @check()
        def right(self) -> bool:
            return True

        @check(required=False)
        def short(self) -> float:
            return 0.5

        @check(weight=0)
        def measured(self) -> bool:
            return False

    score = run_checks(Made(), find_checks(Made))
    assert (score.reward, score.solved, score.verdict) == (0.75, True, Verdict.PASS)

    class Strict(Made):
        @check(weight=0, required=True)
        def measured(self) -> bool:
            return False

    score = run_checks(Strict(), find_checks(Strict))
    assert (score.reward, score.solved, score.withheld, score.verdict) == (0.75, False, False, Verdict.FAIL)


@pytest.mark.parametrize("options", [{"held_out": True, "required": True}, {"gate": True, "required": False}])
def test_required_must_fit_the_other_options(options: Any) -> None:
    with pytest.raises(ContractError):
        check(**options)


def test_a_failed_gate_sets_the_reward_to_zero() -> None:
    for results, gate in (((True, 0.9), 1), ((0.9, 0.5), 0)):
        score = score_of(*results, gates=(gate,))
        assert (score.reward, score.solved) == (0.0, False)


def test_a_check_with_weight_zero_does_not_affect_the_reward() -> None:
    score = score_of(True, 0.2, weights=(1, 0))
    assert (score.reward, score.solved) == (1.0, True)
    assert score.scores["check1"] == 0.2


class Hacked:
    """Pays the full reward although the held-out check fails."""

    half = 1.0

    @check()
    def pays(self) -> float:
        return self.half

    @check(held_out=True)
    def is_done(self) -> Grade:
        return grade(Verdict.FAIL)


def test_a_held_out_check_runs_on_request_and_does_not_affect_the_reward() -> None:
    quiet = run_checks(Hacked(), find_checks(Hacked))
    assert (quiet.reward, quiet.solved, quiet.scores, quiet.held_out) == (1.0, True, {"pays": 1.0}, {})
    asked = run_checks(Hacked(), find_checks(Hacked), held_out=True)
    assert (asked.reward, asked.solved, asked.scores, asked.held_out) == (
        1.0,
        True,
        {"pays": 1.0},
        {"is_done": 0.0},
    )
    assert asked.evidence == {"is_done": "because"}


def test_held_out_checks_are_skipped_without_the_full_reward() -> None:
    env = Hacked()
    env.half = 0.5
    assert run_checks(env, find_checks(Hacked), held_out=True).held_out == {}


class Progress:
    """Half of the reward is progress, which each turn pays; the rest and a gate come last."""

    done, right, legal = 0.5, True, True

    @check(each_turn=True)
    def progress(self) -> float:
        return self.done

    @check()
    def is_right(self) -> bool:
        return self.right

    @check(weight=0, gate=True)
    def is_legal(self) -> bool:
        return self.legal


def test_the_checks_of_each_turn_give_their_parts_of_the_reward() -> None:
    env, checks = Progress(), find_checks(Progress)
    assert run_turn_checks(env, checks) == {"progress": 0.25}
    assert run_checks(env, checks).parts == {"progress": 0.25, "is_right": 0.5}
    env.legal = False
    assert run_checks(env, checks).parts == {"progress": 0.0, "is_right": 0.0}


@pytest.mark.parametrize("settings", [{"held_out": True}, {"weight": 0}])
def test_a_check_of_each_turn_must_pay(settings: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="expected a weight > 0, and not held_out"):
        check(each_turn=True, **settings)


def test_equal_weights_add_up_to_one() -> None:
    assert score_of(*[True] * 7).reward == 1.0


def test_a_held_out_check_cannot_be_a_gate() -> None:
    with pytest.raises(ContractError, match="cannot be a gate"):
        check(gate=True, held_out=True)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_tampering_takes_precedence_over_failing(order: tuple[int, int]) -> None:
    results = (grade(Verdict.TAMPERED), grade(Verdict.FAIL))
    score = score_of(*(results[i] for i in order))
    assert (score.reward, score.verdict) == (0.0, Verdict.TAMPERED)


def test_tampering_sets_the_reward_to_zero() -> None:
    for weights in ((1, 0), (1, 1)):
        score = score_of(True, grade(Verdict.TAMPERED), weights=weights)
        assert (score.reward, score.solved, score.verdict) == (0.0, False, Verdict.TAMPERED)


def test_a_held_out_check_that_returns_none_is_skipped() -> None:
    class NothingHeldOut(Hacked):
        @check(held_out=True)
        def is_done(self) -> None:  # type: ignore[override]
            return None

    asked = run_checks(NothingHeldOut(), find_checks(NothingHeldOut), held_out=True)
    assert (asked.reward, asked.solved, asked.held_out, asked.evidence) == (1.0, True, {}, {})


def score_raising(error: Exception):
    """Return the combined score of a single check that raises."""

    class Reads:
        @check()
        def reads(self) -> bool:
            raise error

    return run_checks(Reads(), find_checks(Reads))


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), UsageError("a link"), TooLargeError("large")])
def test_an_unreadable_file_is_a_failure(error: Exception) -> None:
    score = score_raising(error)
    assert (score.reward, score.solved, score.verdict) == (0.0, False, Verdict.FAIL)
    assert score.evidence == {"reads": str(error)}


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.TAMPERED])
def test_a_rejected_submission_gets_the_verdict_of_its_rejection(verdict: Verdict) -> None:
    score = score_raising(SubmissionRejected(verdict, "because"))
    assert (score.reward, score.verdict, score.evidence) == (0.0, verdict, {"reads": "because"})


@pytest.mark.parametrize("error", [ConfigError("no pytest"), ContractError("no tests")])
def test_errors_that_no_candidate_can_cause_are_raised(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        score_raising(error)


def test_a_check_that_raises_is_named() -> None:
    with pytest.raises(CheckError, match="check reads raised ValueError: a bug") as caught:
        score_raising(ValueError("a bug"))
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_infrastructure_verdict_raises_a_sandbox_error() -> None:
    with pytest.raises(SandboxError, match="because"):
        score_of(True, grade(Verdict.INFRA))


@pytest.mark.parametrize("result", [float("nan"), 1.1, -0.1, float("inf"), "yes", None, [1]])
def test_a_result_that_is_not_a_score_is_refused(result: object) -> None:
    with pytest.raises(ContractError, match="check0 returned"):
        score_of(result)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_invalid_weights_are_refused(weight: float) -> None:
    with pytest.raises(ContractError, match="weight"):
        check(weight=weight)


def test_checks_without_any_weight_are_refused() -> None:
    with pytest.raises(ContractError, match="no check with weight"):
        score_of(True, weights=(0,))


def test_weaknesses_of_grades_are_kept() -> None:
    weak = Grade(Verdict.PASS, "because", weakness="seen from inside")
    assert score_of(weak, grade(Verdict.PASS)).weaknesses == {"check0": "seen from inside"}
