"""Importing benchmark formats: the resulting tasks, refused files, and grading."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from envkit import EpisodeKey, Rollouts, SandboxBackend, Task, TaskFileError, Trajectory, UsageError
from envkit.agents.recorded import RecordedAgent
from envkit.agents.scripted import noop, oracle
from envkit.env.authored import ImportedTasks
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.env import grader_for
from envkit.environments.code_editor.formats import FORMATS
from envkit.environments.code_editor.formats.problems import FRESH_CALLS, applied_normalizers
from envkit.runs.folder.heldout import require_heldout

# Tiny made-up files in each format.

SOLUTION = "class Solution:\n    def largestOf(self, nums: List[int], k: int) -> int:\n        {}\n"
ITEM: dict[str, Any] = {
    "slug": "largest-of-the-first",
    "fn": "largestOf",
    "description": "Return the largest of the first k numbers of nums.",
    "category": "operation error",
    "level": "easy",
    "tests": [[{"nums": [3, 9, 2], "k": 2}, 9], [{"k": 1, "nums": [5]}, 5], [{"nums": [4, 6, 8], "k": 1}, 4]],
    "buggy_code": "\n" + SOLUTION.format("return min(nums[:k])") + "\n",
    "oracle_code": SOLUTION.format("return max(nums[:k])"),
    "recorded": {
        "good": {"fixed_code": "import heapq\n" + SOLUTION.format("return heapq.nlargest(1, nums[:k])[0]")},
        "hasty": {"fixed_code": SOLUTION.format("return max(nums)")},
        "broken": {"fixed_code": SOLUTION.format("return max(nums[:k]")},
        "hidden": {"fixed_code": SOLUTION.format("return max(nums[:k])  # \u200b")},
        "helpful": {
            "fixed_code": "class Heap:\n    top = staticmethod(max)\n\n"
            + SOLUTION.format("return Heap.top(nums[:k])")
        },
    },
}
PACK: dict[str, Any] = {
    "task_id": "Python/7",
    "declaration": "from typing import List\n\n\ndef span(items: List[int]) -> int:\n",
    "buggy_solution": "    return max(items) + min(items)\n",
    "canonical_solution": "    return max(items) - min(items)\n",
    "bug_type": "operator misuse",
    "entry_point": "span",
    "docstring": "How far apart the items are, at most.\n>>> span([1, 5])\n4",
    "test": "\n\ndef check(span):\n    assert span([3, 1, 4]) == 3\n    assert span([7]) == 0\n\ncheck(span)",
}
WRITTEN: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "prompt": (
        'def twice(text: str) -> str:\n    """The text, two times.\n'
        "    >>> twice(\"ab\")\n    'abab'\n"
        '    """\n'
    ),
    "canonical_solution": "    return text * 2\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate('x') == 'xx'\n    assert candidate('') == ''\n",
}
SENTENCE: dict[str, Any] = {
    "task_id": 7,
    "text": "Write a function to find the mean of two numbers.",
    "code": "import math\r\ndef half(a):\r\n\treturn a / 2\r\ndef mean(a, b):\r\n\treturn half(a + b)",
    "test_list": ["assert mean(1, 2) == 1.5", "assert mean(4, 4) == 4"],
}
PROGRAM: dict[str, Any] = {
    "name": "last_of",
    "buggy_code": 'def last_of(items):\n    return items[0]\n\n"""\nThe last item.\n"""\n',
    "correct_code": "def last_of(items):\n    return items[-1]\n",
    "tests": [[[[1, 2, 3]], 3], [[["a", "b"]], "b"]],
}
EDIT: dict[str, Any] = {
    "id": 7,
    "name": "tally",
    "full_name": "7_tally",
    "before": "def tally(words):\n    return {word: 1 for word in words}\n",
    "after": "def tally(words):\n    return {word: words.count(word) for word in words}\n",
    "tests": (
        "### START TESTS ###\nif True:  # pragma: no cover\n"
        "    assert tally(['a', 'b', 'a']) == {'a': 2, 'b': 1}\n    assert tally([]) == {}\n"
    ),
    "instruction_descriptive": "Make `tally` count how often each word occurs.",
    "instruction_lazy": "count them really",
    "taxonomy": {"change_kind": "corrective", "libraries": [], "topic": "Language"},
}
PRACTICE = {
    ".meta/config.json": json.dumps(
        {"files": {"solution": ["bob.py"], "test": ["bob_test.py"], "example": [".meta/example.py"]}}
    ),
    ".meta/example.py": "def answer(text):\n    return text.strip() or 'Fine.'\n",
    ".docs/instructions.md": "# Instructions\n\nAnswer with the text without spaces around, or `Fine.`\n",
    "bob.py": "def answer(text):\n    pass\n",
    "bob_test.py": (
        "import unittest\nfrom bob import answer\n\nclass BobTest(unittest.TestCase):\n"
        "    def test_text(self):\n        self.assertEqual(answer(' a b '), 'a b')\n"
        "    def test_nothing(self):\n        self.assertEqual(answer(''), 'Fine.')\n"
    ),
}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder(path: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def quixbugs_folder(path: Path) -> Path:
    tests = "".join(json.dumps(test) + "\n" for test in PROGRAM["tests"])
    files = {
        "python_programs/last_of.py": PROGRAM["buggy_code"],
        "correct_python_programs/last_of.py": PROGRAM["correct_code"],
        "json_testcases/last_of.json": tests + '["abc", "c"]\n\n',
        "python_programs/linked.py": "def linked(node):\n    return node\n",
        "correct_python_programs/linked.py": "def linked(node):\n    return node.next\n",
        "python_programs/node.py": "class Node: pass\n",
        "python_programs/linked_test.py": "",
    }
    return folder(path, files)


def packed(path: Path) -> Path:
    path.write_bytes(gzip.compress(json.dumps(WRITTEN).encode()))
    return path


#: Format -> function that writes a valid file below a folder and returns its path.
GOOD: dict[str, Callable[[Path], Path]] = {
    "canitedit": lambda at: lines(at / "edits.jsonl", EDIT),
    "canitedit-lazy": lambda at: lines(at / "edits.jsonl", EDIT),
    "debugbench": lambda at: lines(at / "bugs.jsonl", ITEM, ITEM),
    "humanevalpack": lambda at: lines(at / "pack.jsonl", PACK),
    "human-eval": lambda at: packed(at / "HumanEval.jsonl.gz"),
    "mbpp": lambda at: lines(at / "mbpp.jsonl", SENTENCE),
    "quixbugs": quixbugs_folder,
    "exercism": lambda at: folder(at / "exercises" / "practice" / "bob", PRACTICE) and at,
}


def imported(name: str, path: Path) -> ImportedTasks:
    return CodeEditorEnv.import_tasks(name, path)


def only(name: str, path: Path) -> Task:
    [task] = imported(name, path).tasks
    return task


def played(
    backend: SandboxBackend, tasks: Sequence[Task], agent: Any, group: int = 0
) -> dict[str, Trajectory]:
    with Rollouts(lambda: CodeEditorEnv(tasks=tasks, sandbox=backend)) as rollouts:
        keys = [EpisodeKey(1, 0, group, 0, task.id) for task in tasks]
        return {one.key.task: one for one in rollouts.play(agent, keys)}


# All formats.


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_code_earns_1_and_doing_nothing_earns_0(
    name: str, tmp_path: Path, backend: SandboxBackend
) -> None:
    tasks = imported(name, GOOD[name](tmp_path)).tasks
    assert tasks
    solved = played(backend, tasks, oracle({task.id: CodeEditorEnv.oracle(task) for task in tasks}))
    assert [one.info for one in solved.values() if not one.solved] == []
    assert {one.info["verdict"] for one in played(backend, tasks, noop()).values()} == {"FAIL"}


@pytest.mark.parametrize("name", FORMATS)
def test_imported_tasks_are_marked_as_held_out(name: str, tmp_path: Path) -> None:
    for task in imported(name, GOOD[name](tmp_path)).tasks:
        assert task.split == "heldout"
        assert task.metadata["evaluation_only"] is True
        assert task.metadata["benchmark"] == name
        assert task.id.startswith(f"{name}/")
        assert task.source.startswith(f"{name}:")
        assert task.metadata["operator"]


@pytest.mark.parametrize("name", FORMATS)
def test_training_refuses_imported_tasks(name: str, tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="is of split 'heldout'; expected 'train' to learn from"):
        require_heldout([], imported(name, GOOD[name](tmp_path)).tasks)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="nowhere"):
        imported(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "exercism"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: found list, expected an object"),
        ('{"nothing": 1}', "line 2, field '"),
    ],
)
def test_a_line_that_is_not_an_item_is_named(name: str, line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    good = {"debugbench": ITEM, "humanevalpack": PACK, "human-eval": WRITTEN, "mbpp": SENTENCE}
    good |= {"canitedit": EDIT, "canitedit-lazy": EDIT}
    path.write_text(json.dumps(good.get(name, PROGRAM)) + f"\n{line}\n")
    with pytest.raises(TaskFileError, match=r"file\.jsonl") as caught:
        imported(name, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


_EDIT = ["full_name", "before", "after", "tests", "taxonomy"]
REQUIRED = {
    "canitedit": (EDIT, [*_EDIT, "instruction_descriptive"]),
    "canitedit-lazy": (EDIT, [*_EDIT, "instruction_lazy"]),
    "debugbench": (ITEM, ["slug", "fn", "category", "tests", "buggy_code", "oracle_code"]),
    "humanevalpack": (
        PACK,
        ["task_id", "declaration", "buggy_solution", "canonical_solution", "test", "entry_point", "bug_type"],
    ),
    "human-eval": (WRITTEN, ["task_id", "prompt", "canonical_solution", "test", "entry_point"]),
    "mbpp": (SENTENCE, ["task_id", "code", "test_list"]),
    "quixbugs": (PROGRAM, ["name", "buggy_code", "correct_code", "tests"]),
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, (_, fields) in REQUIRED.items() for field in fields]
)
@pytest.mark.parametrize("value", [..., True, None])
def test_a_field_of_the_wrong_type_is_named(name: str, field: str, value: object, tmp_path: Path) -> None:
    good, _ = REQUIRED[name]
    bad = {key: kept for key, kept in good.items() if key != field}
    path = lines(tmp_path / "file.jsonl", good, bad if value is ... else bad | {field: value})
    with pytest.raises(TaskFileError) as caught:
        imported(name, path)
    assert f"{path}, line 2, field '{field}': found" in str(caught.value)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format 'swe'; the code editor reads: canitedit, "):
        imported("swe", tmp_path)


def test_a_file_without_a_task_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "bugs.jsonl", ITEM | {"tests": []})
    with pytest.raises(
        TaskFileError, match="can be graded here: 1 without a call whose arguments are literals"
    ):
        imported("debugbench", path)
    with pytest.raises(TaskFileError, match="it is empty"):
        imported("debugbench", lines(tmp_path / "empty.jsonl"))


