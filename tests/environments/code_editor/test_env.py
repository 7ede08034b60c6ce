"""The code editor environment: rewards, cheating, and hidden information."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, final

import golden
import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envkit import EpisodeKey, Outcome, Rollouts, Sandbox, SandboxBackend, SandboxError, Task, TaskFileError
from envkit.agents.scripted import ScriptedAgent, noop, oracle
from envkit.env import registry
from envkit.env.taskfile import write_tasks
from envkit.environments.code_editor import CodeEditorEnv, oracle_action, starter_tasks
from envkit.environments.code_editor.actions import replace_text_message
from envkit.environments.code_editor.env import FRESH_CALLS, grader_for
from envkit.environments.code_editor.examples import RUN_LIMITS
from envkit.environments.code_editor.graders.base import REFERENCE_LIMITS
from envkit.environments.code_editor.graders.calls import CallGrader
from envkit.environments.code_editor.graders.oracle import GRADING_LIMITS, grade
from envkit.environments.code_editor.inputs.call import Call
from envkit.runtime.store import trajectory_to_json
from envkit.sandbox import Limits
from envkit.types import Verdict

Tasks = Mapping[str, Task]
#: Limits under which a program that sleeps ends soon.
HASTY = dataclasses.replace(GRADING_LIMITS, wall_s=1)
NAMES = [str(task.metadata["function"]) for task in starter_tasks()]


@final
class Counted(SandboxBackend):
    """Counts the sandboxes it makes; those with a number in ``broken`` fail."""

    name = "counted"
    isolated = True

    def __init__(self, inner: SandboxBackend, broken: frozenset[int] = frozenset()) -> None:
        self.inner = inner
        self.broken = broken
        self.asked = 0

    def available(self) -> str | None:
        return self.inner.available()

    def create(self) -> Sandbox:
        self.asked += 1
        if self.asked in self.broken:
            raise SandboxError(f"number {self.asked} cannot be made")
        return self.inner.create()


@pytest.fixture
def env(backend: SandboxBackend, starters: Tasks) -> Iterator[CodeEditorEnv]:
    made = CodeEditorEnv(tasks=list(starters.values()), sandbox=backend)
    yield made
    made.close()


def test_golden_trajectories(backend: SandboxBackend, starters: Tasks) -> None:
    """The agent views code, gives several wrong answers and solves every other task."""
    tasks = [*starters.values()]

    def say(key: EpisodeKey, turn: int, observation: str) -> str:
        right = oracle_action(tasks[key.group])
        return ("view", "no action", right if key.group % 2 == 0 else right.replace("return", "raise"))[turn]

    keys = [EpisodeKey(3, 0, group, 0, task.id) for group, task in enumerate(tasks)]
    with Rollouts(lambda: CodeEditorEnv(tasks=tasks, sandbox=backend)) as rollouts:
        played = rollouts.play(ScriptedAgent("scripted", say), keys)
        golden.expect("trajectories", [trajectory_to_json(each) for each in played])


def ending(env: CodeEditorEnv, *actions: str, task: str = "starter/overlap", seed: int = 5) -> dict[str, Any]:
    """Return the last ``info`` of an episode with these actions, with its reward added."""
    env.reset(seed=seed, options={"task": task})
    step: Any = None
    for action in actions:
        step = env.step(action)
    assert step[2] or step[3], "the episode has not ended"
    return {"reward": step[1], **step[4]}


def hidden_calls(task: Task, seed: int, count: int) -> list[Call]:
    grader = grader_for(task)
    assert isinstance(grader, CallGrader)
    return grader.hidden_calls(seed, count)


def solution_of(function: str, source: str, **hidden: Any) -> Task:
    """Return a task whose file is already right."""
    facts = {
        "function": function,
        "reference": source,
        "modules": [],
        "edit": {"search": "", "replace": ""},
        "policy": {"rel_tol": 1e-9, "abs_tol": 1e-12, "int_as_float": False},
    }
    return Task("own/task", "train", "", {"solution.py": source}, {"examples": []}, {**facts, **hidden})


# Gymnasium.


def test_gymnasium_makes_and_accepts_the_environment(backend: SandboxBackend) -> None:
    env = gymnasium.make("envkit/CodeEditor-v0", sandbox=backend, render_mode="ansi")
    check_env(env.unwrapped)
    observation, info = env.reset(seed=0)
    assert env.render() == observation
    assert info["task"].startswith("starter/")
    env.close()


def test_an_environment_is_made_from_a_task_file(
    tmp_path_factory: pytest.TempPathFactory, backend: SandboxBackend, starters: Tasks
) -> None:
    path = tmp_path_factory.mktemp("tasks") / "two.jsonl"
    write_tasks(path, list(starters.values())[:2], seed=0)
    assert len(registry.make("code-editor", path, backend).tasks) == 2
    assert len(registry.make("code-editor", str(path), "process").tasks) == 2
    with pytest.raises(TaskFileError, match="does not exist"):
        registry.make("code-editor", path.with_name("none.jsonl"), backend)


# Control agents.


def test_the_oracle_earns_the_full_reward_and_the_noop_agent_none(
    backend: SandboxBackend, starters: Tasks
) -> None:
    tasks = list(starters.values())
    keys = [EpisodeKey(0, 0, group, row, task.id) for group, task in enumerate(tasks) for row in range(2)]
    with Rollouts(lambda: CodeEditorEnv(tasks=tasks, sandbox=backend)) as rollouts:
        right = rollouts.play(oracle({task.id: [oracle_action(task), "submit"] for task in tasks}), keys)
        idle = rollouts.play(noop(), keys)
    assert {trajectory.key.task: trajectory.info for trajectory in right if trajectory.reward != 1.0} == {}
    assert {trajectory.key.task: trajectory.info for trajectory in idle if trajectory.reward != 0.0} == {}


@pytest.mark.parametrize("name", NAMES)
def test_each_starter_has_one_wrong_line_and_examples_that_show_it(starters: Tasks, name: str) -> None:
    task = starters[name]
    edit: Any = task.hidden["edit"]
    mutant, reference = task.files["solution.py"], str(task.hidden["reference"])
    assert mutant.replace(edit["search"], edit["replace"]) == reference != mutant
    assert (edit["search"].count("\n"), edit["replace"].count("\n")) == (0, 0)
    ours: dict[str, Any] = {}
    exec(mutant, ours)
    examples: Any = task.metadata["examples"]
    assert any(repr(attempt(item["call"], ours)) != item["value"] for item in examples)
    exec(reference, ours)
    assert [repr(eval(item["call"], ours)) for item in examples] == [item["value"] for item in examples]


def attempt(call: str, names: dict[str, Any]) -> object:
    try:
        return eval(call, names)
    except IndexError as error:
        return error


# An episode.


def test_a_repair_in_three_turns(env: CodeEditorEnv, starters: Tasks) -> None:
    seen, _ = env.reset(seed=5, options={"task": "starter/overlap"})
    assert seen.startswith("How long two spans, each from start to end, run side by side.\n")
    assert "\noverlap((0, 10), (5, 20)) -> 5\n" in seen
    assert "return max(0, start - end)" in seen
    assert seen.endswith("You have 3 turns.")
    seen, reward, terminated, truncated, _ = env.step("run")
    assert "overlap((0, 10), (5, 20)) -> 0; expected 5" in seen
    assert seen.endswith("2 turn(s) left; end with: submit")
    seen, *_ = env.step(f"{oracle_action(starters['overlap'])}\nrun")
    assert seen.count("overlap((0, 10), (5, 20)) -> 5, as expected") == 1
    seen, reward, terminated, truncated, info = env.step("submit")
    assert (seen, reward, terminated, truncated) == ("Submitted.", 1.0, True, False)
    assert (info["verdict"], info["solved"]) == ("PASS", True)


def test_an_edit_shows_what_the_examples_give_and_what_it_left_unchanged(env: CodeEditorEnv) -> None:
    env.reset(seed=5, options={"task": "starter/overlap"})
    seen, *_ = env.step("```diff\n-    return max(0, start - end)\n+    return start - end\n```")
    assert "overlap((0, 10), (5, 20)) -> -5; expected 5\n" in seen
    seen, *_ = env.step("```diff\n-    return start - end\n+    return start - end + 0\n```")
    assert "overlap((0, 10), (5, 20)) -> -5; expected 5 (unchanged)\n" in seen


def test_examples_are_compared_as_the_grader_compares(backend: SandboxBackend) -> None:
    """With tolerances and free orders, so that a right answer is not called wrong."""
    source = 'def f(x, epsilon=0.1):\n    """Half, within epsilon."""\n    return x / 2\n'
    broken = source.replace("x / 2", "x * 2")
    task = solution_of("f", source, examples=[[["3.0"], {}], [["5.0"], {}]], killers=[[["3.0"], {}]])
    shown = {"examples": [{"call": "f(3.0)", "value": "1.5"}]}
    task = dataclasses.replace(task, files={"solution.py": broken}, metadata=shown)
    env = CodeEditorEnv(tasks=[task], sandbox=backend)
    env.reset(seed=0)
    near = broken.replace("return x * 2", "return x / 2 + 0.001")
    seen, *_ = env.step(f"```python\n{near}```")
    assert "f(3.0) -> 1.501, as expected" in seen
    env.close()


def test_one_example_that_ends_the_program_does_not_hide_the_others(backend: SandboxBackend) -> None:
    source = "import os\ndef f(x):\n    return x if x == 1 else os._exit(0)\n"
    task = solution_of("f", source, examples=[], killers=[])
    shown = {"examples": [{"call": f"f({number})", "value": str(number)} for number in (1, 2)]}
    env = CodeEditorEnv(tasks=[dataclasses.replace(task, metadata=shown)], sandbox=backend)
    env.reset(seed=0)
    seen, *_ = env.step("run")
    assert "f(1) -> 1, as expected\nf(2) -> no answer: " in seen
    env.close()


def test_a_submit_behind_an_edit_counts_only_if_the_examples_hold(
    env: CodeEditorEnv, starters: Tasks
) -> None:
    wrong = "```diff\n-    return max(0, start - end)\n+    return start - end\n```\nsubmit"
    env.reset(seed=5, options={"task": "starter/overlap"})
    seen, reward, terminated, truncated, info = env.step(wrong)
    assert "Not submitted, because an example fails.\n2 turn(s) left" in seen
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert "scores" not in info
    seen, reward, terminated, *_ = env.step(f"{oracle_action(starters['overlap'])}\nsubmit")
    assert seen.endswith("as expected\nSubmitted.")
    assert (reward, terminated) == (1.0, True)
    assert ending(env, wrong, "submit")["verdict"] == "FAIL"


def test_the_last_turn_submits_whatever_the_examples_give(env: CodeEditorEnv) -> None:
    env.reset(seed=5, options={"task": "starter/overlap"})
    for _ in range(env.max_turns - 1):
        env.step("outline")
    seen, _, terminated, *_ = env.step("```python\ndef overlap(first, second):\n    return 1\n```\nsubmit")
    assert terminated
    assert "examples now" not in seen


@pytest.mark.parametrize(
    ("body", "example", "line"),
    [
        ("return x", ("f(1)", "1"), "f(1) -> 1, as expected"),
        ("return float(x)", ("f(1)", "1"), "f(1) -> 1.0; expected 1"),
        ("return True", ("f(1)", "1"), "f(1) -> True; expected 1"),
        ("return {x, 9, 5}", ("f(1)", "{1, 5, 9}"), "f(1) -> {1, 5, 9}, as expected"),
        ("yield x", ("f(x=1)", "iterator([1])"), "f(x=1) -> iterator([1]), as expected"),
        (
            "x.append(2)",
            ("f([1])", "None, and the argument becomes [1, 2]"),
            "f([1]) -> None, and the argument becomes [1, 2], as expected",
        ),
        ("x.pop()", ("f([1])", "[]"), "f([1]) -> None, and the argument becomes []; expected []"),
        ("return 1 / 0", ("f(1)", "1"), "f(1) -> raises ZeroDivisionError; expected 1"),
        (
            "import os; os._exit(0)",
            ("f(1)", "1"),
            "f(1) -> no answer: the code ended early, or took too long; exp",
        ),
        ("print('noise'); return x", ("f(1)", "1"), "f(1) -> 1, as expected"),
        ("return x * 1000", ("f('a')", "1"), f"f('a') -> '{'a' * 300}"),
    ],
)
def test_a_result_is_shown_beside_the_expected_one(
    backend: SandboxBackend, body: str, example: tuple[str, str], line: str
) -> None:
    silent = "import os\nos._exit(0)\n"  # an original that answers nothing: only the text counts
    task = solution_of("f", silent, examples=[], killers=[])
    task = dataclasses.replace(task, files={"solution.py": f"def f(x):\n    {body}\n"})
    shown = {"examples": [dict(zip(("call", "value"), example, strict=True))]}
    env = CodeEditorEnv(tasks=[dataclasses.replace(task, metadata=shown)], sandbox=backend)
    env.reset(seed=0)
    assert env.step("run")[0].startswith(line)
    env.close()


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("    return max(0, start - end)  # as it was", 0),
        ("    return max(1, start - end)", 1),
        ("    return max(0, start - end", 0),
        ("    return max(0, min(start, end) - max(start, end))", 0),
    ],
)
def test_the_edit_size_is_measured_without_affecting_the_reward(
    env: CodeEditorEnv, line: str, score: float
) -> None:
    old = "    return max(0, start - end)"
    ended = ending(env, replace_text_message(old, line), "submit")
    assert (ended["reward"], ended["scores"]["edits_a_little"]) == (0.0, score)


def test_a_used_up_turn_budget_is_graded(env: CodeEditorEnv, starters: Tasks) -> None:
    assert ending(env, oracle_action(starters["overlap"]), "view", "view")["reward"] == 1.0
    assert ending(env, "view", "view", "view")["reward"] == 0.0


def test_the_grammar_is_not_explained_if_there_is_only_one_turn(
    backend: SandboxBackend, starters: Tasks
) -> None:
    env = CodeEditorEnv(tasks=[starters["overlap"]], sandbox=backend, max_turns=1)
    seen, _ = env.reset(seed=0)
    assert seen.endswith("```")
    seen, reward, terminated, truncated, _ = env.step(oracle_action(starters["overlap"]))
    assert seen.startswith("Changed:")
    assert "turn(s) left" not in seen
    assert (reward, terminated, truncated) == (1.0, False, True)
    env.close()


def test_the_options_of_the_base_class_are_accepted(backend: SandboxBackend, starters: Tasks) -> None:
    env = CodeEditorEnv(
        tasks=list(starters.values()), sandbox=backend, max_action_bytes=7, max_observation_bytes=200
    )
    seen, _ = env.reset(seed=5)
    assert len(seen.encode()) <= 200
    assert "at most 7 bytes" in env.step("definition overlap")[0]
    env.close()


def test_the_evidence_names_a_call_that_went_wrong(env: CodeEditorEnv) -> None:
    info = ending(env, "submit")
    assert info["verdict"] == "FAIL"
    assert info["evidence"]["answers_as_original"] == "overlap((0, 10), (5, 20)) gave 0, expected 5"


# Cheating.


def test_the_answer_is_not_in_the_sandbox_or_observation(env: CodeEditorEnv, starters: Tasks) -> None:
    for name, task in starters.items():
        seen, info = env.reset(seed=0, options={"task": task.id})
        edit: Any = task.hidden["edit"]
        inside = {**env.sandbox.export(["**"], 10**6), "seen": seen.encode(), "info": repr(info).encode()}
        assert [place for place, data in inside.items() if edit["replace"].strip().encode() in data] == [], (
            name
        )


def test_knowing_the_examples_is_not_enough(env: CodeEditorEnv) -> None:
    memorized = "```python\ndef overlap(first, second):\n    return 5 if first == (0, 10) else 0\n```"
    info = ending(env, memorized, "run", "submit")
    assert (info["reward"], info["verdict"]) == (0.0, "FAIL")


def test_code_that_rewrites_its_own_file_earns_no_reward(env: CodeEditorEnv, starters: Tasks) -> None:
    right = str(starters["overlap"].hidden["reference"])
    first_line = right.split("\n")[0]
    env.reset(seed=5, options={"task": "starter/overlap"})
    seen, *_ = env.step(f"```diff\n+open('solution.py', 'w').write({right!r})\n {first_line}\n```")
    assert seen.startswith("Changed:")
    env.step("run")
    assert env.step("submit")[1] == 0.0


VANDALS = {
    "deletes it": "os.unlink('solution.py')",
    "links it elsewhere": "os.unlink('solution.py'); os.symlink('/etc/passwd', 'solution.py')",
    "makes it a folder": "os.unlink('solution.py'); os.mkdir('solution.py'); os.mkdir('solution.py/x')",
    "makes it unreadable": "os.chmod('solution.py', 0); os.chmod('.', 0)",
    "writes the answer into it": "open('solution.py', 'w').write('def overlap(a, b): return 0')",
    "fills it with nonsense": "open('solution.py', 'wb').write(b'\\xff' * 10**6)",
    "litters": "[open(f'junk{i}', 'w').close() for i in range(300)]; os.makedirs('a/' * 40)",
    "leaves a process": "os.fork() or time.sleep(60)",
}


@pytest.mark.parametrize("deed", VANDALS)
def test_edited_code_never_runs_in_the_episodes_sandbox(env: CodeEditorEnv, deed: str) -> None:
    """Only edits may change the file, because it is graded and read on the host."""
    env.reset(seed=5, options={"task": "starter/overlap"})
    first = env._app.observe().split("\n")[0]
    edit = f"```diff\n+import os, time\n+{VANDALS[deed]}\n {first}\n```"
    seen, *_ = env.step(f"{edit}\nrun")
    assert "The examples now:" in seen, seen
    before = dict(env.sandbox.export(["**"], 10**6))
    assert list(before) == ["solution.py"]
    env.step("run")
    assert dict(env.sandbox.export(["**"], 10**6)) == before


@pytest.mark.parametrize(
    "body", ["import os; os._exit(0)", "raise SystemExit", "while True: pass", "x = 'a' * 10**10"]
)
def test_code_that_ends_its_process_fails(env: CodeEditorEnv, body: str) -> None:
    action = f"```python\ndef overlap(first, second):\n    {body}\n```"
    info = ending(env, action, "submit")
    assert (info["reward"], info["verdict"]) == (0.0, "FAIL")


# Hidden inputs.


def test_hidden_calls_depend_on_the_visit_seed(starters: Tasks) -> None:
    task = starters["rotated"]
    assert hidden_calls(task, 1, FRESH_CALLS) == hidden_calls(task, 1, FRESH_CALLS)
    assert hidden_calls(task, 1, FRESH_CALLS) != hidden_calls(task, 2, FRESH_CALLS)
    pinned: Any = task.hidden["killers"]
    assert [call.to_plain() for call in hidden_calls(task, 1, FRESH_CALLS)[: len(pinned)]] == pinned


def test_every_known_call_is_graded(backend: SandboxBackend) -> None:
    """A candidate that fails only one shipped test does not pass, whichever inputs are drawn."""
    reference = "def f(n):\n    return n + 1\n"
    known = [[[str(n)], {}] for n in (2, 3, 987_654_321)]
    task = solution_of("f", reference, examples=known, killers=known[:1])
    assert [call.to_plain() for call in hidden_calls(task, 1, FRESH_CALLS)][-2:] == known[1:]
    env = CodeEditorEnv(tasks=[task], sandbox=backend)
    wrong = "```python\ndef f(n):\n    return n + (n != 987654321)\n```"
    assert ending(env, wrong, "submit", task="own/task")["reward"] == 0.0
    env.close()


def test_a_table_of_the_first_calls_answers_is_not_confirmed(backend: SandboxBackend) -> None:
    calls = [[[str(n)], {}] for n in range(20, 60)]
    task = solution_of("f", "def f(n):\n    return n + 1\n", examples=calls[:4], killers=calls[4:5])
    grader = grader_for(task)
    assert isinstance(grader, CallGrader)
    first, _ = grader.asked(backend, FRESH_CALLS, 3)
    table = {int(call.args[0]): int(call.args[0]) + 1 for call in first.calls}
    found = grader.grade(f"def f(n):\n    return {table}.get(n, 0)\n".encode(), backend, FRESH_CALLS, 3)
    assert found.verdict is Verdict.FAIL
    assert "do not confirm it" in found.evidence
    right = b"def f(n):\n    return 1 + n\n"
    assert grader.grade(right, backend, FRESH_CALLS, 3).verdict is Verdict.PASS


def test_the_held_out_check_finds_errors_that_few_inputs_miss(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envkit.environments.code_editor.env.FRESH_CALLS", 0)
    calls = [[[str(n)], {}] for n in (2, 3)]
    task = solution_of("f", "def f(n):\n    return n + 1\n", examples=calls, killers=calls)
    env = CodeEditorEnv(tasks=[task], sandbox=backend)
    for body, agrees in (("n + 1 + (4 < n < 10)", 0.0), ("1 + n", 1.0)):
        env.reset(seed=5, options={"held_out": True})
        env.step(f"```python\ndef f(n):\n    return {body}\n```")
        _, reward, _, _, info = env.step("submit")
        assert (reward, info["held_out"]) == (1.0, {"answers_many_more": agrees})
    assert "held_out" not in ending(env, "submit", task="own/task")
    env.close()


def test_inputs_whose_answers_cannot_be_compared_are_left_out(backend: SandboxBackend) -> None:
    """Generated inputs may raise or return objects that cannot be compared."""
    source = "def f(n):\n    if n > 4:\n        raise ValueError\n    return n if n < 4 else print\n"
    calls = [[[str(n)], {}] for n in (2, 3, 4, 5)]
    env = CodeEditorEnv(tasks=[solution_of("f", source, examples=calls, killers=calls)], sandbox=backend)
    for seed in range(3):
        assert ending(env, "submit", task="own/task", seed=seed)["reward"] == 1.0
    env.close()


def test_run_imports_the_modules_used_in_examples(backend: SandboxBackend) -> None:
    task = solution_of("f", "def f(x):\n    return x\n", examples=[], killers=[], modules=["fractions"])
    call = {"call": "f(fractions.Fraction(1, 2))", "value": "Fraction(1/2)"}
    env = CodeEditorEnv(tasks=[dataclasses.replace(task, metadata={"examples": [call]})], sandbox=backend)
    env.reset(seed=0)
    assert env.step("run")[0].startswith("f(fractions.Fraction(1, 2)) -> Fraction(1/2), as expected")
    env.close()


# Groups and sandbox failures.


def played(backend: SandboxBackend, task: Task, rows: int, step: int) -> list[Any]:
    keys = [EpisodeKey(0, step, 0, row, task.id) for row in range(rows)]
    with Rollouts(lambda: CodeEditorEnv(tasks=[task], sandbox=backend, max_turns=1), workers=1) as rollouts:
        return rollouts.play(oracle({task.id: [oracle_action(task)]}), keys)


def test_equal_candidates_of_a_group_are_graded_once(backend: SandboxBackend, starters: Tasks) -> None:
    CodeEditorEnv.clear_caches()
    counted = Counted(backend)
    assert all(trajectory.solved for trajectory in played(counted, starters["median"], rows=4, step=1001))
    edges, orders = 1, 2  # edges that the original answers, once; all calls, in two orders
    assert counted.asked == 4 + edges + orders + 1, "four editors, the original, one candidate"


@pytest.mark.parametrize("number", [1, 3, 4])
def test_one_sandbox_failure_is_retried(backend: SandboxBackend, starters: Tasks, number: int) -> None:
    """The failing sandbox is an editor's (1, 2), the original's (3) or the candidate's (4)."""
    counted = Counted(backend, frozenset({number}))
    trajectories = played(counted, starters["median"], rows=2, step=2000 + number)
    assert [trajectory.outcome for trajectory in trajectories] == [Outcome.SOLVED] * 2


