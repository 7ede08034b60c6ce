"""CanItEdit: programs to edit by an instruction, graded by the values in their tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envkit import SandboxBackend, SandboxError, Task, TaskFileError
from envkit.environments.code_editor import CodeEditorEnv
from envkit.environments.code_editor.actions import HELP, HELP_WHOLE, replace_text_message
from envkit.environments.code_editor.attacks import ATTACKS, Attack, AttackTarget
from envkit.environments.code_editor.attacks import ShownCall as Shown
from envkit.environments.code_editor.exploits import attack_actions
from envkit.environments.code_editor.formats.asserts import WEAKNESS
from envkit.environments.code_editor.graders.base import REFERENCE_LIMITS
from envkit.runs.benchmark.validate_tasks import validate_tasks
from envkit.runtime.display import Silent
from envkit.sandbox import Limits

# Made-up items: before, after, tests.

PLAIN = (
    "def initials(name):\n    return name[0]\n",
    'def initials(name):\n    return "".join(word[0] for word in name.split())\n',
    'assert initials("ada king lovelace") == "akl"\nassert initials("") == ""\n',
)
CLASS = (
    "class Till:\n    def __init__(self):\n        self.coins = []\n\n"
    "    def put(self, coin):\n        self.coins.append(coin)\n",
    "class Till:\n    def __init__(self):\n        self.coins = []\n\n"
    "    def put(self, coin):\n        self.coins.append(coin)\n\n"
    "    def take(self):\n        return self.coins.pop()\n\n"
    "    @property\n    def total(self):\n        return sum(self.coins)\n",
    "till = Till()\ntill.put(5)\ntill.put(2)\nkept = till.coins\nassert kept == [5, 2]\n"
    "assert till.total == 7\nassert till.take() == 2\nassert kept == [5]\nassert till.total == 5\n",
)
RAISES = (
    "def share(whole, parts):\n    return whole / parts\n",
    "def share(whole, parts):\n    if parts < 1:\n        raise ValueError('no parts')\n"
    "    return whole / parts\n",
    "assert share(6, 3) == 2\ntry:\n    share(1, 0)\n    assert False, 'it did not raise'\n"
    "except ValueError as error:\n    assert str(error) == 'no parts'\n",
)
NEAR = (
    "def mean(numbers):\n    return sum(numbers)\n",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n",
    "import math\nassert abs(mean([1, 2, 2]) - 1.67) < 0.01\nassert math.isclose(mean([1, 2]), 1.5)\n",
)
SEVERAL = (
    "def double(x):\n    return x * 2\n",
    "def double(x):\n    return x * 2\n\n\ndef half(x):\n    return x // 2\n",
    "for given, want in [(8, 4), (3, 1)]:\n    assert half(given) == want\nassert half(double(7)) == 7\n"
    "assert [double(n) for n in range(3)] == [0, 2, 4]\n",
)
WEAK = (
    "def spread(numbers):\n    return numbers\n",
    "def spread(numbers):\n    return sorted(set(numbers))\n",
    "low, high = spread([4, 1, 4])\nassert low < high\nassert spread([2, 2]) == spread([2])\n",
)
UNICODE = (
    "def greet(name):\n    return 'hello ' + name\n",
    "def greet(name):\n    return f'¡hola, {name}! 👋'\n",
    "assert greet('Zoë') == '¡hola, Zoë! 👋'\n",
)
PASSES_BEFORE = (
    "def shout(text):\n    return text.upper()\n",
    "def shout(text):\n    return text.upper() + '!'\n",
    "assert shout('a').startswith('A')\n",
)
FAILS_AFTER = (
    "def third(items):\n    return items[3]\n",
    "def third(items):\n    return items[2:3]\n",
    "assert third([1, 2, 3]) == 3\n",
)
MAIN = (
    "def tally(text):\n    return text\n",
    "def tally(text):\n    return {each: text.count(each) for each in text}\n",
    "assert tally('ab') == {'a': 1, 'b': 1}\n"
    "if __name__ == '__main__':\n    assert tally('aa') == {'a': 2}\n",
)
TRUTH = (
    "def is_even(n):\n    return n\n",
    "def is_even(n):\n    return n % 2 == 0\n",
    "assert is_even(4)\nassert not is_even(3)\n",
)
GOOD = {
    "plain": PLAIN,
    "class": CLASS,
    "raises": RAISES,
    "near": NEAR,
    "several": SEVERAL,
    "weak": WEAK,
    "unicode": UNICODE,
    "main": MAIN,
    "truth": TRUTH,
}


def row(name: str, item: Sequence[str], **change: object) -> dict[str, Any]:
    before, after, tests = item
    return {
        "id": 1,
        "name": name,
        "full_name": name,
        "before": before,
        "after": after,
        "tests": tests,
        "instruction_descriptive": f"Change {name} in detail.",
        "instruction_lazy": f"do {name}",
        "taxonomy": {"change_kind": "adaptive", "libraries": [], "topic": "Language"},
        **change,
    }


def write_rows(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Task]:
    path = write_rows(tmp_path_factory.mktemp("edits") / "edits.jsonl", *(row(*one) for one in GOOD.items()))
    found = CodeEditorEnv.import_tasks("canitedit", path)
    assert found.left_out == {}
    return dict(zip(GOOD, found.tasks, strict=True))


def ending(backend: SandboxBackend, task: Task, source: str) -> Mapping[str, Any]:
    """Return evidence and reward of a program that an agent writes in one python block."""
    with_turns = CodeEditorEnv(tasks=[task], sandbox=backend, max_turns=1)
    with_turns.reset(seed=0)
    _, reward, _, _, info = with_turns.step(f"```python\n{source}```")
    with_turns.close()
    assert reward == float(info["verdict"] == "PASS")
    return info


def test_every_control_agent_earns_its_expected_reward(
    tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    assert validate_tasks(CodeEditorEnv, [*tasks.values()], backend, Silent(), seed=1) == []


def test_control_agents_find_items_whose_tests_do_not_distinguish_programs(
    tmp_path: Path, backend: SandboxBackend
) -> None:
    items = {
        "idle": PASSES_BEFORE,
        "wrong": FAILS_AFTER,
        "dead": (*PLAIN[:2], "exit()\nassert initials('a') == 'a'\n"),
    }
    path = write_rows(tmp_path / "edits.jsonl", *(row(*one) for one in items.items()))
    posed = CodeEditorEnv.import_tasks("canitedit", path).tasks
    broken = validate_tasks(CodeEditorEnv, posed, backend, Silent(), seed=1)
    assert [(one.task, one.agent) for one in broken] == [
        ("canitedit/wrong", "oracle"),
        ("canitedit/dead", "oracle"),
        ("canitedit/idle", "no-op"),
    ]
    assert "probe(0, 'third([1, 2, 3])') gave [[3]], expected [3]" in broken[0].evidence


@pytest.mark.parametrize(
    ("name", "old", "new", "seen"),
    [
        ("plain", "[0]", "[-1]", "probe(0, "),
        ("plain", 'return "', 'print("akl"); return "', ""),
        ("plain", "    return", "  return", ""),
        ("class", "self.coins.pop()", "self.coins[-1]", "probe(3, 'kept')"),
        ("class", "sum(self.coins)", "7", "probe(4, 'till.total')"),
        ("raises", "raise ValueError('no parts')", "return 0", "raises AssertionError"),
        ("raises", "'no parts'", "'nothing'", "probe(1, 'str(error)')"),
        ("near", "/ len(numbers)", "/ len(numbers) + 0.004", "probe(1, 'mean([1, 2])')"),
        ("near", "/ len(numbers)", "/ len(numbers) + 0.02", "probe(0, 'mean([1, 2, 2])')"),
        ("near", "/ len(numbers)", "/ len(numbers) + 1e-12", ""),
        ("several", "x // 2", "x / 2", "probe(1, 'half(given)')"),
        ("unicode", "👋", "🙂", "¡hola, Zoë! 🙂"),
        ("weak", "set(numbers)", "numbers", "raises ValueError"),
        ("main", "text.count(each)", "1", "probe(1, "),
        (
            "main",
            "return {each: text.count(each) for each in text}",
            "import collections as c; return c.Counter(text)",
            "",
        ),
        ("truth", "n % 2 == 0", "True", "probe(1, "),
    ],
)
def test_other_programs_pass_or_fail_as_in_their_tests(
    name: str, old: str, new: str, seen: str, tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    source = GOOD[name][1]
    assert old in source
    info = ending(backend, tasks[name], source.replace(old, new))
    assert info["verdict"] == ("FAIL" if seen else "PASS")
    assert seen in info["evidence"]["answers_as_original"]


def test_only_comparisons_inside_the_sandbox_are_reported_as_weaker(
    tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    weaknesses = {
        name: ending(backend, task, GOOD[name][1]).get("weaknesses") for name, task in tasks.items()
    }
    for name in ("weak", "truth", "raises"):
        assert weaknesses.pop(name) == {"answers_as_original": WEAKNESS}
    assert weaknesses.pop("several") is None
    assert {*weaknesses.values()} == {None}


def test_expected_values_are_not_readable_in_the_sandbox(
    tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    """A program that searches all readable files for the answer finds only the question."""
    spy = (
        "import os, sys\n\ndef initials(name):\n"
        "    texts = [open(file).read() for file in os.listdir('.') if file.endswith('.py')] + sys.argv\n"
        "    said = [text for text in texts if 'initials(' in text and 'def initials' not in text]\n"
        "    assert said, 'the tests can be read'\n"
        "    return 'akl' if any('ak' + 'l' in text for text in said) else ''\n"
    )
    evidence = ending(backend, tasks["plain"], spy)["evidence"]["answers_as_original"]
    assert evidence == """probe(0, "initials('ada king lovelace')") gave [''], expected ['akl']"""


@pytest.mark.parametrize(
    "source",
    [
        "class Same(str):\n    __eq__ = lambda a, b: True\n\ndef initials(name):\n    return Same()\n",
        "import sys\n\ndef initials(name):\n    sys.modules['solution'].note(0, 'akl')\n    return ''\n",
        "import sys\n\ndef initials(name):\n    sys.modules['solution']._ended[0] = None\n    return ''\n",
        "open('tests.py', 'w').write('__look__(0, \"akl\")')\n\ndef initials(name):\n    return 'akl'\n",
        "raise SystemExit\n",
        "import os\nos._exit(0)\n",
    ],
)
def test_a_program_that_cheats_does_not_pass(
    source: str, tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    assert ending(backend, tasks["plain"], source)["verdict"] in ("FAIL", "TAMPERED")


def test_expected_values_are_not_derived_from_an_original_that_a_stalled_machine_cut(
    tasks: Mapping[str, Task], backend: SandboxBackend, stall: Callable[[Limits], None]
) -> None:
    stall(REFERENCE_LIMITS)
    with pytest.raises(SandboxError, match="the original of task canitedit/several took too long"):
        ending(backend, tasks["several"], SEVERAL[1])
    assert ending(backend, tasks["several"], SEVERAL[1])["verdict"] == "PASS"


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{one.number} {one.name}" for one in ATTACKS])
def test_no_attack_earns_a_reward(attack: Attack, tasks: Mapping[str, Task], backend: SandboxBackend) -> None:
    before, after, _ = PLAIN
    shown = [Shown("('ada king lovelace',)", "'akl'")]
    target = AttackTarget(before, after, "initials", "solution.py", shown, protected="check.py")
    if (
        attack.inapplicable(target) or attack.number == 28
    ):  # attack 28 is a right answer if there are no integers
        return
    env = CodeEditorEnv(tasks=[tasks["plain"]], sandbox=backend)
    env.reset(seed=0)
    last: Any = None
    for action in attack_actions(attack.build(target), target):
        last = env.step(action)
    env.close()
    assert (last[1], last[4]["verdict"]) in [(0.0, "FAIL"), (0.0, "TAMPERED")]


def test_inapplicable_exploits_have_a_reason(tasks: Mapping[str, Task]) -> None:
    reasons = {one.inapplicable for one in CodeEditorEnv.exploits(tasks["plain"])}
    assert reasons == {"it attacks by a function, and the task asks for a program"}


# Observations and actions.


def test_the_agent_reads_the_instruction_and_the_whole_program(
    tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    env = CodeEditorEnv(tasks=[tasks["plain"]], sandbox=backend, max_turns=1)
    seen, _ = env.reset(seed=0)
    env.close()
    assert seen == (
        "Change plain in detail.\n"
        "Edit the program as told above. A python block takes the place of the whole program:\n"
        f"```python\n{PLAIN[0]}\n```"
    )
    env = CodeEditorEnv(tasks=[tasks["plain"]], sandbox=backend, max_turns=2)
    assert HELP_WHOLE in env.reset(seed=0)[0]
    refused = env.step("")[0]
    env.close()
    assert HELP not in refused
    assert HELP_WHOLE in refused
    assert HELP_WHOLE != HELP


def test_lines_can_be_replaced_and_a_block_is_the_whole_program(
    tasks: Mapping[str, Task], backend: SandboxBackend
) -> None:
    env = CodeEditorEnv(tasks=[tasks["several"]], sandbox=backend, max_turns=4)
    env.reset(seed=0)
    assert env.step("```python\nimport math\n```")[0].startswith("Changed:\n")
    assert "def double" not in env.sandbox.read("solution.py", 1000).decode()
    assert "syntax error" in env.step("```python\nimport\n```")[0]
    env.step(replace_text_message("import math", SEVERAL[1]))
    assert env.step("submit")[1] == 1.0
    env.close()


def test_an_item_becomes_a_task_with_either_instruction(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "edits.jsonl", row("12_plain", PLAIN))
    for name, said, tone in (
        ("canitedit", "Change 12_plain in detail.", "descriptive"),
        ("canitedit-lazy", "do 12_plain", "lazy"),
    ):
        [task] = CodeEditorEnv.import_tasks(name, path).tasks
        assert (task.id, task.prompt) == (f"{name}/12_plain", said)
        assert task.files == {"solution.py": PLAIN[0]}
        assert task.metadata["operator"] == "adaptive"
        assert task.metadata["instruction"] == tone
        assert not any("akl" in str(shown) for shown in (task.prompt, task.files, task.metadata))


# Refused files and items that are left out.


def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "edits.jsonl", row("a", PLAIN), row("b", PLAIN, taxonomy={"topic": "x"}))
    with pytest.raises(TaskFileError) as caught:
        CodeEditorEnv.import_tasks("canitedit", path)
    assert str(caught.value) == (
        f"{path}, line 2, in 'taxonomy', field 'change_kind': found nothing, expected a text"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tests": "import unittest\n\nclass T(unittest.TestCase):\n    pass\n"}, "without an assert"),
        ({"tests": "assert initials("}, "with a file that is not Python"),
        ({"after": "def initials(:"}, "with a file that is not Python"),
        ({"after": PLAIN[0]}, "without a difference between wrong and right"),
        ({"after": f"import numpy.linalg\n{PLAIN[1]}"}, "that import other than the standard library"),
        ({"tests": f"from pandas import x\n{PLAIN[2]}"}, "that import other than the standard library"),
        ({"full_name": "good"}, "with an id that an earlier one has"),
    ],
)
def test_an_item_that_cannot_be_graded_is_left_out_and_counted(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    bad = row("bad", PLAIN, **change)
    found = CodeEditorEnv.import_tasks(
        "canitedit", write_rows(tmp_path / "e.jsonl", row("good", PLAIN), bad, bad)
    )
    assert found.left_out == {reason: 2}
    assert [task.id for task in found.tasks] == ["canitedit/good"]


def test_line_ends_of_other_systems_are_read(tmp_path: Path, backend: SandboxBackend) -> None:
    item = [text.replace("\n", "\r\n") for text in PLAIN]
    [task] = CodeEditorEnv.import_tasks("canitedit", write_rows(tmp_path / "e.jsonl", row("a", item))).tasks
    assert ending(backend, task, PLAIN[1])["verdict"] == "PASS"
    assert replace(task, prompt="").files == {"solution.py": PLAIN[0]}