def test_a_truncated_compressed_file_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "HumanEval.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TaskFileError, match=r"HumanEval.jsonl.gz cannot be read"):
        imported("human-eval", path)


# DebugBench.


def test_a_debugbench_item_becomes_a_task(tmp_path: Path, backend: SandboxBackend) -> None:
    first, second = imported("debugbench", GOOD["debugbench"](tmp_path)).tasks
    assert [first.id, second.id] == [f"debugbench/largest-of-the-first/{number}" for number in (1, 2)]
    assert first.source == second.source == "debugbench:largest-of-the-first"
    assert (first.metadata["operator"], first.metadata["level"]) == ("operation error", "easy")
    env = CodeEditorEnv(tasks=[first], sandbox=backend)
    seen, _ = env.reset(seed=0)
    env.close()
    assert seen.startswith("Return the largest of the first k numbers of nums.\n")
    # Arguments stand in the order of the parameters, as the judge passes them.
    assert "Solution().largestOf([5], 1) -> 5" in seen
    assert "Fix the bug:\n```python\nclass Solution:" in seen
    assert "max" not in seen.replace("max_", "")


def test_recorded_fixes_are_replayed_and_graded(tmp_path: Path, backend: SandboxBackend) -> None:
    found = imported("debugbench", GOOD["debugbench"](tmp_path))
    verdicts: dict[str, object] = {}
    for model, said in found.recorded.items():
        assert set(said) == {task.id for task in found.tasks}
        episodes = played(backend, found.tasks, RecordedAgent(model, said, idle=CodeEditorEnv.noop_action))
        assert {len(one.steps) for one in episodes.values()} == {2}
        [verdicts[model]] = {one.info["verdict"] for one in episodes.values()}
    assert verdicts == {
        "good": "PASS",
        "hasty": "FAIL",
        "broken": "FAIL",
        "hidden": "FAIL",
        "helpful": "PASS",
    }