def test_a_grade_that_a_stalled_machine_caused_is_not_cached(
    env: CodeEditorEnv, starters: Tasks, stall: Callable[[Limits], None]
) -> None:
    right = oracle_action(starters["overlap"])
    stall(GRADING_LIMITS)
    first, second = (ending(env, right, "submit") for _ in range(2))
    assert (first["reward"], first["verdict"]) == (0.0, "FAIL")
    assert "did not answer" in first["evidence"]["answers_as_original"]
    assert second["reward"] == 1.0


def test_example_results_that_a_stalled_machine_caused_are_not_cached(
    env: CodeEditorEnv, starters: Tasks, stall: Callable[[Limits], None]
) -> None:
    action = f"{oracle_action(starters['overlap'])}\nsubmit"
    env.reset(seed=5, options={"task": "starter/overlap"})
    stall(RUN_LIMITS)
    assert "Not submitted, because an example fails." in env.step(action)[0]
    env.reset(seed=5, options={"task": "starter/overlap"})
    assert env.step(action)[1] == 1.0


def test_the_examples_answers_are_void_if_a_stalled_machine_cut_them(
    env: CodeEditorEnv, starters: Tasks, stall: Callable[[Limits], None]
) -> None:
    env.reset(seed=5, options={"task": "starter/overlap"})
    stall(REFERENCE_LIMITS)
    with pytest.raises(SandboxError, match="the original of task starter/overlap took too long"):
        env.step("run")
    env.reset(seed=5, options={"task": "starter/overlap"})
    assert "expected 5" in env.step("run")[0]


