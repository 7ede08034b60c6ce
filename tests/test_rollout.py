"""The rollout loop: order, independence of workers, replays after failures, and misbehaving agents."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from guess_env import TASKS, Backend, GuessEnv, NarrowingEnv, halve

from envkit import (
    ActionResult,
    ContractError,
    EpisodeKey,
    Outcome,
    Rollouts,
    Session,
    Task,
    Trajectory,
    Turn,
    UsageError,
)
from envkit.agents.scripted import ScriptedAgent, noop
from envkit.env.checks import check
from envkit.errors import AgentError, BrokenTask, ConfigError, ModelUnavailable, SandboxError, Stopped
from envkit.rollout import raised, reset_seed
from envkit.runtime.store import Journal, read_lines, trajectory_from_json, trajectory_to_json

HALVING = ScriptedAgent("halving", lambda key, turn, observation: halve(observation))


def keys(groups: int = 3, rows: int = 4, seed: int = 0) -> list[EpisodeKey]:
    return [
        EpisodeKey(seed, 0, group, row, TASKS[group % len(TASKS)].id)
        for group in range(groups)
        for row in range(rows)
    ]


def play(
    agent: ScriptedAgent,
    wanted: Sequence[EpisodeKey],
    *,
    workers: int | None = 2,
    backend: Backend | None = None,
    faults: Sequence[str] = (),
    **options: Any,
) -> list[Trajectory]:
    backend = backend or Backend()
    with Rollouts(
        lambda: GuessEnv(sandbox=backend, faults=faults, **{"max_turns": 8, **options}), workers=workers
    ) as rollouts:
        played = rollouts.play(agent, wanted)
    assert not backend.open, "sandboxes are left behind"
    return played


def test_episodes_of_several_environments_are_played_together() -> None:
    class Other(GuessEnv):
        id, system = "other", "Guess otherwise."

    systems: list[str] = []

    class Listening(ScriptedAgent):
        def start(self, key: EpisodeKey, system: str) -> Any:
            systems.append(system)
            return super().start(key, system)

    def made(kind: type[GuessEnv], task: Task) -> Any:
        return lambda: kind(sandbox=backend, tasks=[task], max_turns=8)

    backend, (one, other) = Backend(), TASKS[:2]
    agent = Listening("halving", lambda key, turn, observation: halve(observation))
    with Rollouts({one.id: made(GuessEnv, one), other.id: made(Other, other)}) as rollouts:
        for _ in range(2):
            played = rollouts.play(agent, keys(2, 2))
            assert [t.env for t in played] == [GuessEnv.id] * 2 + ["other"] * 2
            assert all(t.solved for t in played)
        with pytest.raises(KeyError, match="nobody"):
            rollouts.play(agent, [replace(keys(1, 1)[0], task="nobody")])
    assert systems == ([GuessEnv.system] * 2 + ["Guess otherwise."] * 2) * 2
    assert not backend.open


def test_an_environment_that_cannot_be_closed_does_not_keep_others_open() -> None:
    class Stuck(GuessEnv):
        def dispose(self) -> None:
            closed.append(self)
            if len(closed) == 1:
                raise SandboxError("stuck")

    closed: list[Any] = []
    with pytest.raises(SandboxError, match="stuck"), Rollouts(lambda: Stuck(sandbox=Backend())) as rollouts:
        rollouts.play(HALVING, keys(3, 1))
    assert len(set(map(id, closed))) == 3


def test_trajectories_are_in_the_order_of_their_keys() -> None:
    wanted = keys()[::-1]
    played = play(HALVING, wanted)
    assert [trajectory.key for trajectory in played] == wanted
    assert all(trajectory.solved for trajectory in played)
    assert {len(trajectory.steps) for trajectory in played} != {1}, "episodes of different lengths"


def test_a_trajectory_records_the_episode() -> None:
    (played,) = play(HALVING, keys(1, 1))
    observations = [step.observation for step in played.steps]
    assert observations[0] == "0..9"
    assert [step.turn.text for step in played.steps] == [halve(seen) for seen in observations]
    assert [step.reward for step in played.steps] == [0.0] * (len(played.steps) - 1) + [1.0]
    assert (played.env, played.agent, played.outcome) == ("guess", "halving", Outcome.SOLVED)
    assert played.scores["right"] == 1.0
    assert played.info == {"verdict": "PASS", "evidence": {}, "rewards": {"right": 1.0}}


def test_the_number_of_workers_does_not_change_results() -> None:
    one, four, default = (play(HALVING, keys(4, 4), workers=workers) for workers in (1, 4, None))
    assert one == four == default


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (5, 5), (64, 16)])
def test_by_default_every_core_has_a_worker(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.rollout.os.sched_getaffinity", lambda pid: {*range(cores)})
    at_work, together = threading.Lock(), threading.Event()
    working: list[int] = [0, 0]

    class Meeting(GuessEnv):
        def setup(self, task: Task) -> str:
            with at_work:
                working[0] += 1
                working[1] = max(working)
                if working[0] == workers:
                    together.set()
            together.wait(30)
            time.sleep(0.05)  # time in which one worker more would come, too
            with at_work:
                working[0] -= 1
            return super().setup(task)

    with Rollouts(lambda: Meeting(sandbox=Backend(), max_turns=8)) as rollouts:
        assert all(played.solved for played in rollouts.play(HALVING, keys(workers + 2, 1)))
    assert working == [0, workers]


def test_members_of_a_group_get_the_same_inputs_and_groups_differ() -> None:
    played = play(HALVING, [replace(key, task="below-90") for key in keys(6, 3)])
    groups = [played[start : start + 3] for start in range(0, len(played), 3)]
    assert all(group[0].steps == other.steps for group in groups for other in group)
    assert len({group[0].steps for group in groups}) > 1


def test_reset_seeds_differ_between_visits_and_not_between_rows() -> None:
    visits = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**20 - 1, 2**24 - 1, 2**18 - 1)]
    seeds = [reset_seed(EpisodeKey(*visit, row=row, task="t")) for visit in visits for row in (0, 1)]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == len(visits)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_environments_are_reused() -> None:
    made: list[GuessEnv] = []

    def make() -> GuessEnv:
        made.append(GuessEnv(max_turns=8))
        return made[-1]

    with Rollouts(make) as rollouts:
        first = rollouts.play(HALVING, keys(1, 3))
        again = rollouts.play(HALVING, keys(1, 2))
    assert len(made) == 3
    assert again == first[:2]


def test_no_keys_give_no_episodes() -> None:
    assert play(HALVING, []) == []


@pytest.mark.parametrize("place", ["setup", "4", "check"])
def test_an_episode_whose_sandbox_fails_once_is_replayed(place: str) -> None:
    wanted = keys(1, 1)
    assert play(HALVING, wanted, faults=[place]) == play(HALVING, wanted)


def test_a_replay_repeats_the_actions_in_a_fresh_sandbox() -> None:
    actions = ["0", "boom", "quit"]
    agent = ScriptedAgent("fixed", lambda key, turn, observation: actions[turn])
    backend = Backend()
    (played,) = play(agent, [EpisodeKey(1, 0, 0, 0, "below-90")], backend=backend, faults=["boom"])
    assert backend.made == 2
    assert [step.turn.text for step in played.steps] == actions
    assert [step.observation for step in played.steps] == ["0..89", "1..89", "Say a number, such as: 7"]
    assert (played.outcome, played.info["verdict"]) == (Outcome.FAILED, "FAIL")


def test_a_failed_episode_gives_back_what_its_turns_were_paid() -> None:
    actions = ["3", "boom"]
    agent = ScriptedAgent("fixed", lambda key, turn, observation: actions[turn])
    with Rollouts(lambda: NarrowingEnv(sandbox=Backend(), faults=["boom", "boom"])) as rollouts:
        (played,) = rollouts.play(agent, [EpisodeKey(1, 0, 0, 0, "below-90")])
    paid, back = (step.reward for step in played.steps)
    assert paid > 0
    assert (back, played.outcome, played.reward) == (-paid, Outcome.FAILED, 0.0)


def test_breaking_an_environment_saves_no_costs() -> None:
    class Costly(GuessEnv):
        turn_cost, reward_range = 0.1, (-0.5, 1.0)

    agent = ScriptedAgent("fixed", lambda key, turn, observation: ["what?", "boom"][turn])
    with Rollouts(lambda: Costly(sandbox=Backend(), faults=["boom", "boom"])) as rollouts:
        (played,) = rollouts.play(agent, [EpisodeKey(1, 0, 0, 0, "below-90")])
    assert (played.reward, played.steps[0].reward, played.outcome) == (-0.5, -0.1, Outcome.FAILED)
    assert played.info["rewards"] == {"turn_cost": -0.1, "limit": -0.4}


@pytest.mark.parametrize("second", ["boom", "quit"])
def test_an_episode_whose_sandbox_fails_twice_counts_as_failed(second: str) -> None:
    """The second failure may be at the same turn or at a later one."""
    actions = ["0", "boom", "quit"]
    agent = ScriptedAgent("fixed", lambda key, turn, observation: actions[turn])
    (played,) = play(agent, [EpisodeKey(1, 0, 0, 0, "below-90")], faults=["boom", second])
    assert (played.outcome, played.reward) == (Outcome.FAILED, 0.0)
    assert played.info == {"verdict": "FAIL", "error": f"broke twice: broken at boom; broken at {second}"}
    assert [step.turn.text for step in played.steps] == actions[: actions.index(second) + 1]


def test_a_broken_task_is_void_without_a_replay() -> None:
    class Broken(GuessEnv):
        def setup(self, task: Task) -> str:
            self.asked = 0
            return super().setup(task)

        @check(weight=0)
        def reference(self) -> bool:
            self.asked += 1
            raise BrokenTask(f"asked {self.asked} times")

    backend = Backend()
    with Rollouts(lambda: Broken(sandbox=backend, max_turns=8)) as rollouts:
        (played,) = rollouts.play(HALVING, keys(1, 1))
    assert (played.outcome, played.info) == (Outcome.VOID, {"error": "asked 1 times"})
    assert (backend.made, backend.open) == (1, set())


def test_a_sandbox_failure_does_not_affect_other_episodes() -> None:
    agent = ScriptedAgent(
        "mixed", lambda key, turn, observation: "boom" if (key.row, turn) == (1, 0) else "quit"
    )
    played = play(agent, keys(1, 3), faults=["boom", "boom"])
    assert ["error" in trajectory.info for trajectory in played] == [False, True, False]


def test_a_sandbox_that_cannot_be_made_is_void() -> None:
    backend = Backend(breaks=2)
    first, second = play(HALVING, keys(2, 1), workers=1, backend=backend)
    assert (first.outcome, first.steps, first.info) == (Outcome.VOID, (), {"error": "no sandbox"})
    assert second.solved


def test_a_reset_that_fails_once_is_retried() -> None:
    assert all(played.solved for played in play(HALVING, keys(1, 2), backend=Backend(breaks=1)))


def test_an_episode_is_void_if_no_sandbox_can_be_made_for_its_replay() -> None:
    """The candidate is not responsible for the missing second sandbox."""
    backend = Backend()

    def say(key: EpisodeKey, turn: int, observation: str) -> str:
        backend.breaks = 2
        return "boom"

    (played,) = play(ScriptedAgent("breaker", say), keys(1, 1), backend=backend, faults=["boom"])
    assert (played.outcome, played.info) == (Outcome.VOID, {"error": "no sandbox"})


def test_an_unknown_task_raises_and_leaves_no_sandbox_open() -> None:
    with pytest.raises(UsageError, match="no task 'nowhere'"):
        play(HALVING, [*keys(1, 2), EpisodeKey(0, 0, 0, 0, "nowhere")])


class Buggy(GuessEnv):
    """Raises at one place: ``setup``, ``apply`` or ``right`` (a check), in the task ``below-10`` only.

    Args:
        place: where.
        error: what.
        times: how often; later it works.
    """

    def __init__(self, place: str, error: BaseException, times: int = 99, **options: Any) -> None:
        super().__init__(**options)
        self.place, self.error, self.times = place, error, times

    def raise_at(self, place: str) -> None:
        if self.task.id == "below-10" and place == self.place and self.times:
            self.times -= 1
            raise self.error

    def setup(self, task: Task) -> str:
        self.raise_at("setup")
        return super().setup(task)

    def apply(self, action: str) -> ActionResult:
        self.raise_at("apply")
        return super().apply(action)

    @check(weight=0)
    def sound(self) -> bool:
        self.raise_at("check")
        return True


def play_buggy(place: str, error: BaseException, times: int = 99) -> list[Trajectory]:
    """Play two episodes of each task; each has its own environment with the bug."""
    backend = Backend()
    with Rollouts(lambda: Buggy(place, error, times, sandbox=backend, max_turns=8)) as rollouts:
        played = rollouts.play(HALVING, keys(3, 2))
    assert not backend.open, "sandboxes are left behind"
    return played


BUGS = [
    ZeroDivisionError("bug"),
    RecursionError("deep"),
    MemoryError("full"),
    ContractError("no"),
    UsageError("no"),
]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_what_an_action_raises_fails_its_episode_and_the_others_go_on(error: Exception) -> None:
    first, second, *others = play_buggy("apply", error)
    assert all(other.solved and not raised(other) for other in others)
    said = f"{type(error).__name__}: {error}"
    for failed in (first, second):
        assert (failed.outcome, failed.reward, failed.info["verdict"]) == (Outcome.FAILED, 0.0, "FAIL")
        assert failed.info["error"] == f"broke twice: {said}; {said}"
        trace = str(failed.info["trace"])
        assert trace.startswith("Traceback")
        assert trace.endswith(said)
        assert "self.raise_at" in trace
        assert raised(failed)


def test_what_a_check_raises_is_recorded_with_its_own_traceback() -> None:
    failed, _, *others = play_buggy("check", KeyError("tea"))
    assert all(other.solved for other in others)
    assert (failed.outcome, failed.reward) == (Outcome.FAILED, 0.0)
    trace = str(failed.info["trace"])
    assert trace.endswith("\nKeyError: 'tea'")
    assert "in sound" in trace
    assert "check sound raised KeyError" in str(failed.info["error"])


@pytest.mark.parametrize("error", BUGS[:4], ids=lambda error: type(error).__name__)
def test_what_setup_raises_makes_its_episode_void(error: Exception) -> None:
    first, second, *others = play_buggy("setup", error)
    assert all(other.solved for other in others)
    for void in (first, second):
        assert (void.outcome, void.steps) == (Outcome.VOID, ())
        assert void.info["error"] == f"{type(error).__name__}: {error}"
        assert raised(void)


@pytest.mark.parametrize("place", ["setup", "apply", "check"])
def test_a_bug_that_does_not_happen_again_costs_no_episode_but_is_recorded(place: str) -> None:
    first, second, *others = play_buggy(place, ZeroDivisionError("bug"), times=1)
    assert all(played.solved for played in (first, second, *others))
    assert raised(first)
    assert raised(second)
    assert not any(map(raised, others))


class Failing(GuessEnv):
    """Raises one error after the other at each place: ``setup``, ``check`` or an action.

    Args:
        errors: by place; ``None`` raises nothing.
    """

    def __init__(self, errors: Mapping[str, Sequence[Exception | None]], **options: Any) -> None:
        super().__init__(**options)
        self.errors = {place: [*those] for place, those in errors.items()}

    def _break_at(self, place: str) -> None:
        if self.errors.get(place) and (error := self.errors[place].pop(0)) is not None:
            raise error


def play_failing(errors: Mapping[str, Sequence[Exception | None]], actions: Sequence[str]) -> Trajectory:
    """Play one episode with these actions; "give up on me" is an `AgentError`."""
    agent = FailsSometimes("fixed", lambda key, turn, observation: actions[turn])
    with Rollouts(lambda: Failing(errors, sandbox=Backend(), max_turns=8)) as rollouts:
        (played,) = rollouts.play(agent, [EpisodeKey(7, 0, 0, 0, "below-90")])
    return played


BUG = ZeroDivisionError("bug")


@pytest.mark.parametrize(
    ("errors", "actions", "last"),
    [
        ({"setup": [BUG, SandboxError("no sandbox")]}, [], "no sandbox"),
        ({"setup": [None, *[SandboxError("no sandbox")] * 2], "0": [BUG]}, ["0"], "no sandbox"),
        ({"0": [BUG]}, ["0", "give up on me"], "asleep"),
        ({"0": [BUG], "1": [BrokenTask("no reference")]}, ["0", "1"], "no reference"),
        ({"0": [BUG], "1": [ModelUnavailable("no judge")]}, ["0", "1"], "no judge"),
    ],
    ids=["reset", "repeat", "agent", "task", "judge"],
)
def test_a_bug_before_what_makes_an_episode_void_is_recorded(
    errors: Mapping[str, Sequence[Exception | None]], actions: Sequence[str], last: str
) -> None:
    void = play_failing(errors, actions)
    assert (void.outcome, void.info["error"]) == (Outcome.VOID, last)
    assert str(void.info["trace"]).endswith("ZeroDivisionError: bug")


def test_a_reset_that_is_tried_again_leaves_the_episode_its_repeat() -> None:
    played = play_failing(
        {"setup": [BUG, None, SandboxError("slow")], "0": [SandboxError("b")]}, ["0", "quit"]
    )
    assert (played.outcome, len(played.steps)) == (Outcome.FAILED, 2)
    assert "error" not in played.info
    assert str(played.info["trace"]).endswith("ZeroDivisionError: bug")


def test_a_record_with_a_trace_is_bounded_and_survives_the_journal(tmp_path: Any) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    for error in (ValueError("x" * 10**6 + "\ud800"), Mute()):
        failed, *_ = play_buggy("apply", error)
        assert len(str(failed.info["trace"])) <= 4_000
        assert len(str(failed.info["error"])) <= 1_200
        with Journal(tmp_path / f"{type(error).__name__}.jsonl") as journal:
            journal.append(trajectory_to_json(failed))
        [record] = read_lines(journal.path)
        assert trajectory_from_json(record) == failed


@pytest.mark.parametrize("place", ["setup", "apply", "check"])
@pytest.mark.parametrize("error", [ConfigError("bad setting"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_errors_of_the_setup_and_interrupts_still_end_the_run(place: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        play_buggy(place, error)


def test_an_error_is_raised_after_running_environments_have_finished() -> None:
    at_work, kept = threading.Event(), threading.Event()

    class Slow(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            if self.task.id == "below-10":
                at_work.wait()
                raise ConfigError("bad setting")
            at_work.set()
            time.sleep(0.2)  # time in which a loop that does not wait would close this episode
            if self.sandbox.read("kept", 10) == b"kept":
                kept.set()
            return super().apply(action)

        def setup(self, task: Task) -> str:
            self.sandbox.write("kept", b"kept")
            return super().setup(task)

    with Rollouts(Slow, workers=2) as rollouts, pytest.raises(ConfigError, match="bad setting"):
        rollouts.play(HALVING, keys(2, 1))
    assert kept.is_set()


class AnswersNothing(ScriptedAgent):
    def collect(self) -> Sequence[tuple[Session, Turn]]:
        return []


class AnswersUnknownSession(ScriptedAgent):
    def collect(self) -> Sequence[tuple[Session, Turn]]:
        return [(self.start(keys(1, 1)[0], "Play."), Turn("quit"))]


class AnswersTwice(ScriptedAgent):
    def collect(self) -> Sequence[tuple[Session, Turn]]:
        return [*super().collect()] * 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (AnswersNothing, "answers none of 2"),
        (AnswersUnknownSession, "waits for no answer"),
        (AnswersTwice, "waits for no answer"),
    ],
)
def test_an_agent_that_breaks_the_protocol_raises_a_contract_error(
    kind: type[ScriptedAgent], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        play(kind("bad", lambda key, turn, observation: "quit"), keys(1, 2))


def test_an_agent_may_answer_one_session_at_a_time() -> None:
    class OneByOne(ScriptedAgent):
        def collect(self) -> Sequence[tuple[Session, Turn]]:
            first, self._waiting = self._waiting[:1], self._waiting[1:]
            turn = [(session, Turn(halve(seen))) for session, seen in first]
            return turn

    assert play(OneByOne("halving", lambda *_: ""), keys()) == play(HALVING, keys())


def test_environments_step_while_the_agent_still_answers_others() -> None:
    moved = threading.Event()

    class Moving(GuessEnv):
        def apply(self, action: str) -> ActionResult:
            moved.set()
            return super().apply(action)

    class Slow(ScriptedAgent):
        def collect(self) -> Generator[tuple[Session, Turn]]:
            for answer in super().collect():
                yield answer
                assert moved.wait(10)

    backend, agent = Backend(), Slow("halving", lambda key, turn, observation: halve(observation))
    with Rollouts(lambda: Moving(sandbox=backend, max_turns=8)) as rollouts:
        assert [each.outcome for each in rollouts.play(agent, keys())] == [Outcome.SOLVED] * 12


class FailsSometimes(ScriptedAgent):
    """Returns an error instead of the answer 'give up on me'."""

    def collect(self) -> Sequence[tuple[Session, Turn | AgentError]]:
        return [
            (session, AgentError("asleep") if turn.text == "give up on me" else turn)
            for session, turn in super().collect()
        ]


def test_an_episode_whose_agent_fails_is_void_and_the_others_continue() -> None:
    agent = FailsSometimes(
        "tired",
        lambda key, turn, seen: "give up on me" if (key.row, turn) == (1, 1) else "0" if turn < 2 else "quit",
    )
    wanted = [EpisodeKey(7, 0, 0, row, "below-90") for row in range(3)]
    backend = Backend()
    first, void, last = play(agent, wanted, backend=backend)
    assert (void.outcome, void.info, void.scores) == (Outcome.VOID, {"error": "asleep"}, {})
    assert [step.turn.text for step in void.steps] == ["0"]
    assert void.reward == 0.0
    assert [each.outcome for each in (first, last)] == [Outcome.FAILED] * 2
    assert [step.turn.text for step in last.steps] == ["0", "0", "quit"]
    assert backend.made == 3


def test_the_sandbox_of_a_void_episode_is_closed_at_once() -> None:
    backend = Backend()

    class Watching(FailsSometimes):
        def collect(self) -> Sequence[tuple[Session, Turn | AgentError]]:
            open_at_turn.append(len(backend.open))
            return super().collect()

    open_at_turn: list[int] = []
    agent = Watching("tired", lambda key, turn, seen: "give up on me" if key.row else ["0", "quit"][turn])
    play(agent, [EpisodeKey(7, 0, 0, row, "below-90") for row in range(2)], backend=backend)
    assert open_at_turn == [2, 1]


def test_a_noop_agent_earns_no_reward() -> None:
    assert {played.reward for played in play(noop("quit"), keys())} == {0.0}


def test_a_stop_request_ends_rollouts_before_the_next_turn() -> None:
    backend, turns = Backend(), list[str]()

    def answer(key: EpisodeKey, turn: int, observation: str) -> str:
        turns.append(key.task)
        return "200"  # never right, so that only the turn budget would end the episode

    with Rollouts(
        lambda: GuessEnv(sandbox=backend, max_turns=8), should_stop=lambda: len(turns) >= 13
    ) as rollouts:
        ended: list[Trajectory] = []
        with pytest.raises(Stopped, match="stopped by the user"):
            rollouts.play(ScriptedAgent("slow", answer), keys(), on_done=ended.append)
        assert len(turns) <= 13 + 12  # the turns that were asked for together with the 13th
        assert not ended


@pytest.mark.parametrize("workers", [1, 4])
def test_a_check_that_raises_ends_its_episode_and_not_the_run(workers: int) -> None:
    class Fragile(GuessEnv):
        @check()
        def right(self) -> bool:
            if self.task.id == "below-10":
                raise KeyError("tea")
            return super().right()

    backend = Backend()
    with Rollouts(lambda: Fragile(sandbox=backend, max_turns=8), workers=workers) as rollouts:
        played = rollouts.play(HALVING, keys())
    failed = [each for each in played if each.key.task == "below-10"]
    others = [each for each in played if each.key.task != "below-10"]
    assert {each.outcome for each in failed} == {Outcome.FAILED}
    assert {each.outcome for each in others} == {Outcome.SOLVED}
    found = str(failed[0].info["error"])
    assert found.startswith(
        "broke twice: environment guess, task below-10: check right raised KeyError: 'tea'"
    )
    assert not backend.open


@pytest.mark.parametrize("breaks", ["setup", "apply"])
def test_secrets_in_errors_stay_out_of_what_is_kept(breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Telling(GuessEnv):
        secrets = ("ENVKIT_TEST_KEY",)

        def setup(self, task: Task) -> str:
            return super().setup(task) + (self.fail() if breaks == "setup" else "")

        def apply(self, action: str) -> ActionResult:
            return ActionResult(self.fail())

        def fail(self) -> str:
            raise RuntimeError(f"401 for ?key={self.secret('ENVKIT_TEST_KEY')}")

    monkeypatch.setenv("ENVKIT_TEST_KEY", "canary-123")
    with Rollouts(lambda: Telling(sandbox=Backend())) as rollouts:
        (played,) = rollouts.play(HALVING, keys(1, 1))
    kept = repr(trajectory_to_json(played))
    assert "401 for ?key=[ENVKIT_TEST_KEY]" in kept
    assert "canary" not in kept