def test_a_recorded_fix_replaces_the_code_verbatim(tmp_path: Path, backend: SandboxBackend) -> None:
    found = imported("debugbench", GOOD["debugbench"](tmp_path))
    task = found.tasks[0]
    env = CodeEditorEnv(tasks=[task], sandbox=backend)
    env.reset(seed=0, options={"task": task.id})
    env.step(found.recorded["good"][task.id][0])
    code = ITEM["recorded"]["good"]["fixed_code"]
    assert env.sandbox.read("solution.py", 10_000).decode().rstrip("\n") == code.rstrip("\n")
    env.close()


def test_the_names_that_a_judge_provides_are_there_wherever_code_is_run(
    tmp_path: Path, backend: SandboxBackend
) -> None:
    mutated = ITEM | {"buggy_code": SOLUTION.format("return nums[0] if k != 1 else max(nums[:k])")}
    task = only("debugbench", lines(tmp_path / "bugs.jsonl", mutated))  # it names List without an import
    env = CodeEditorEnv(tasks=[task], sandbox=backend, max_turns=3)
    env.reset(seed=0)
    seen = env.step(f"```python\n{ITEM['oracle_code']}```")[0]
    env.close()
    assert seen.count(", as expected") == 2
    [search] = [one for one in CodeEditorEnv.baselines if one.name == "enumerate"]
    edit = search.actions(task, 0, backend)[0]
    assert edit.startswith("<<<<<<< SEARCH\nclass Solution:")