def test_a_candidate_that_sleeps_fails_each_time(env: CodeEditorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envkit.environments.code_editor.graders.calls.grade", partial(grade, limits=HASTY))
    sleeps = "```python\nimport time\ndef overlap(first, second):\n    time.sleep(60)\n```"
    monkeypatch.setattr("envkit.environments.code_editor.examples.RUN_LIMITS", HASTY)
    for _ in range(2):
        info = ending(env, sleeps, "submit")
        assert (info["reward"], info["verdict"]) == (0.0, "FAIL")


def test_two_tasks_with_the_same_id_are_graded_separately(backend: SandboxBackend) -> None:
    calls = [[["2"], {}]]
    for body in ("n", "-n"):
        task = solution_of("f", f"def f(n):\n    return {body}\n", examples=calls, killers=calls)
        env = CodeEditorEnv(tasks=[task], sandbox=backend)
        assert ending(env, "submit", task=task.id)["reward"] == 1.0
        env.close()


def test_all_that_a_grade_depends_on_is_part_of_the_cache_key(starters: Tasks) -> None:
    task = starters["overlap"]
    file, metadata = f"{task.files['solution.py']}\n", {**task.metadata, "prelude": "x = 1\n"}
    changes = ({"prompt": "In any order."}, {"files": {"solution.py": file}}, {"metadata": metadata})
    others = [dataclasses.replace(task, **change) for change in ({}, *changes)]
    assert len({grader_for(one).cache_key(FRESH_CALLS, 0) for one in others}) == len(others)