def test_a_whole_class_can_repair_a_file_with_a_syntax_error(tmp_path: Path, backend: SandboxBackend) -> None:
    broken = ITEM | {
        "buggy_code": SOLUTION.format('return max(nums[:k]) if k else "never').replace("k: int)", "k: int")
    }
    task = only("debugbench", lines(tmp_path / "bugs.jsonl", broken))
    env = CodeEditorEnv(tasks=[task], sandbox=backend)
    env.reset(seed=0)
    seen = env.step(f"```python\n{ITEM['oracle_code']}```")[0]
    reward = env.step("submit")[1]
    env.close()
    assert seen.startswith("Changed:")
    assert reward == 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tests": []}, "without a call whose arguments are literals"),
        ({"tests": [[{"numbers": [1], "k": 1}, 1]]}, "whose tests name other arguments than the right form"),
        ({"fn": "smallestOf"}, "whose right form does not define what is asked"),
        ({"oracle_code": "class Solution"}, "with a file that is not Python"),
        ({"buggy_code": ITEM["oracle_code"]}, "without a difference between wrong and right"),
        ({"description": "If there are several, return any of them."}, "with several right answers"),
        ({"description": "Return the index to any of the peaks."}, "with several right answers"),
    ],
)
def test_an_item_that_cannot_be_graded_is_left_out_and_counted(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = imported("debugbench", lines(tmp_path / "bugs.jsonl", ITEM | change, ITEM, ITEM | change))
    assert found.left_out == {reason: 2}
    # Items that are left out still count in the numbering.
    assert [task.id for task in found.tasks] == ["debugbench/largest-of-the-first/2"]
    assert set(found.recorded["good"]) == {task.id for task in found.tasks}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": [[{"k": 1}]]}, "field 'tests[0]': found [{'k': 1}], expected a pair"),
        ({"tests": [[[1], 1]]}, "field 'tests[0]': found [[1], 1], expected a pair"),
        ({"recorded": []}, "field 'recorded': found list, expected an object"),
        ({"recorded": {"m": 1}}, "in 'recorded', field 'm': found int, expected an object"),
        ({"recorded": {"m": {}}}, "in 'm', field 'fixed_code': found nothing, expected a text"),
        ({"description": 1}, "field 'description': found int, expected a text"),
    ],
)
def test_errors_inside_a_field_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskFileError) as caught:
        imported("debugbench", lines(tmp_path / "bugs.jsonl", ITEM | change))
    assert f"{tmp_path / 'bugs.jsonl'}, line 1" in str(caught.value)
    assert message in str(caught.value)


def test_any_order_is_right_if_the_problem_allows_it(tmp_path: Path, backend: SandboxBackend) -> None:
    code = "class Solution:\n    def twins(self, nums: List[int]) -> List[int]:\n        return {}\n"
    item = {
        "slug": "twins",
        "fn": "twins",
        "category": "other error",
        "tests": [[{"nums": [3, 3, 1, 1]}, [3, 1]], [{"nums": [2, 5]}, []]],
        "buggy_code": code.format("nums"),
        "oracle_code": code.format("[n for n in dict.fromkeys(nums) if nums.count(n) == 2]"),
        "recorded": {"m": {"fixed_code": code.format("tuple(n for n in {*nums} if nums.count(n) == 2)")}},
    }
    cases = {
        "In any order.": "PASS",
        "In order.": "FAIL",
        "The numbers come in any order.": "FAIL",
        "Give the twins in no particular order.": "PASS",
    }
    for number, (said, verdict) in enumerate(cases.items()):
        found = imported("debugbench", lines(tmp_path / f"{number}.jsonl", item | {"description": said}))
        agent = RecordedAgent("m", found.recorded["m"], idle="submit")
        [episode] = played(backend, found.tasks, agent, group=number).values()
        assert episode.info["verdict"] == verdict


def test_hidden_calls_keep_the_properties_of_the_examples(tmp_path: Path) -> None:
    task = only("debugbench", lines(tmp_path / "bugs.jsonl", ITEM))
    grader: Any = grader_for(task)
    calls = grader.hidden_calls(5, 0)
    assert len(calls) == FRESH_CALLS + 3
    for call in calls:
        nums, k = (json.loads(source) for source in call.args)
        assert 1 <= k <= len(nums)
        assert min(nums) >= 1
    assert grader.hidden_calls(6, 0) != calls


# The other formats.


def test_a_humanevalpack_item_becomes_a_task(tmp_path: Path) -> None:
    task = only("humanevalpack", GOOD["humanevalpack"](tmp_path))
    assert task.files["solution.py"] == PACK["declaration"] + PACK["buggy_solution"]
    assert task.prompt.startswith("How far apart")
    assert task.hidden["examples"] == [[["[3, 1, 4]"], {}], [["[7]"], {}], [["[1, 5]"], {}]]
    assert task.metadata["examples"] == [
        {"call": "span([3, 1, 4])", "value": "3"},
        {"call": "span([7])", "value": "0"},
    ]


def test_a_human_eval_item_is_written_from_its_docstring(tmp_path: Path) -> None:
    task = only("human-eval", GOOD["human-eval"](tmp_path))
    assert task.files["solution.py"] == WRITTEN["prompt"] + "    raise NotImplementedError\n"
    assert task.metadata["ask"] == "Write the function"
    assert task.hidden["examples"] == [[["'x'"], {}], [["''"], {}], [["'ab'"], {}]]


def test_an_mbpp_item_keeps_its_imports_and_its_def_line(tmp_path: Path) -> None:
    task = only("mbpp", GOOD["mbpp"](tmp_path))
    assert task.files["solution.py"] == "import math\n\ndef mean(a, b):\n    raise NotImplementedError\n"
    assert "\r" not in str(task.hidden["reference"])
    sanitized = {key: value for key, value in SENTENCE.items() if key != "text"} | {"prompt": "The mean."}
    assert only("mbpp", lines(tmp_path / "sanitized.jsonl", sanitized)).prompt == "The mean."


WAYS = {
    "with an import": "from math import fsum\ndef mean(a, b):\n    return fsum([a, b]) / 2",
    "with a helper": "def halved(a):\n    return a / 2\ndef mean(a, b):\n    return halved(a + b)",
    "with a constant": "HALF = 0.5\n\ndef mean(a, b):\n    return (a + b) * HALF\n\nprint(mean(1, 2))",
}


@pytest.mark.parametrize("code", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("name", ["human-eval", "mbpp", "exercism"])
def test_a_function_can_come_with_helpers(
    name: str, code: str, tmp_path: Path, backend: SandboxBackend
) -> None:
    written = WRITTEN | {
        "prompt": "def mean(a, b):\n    'The mean.'\n",
        "canonical_solution": "    return (a + b) / 2\n",
        "entry_point": "mean",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 1.5\n",
    }
    practice = {
        ".meta/config.json": PRACTICE[".meta/config.json"],
        ".meta/example.py": "def mean(a, b):\n    return (a + b) / 2\n",
        ".docs/instructions.md": "The mean.",
        "bob.py": "def mean(a, b):\n    pass\n",
        "bob_test.py": "assert mean(1, 2) == 1.5\n",
    }
    paths = {
        "human-eval": lambda: lines(tmp_path / "written.jsonl", written),
        "mbpp": lambda: lines(tmp_path / "mbpp.jsonl", SENTENCE),
        "exercism": lambda: folder(tmp_path / "bob", practice) and tmp_path,
    }
    task = only(name, paths[name]())
    [one] = played(backend, [task], oracle({task.id: [f"```python\n{code}\n```", "submit"]})).values()
    assert one.solved, one.info


def test_differences_that_the_tests_normalize_are_ignored(tmp_path: Path, backend: SandboxBackend) -> None:
    shared = {
        "code": "def shared(a, b):\n    return tuple(set(a) & set(b))",
        "test_list": ["assert set(shared((3, 4, 5), (5, 4, 7))) == set((4, 5))"],
    }
    task = only("mbpp", lines(tmp_path / "mbpp.jsonl", SENTENCE | shared))
    ways = {
        "[x for x in reversed(a) if x in b]": True,
        "{*a} & {*b}": True,
        "[x for x in a if x in b][:1]": False,
        "list(a)": False,
    }
    for group, (way, right) in enumerate(ways.items()):
        said = f"```python\ndef shared(a, b):\n    return {way}\n```"
        [one] = played(backend, [task], oracle({task.id: [said, "submit"]}), group).values()
        assert one.solved is right, way


def test_answers_are_compared_exactly_if_one_test_does_so() -> None:
    tests = ["assert set(f(1)) == {1}", "assert tuple(f(2)) == (1,)", "assert f(3) == [1]"]
    assert applied_normalizers(ast.parse("\n".join(tests[:2])).body, "f") == {"set", "tuple"}
    assert applied_normalizers(ast.parse("\n".join(tests)).body, "f") == frozenset()
    assert applied_normalizers(ast.parse("assert sum(f(1)) == 1").body, "f") == frozenset()


def test_mbpp_items_that_do_not_test_exactly_one_function_are_left_out(tmp_path: Path) -> None:
    both = SENTENCE | {"task_id": 8, "test_list": ["assert mean(1, 2) == 1.5", "assert half(2) == 1"]}
    none = SENTENCE | {"task_id": 9, "test_list": ["assert mean(*pair) == 1.5"]}
    found = imported("mbpp", lines(tmp_path / "mbpp.jsonl", SENTENCE, both, none, SENTENCE))
    assert found.left_out == {
        "whose asserts do not call one function with literals": 2,
        "with an id that an earlier one has": 1,
    }
    with pytest.raises(TaskFileError, match=r"line 1, field 'test_list\[1\]': found int, expected a text"):
        imported("mbpp", lines(tmp_path / "bad.jsonl", SENTENCE | {"test_list": ["assert 1", 2]}))


def test_quixbugs_is_read_from_its_folder_and_from_lines(tmp_path: Path) -> None:
    found = imported("quixbugs", quixbugs_folder(tmp_path / "QuixBugs"))
    assert found.left_out == {"without a call whose arguments are literals": 1}
    [task] = found.tasks
    assert task.files["solution.py"] == PROGRAM["buggy_code"]
    # An argument may stand without a list around it.
    assert task.hidden["examples"] == [[["[1, 2, 3]"], {}], [["['a', 'b']"], {}], [["'abc'"], {}]]
    again = only("quixbugs", lines(tmp_path / "quixbugs.jsonl", PROGRAM))
    assert (again.id, again.files) == (task.id, task.files)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("json_testcases/last_of.json", '[[[1]], 1]\n{"\n', "last_of.json, line 2: not JSON"),
        (
            "json_testcases/last_of.json",
            "[[[1]], 1]\n7\n",
            "last_of.json, field 'tests[1]': found 7, expected",
        ),
        ("correct_python_programs/last_of.py", None, "last_of.py cannot be read: No such file"),
    ],
)
def test_errors_in_the_quixbugs_folder_name_the_file(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    path = quixbugs_folder(tmp_path)
    (path / name).unlink()
    if text is not None:
        (path / name).write_text(text)
    with pytest.raises(TaskFileError) as caught:
        imported("quixbugs", path)
    assert message in str(caught.value)


def test_an_exercise_becomes_a_task(tmp_path: Path) -> None:
    task = only("exercism", GOOD["exercism"](tmp_path))
    assert task.id == "exercism/bob"
    assert task.prompt.startswith("# Instructions")
    assert task.files["solution.py"] == "def answer(text):\n    raise NotImplementedError\n"
    assert task.metadata["examples"] == [
        {"call": "answer(' a b ')", "value": "'a b'"},
        {"call": "answer('')", "value": "'Fine.'"},
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"bob.py": "class Bob:\n    pass\n"}, "that are not one function"),
        ({"bob.py": "def a():\n    pass\ndef b():\n    pass\n"}, "that are not one function"),
        ({"bob_test.py": "x ="}, "with a file that is not Python"),
        ({"bob_test.py": "x = 1"}, "without a call whose arguments are literals"),
        (
            {".meta/config.json": PRACTICE[".meta/config.json"].replace('"bob.py"', '"bob.py", "b.py"')},
            "that are several files",
        ),
    ],
)
def test_exercises_that_are_more_than_a_function_are_left_out(
    files: dict[str, str], reason: str, tmp_path: Path
) -> None:
    folder(tmp_path / "bob", PRACTICE)
    folder(tmp_path / "other", PRACTICE | files)
    found = imported("exercism", tmp_path)
    assert found.left_out == {reason: 1}
    assert [task.id for task in found.tasks] == ["exercism/bob"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json: not JSON"),
        ("{}", "config.json, field 'files': found nothing, expected an object"),
        ('{"files": {"solution": "bob.py"}}', "in 'files', field 'solution': found str, expected a list"),
        (
            '{"files": {"solution": []}}',
            "in 'files', field 'solution': found [], expected a list of file names",
        ),
        (
            PRACTICE[".meta/config.json"].replace('"bob.py"', '"../../secret.py"'),
            "found '../../secret.py', expected a file of the exercise's own folder",
        ),
        (PRACTICE[".meta/config.json"].replace('"bob.py"', '"gone.py"'), "gone.py cannot be read"),
    ],
)
def test_errors_in_an_exercise_name_the_file(config: str, message: str, tmp_path: Path) -> None:
    folder(tmp_path / "bob", PRACTICE | {".meta/config.json": config})
    with pytest.raises(TaskFileError) as caught:
        imported("exercism", tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_exercises_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"holds no NAME/\.meta/config\.json"):
        imported("exercism", tmp_path)
