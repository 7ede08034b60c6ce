"""The harnesses that envkit ships are programs from PyPI: each repairs a file when a model tells it how."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from envkit.env import registry

FENCE = "```"
#: Harness -> how a model answers that repairs the file, and how it says that it is done.
ANSWERS = {
    "mini-swe-agent": (
        f"{FENCE}mswea_bash_command\ncat > solution.py <<'EOF'\n{{code}}\nEOF\n{FENCE}",
        f"{FENCE}mswea_bash_command\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n{FENCE}",
    ),
    "smolagents": (
        "<code>\nimport pathlib\npathlib.Path('solution.py').write_text('''{code}''')\n</code>",
        "<code>\nfinal_answer('done')\n</code>",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_it_repairs_a_file_in_the_sandbox(name: str) -> None:
    kind = registry.environment(f"code-editor@{name}")
    repair, done = ANSWERS[name]
    with closing(kind(tasks=kind.tasks_of("starter"))) as env:
        seen, _ = env.reset(seed=0)
        messages = json.loads(seen)["messages"]
        assert kind.brief(env.task).strip() in messages[-1]["content"]
        [known, _] = kind.graded_as().oracle(env.task)
        code = known.partition("```python\n")[2].partition("```")[0]
        seen, reward, ended, *_ = env.step(repair.replace("{code}", code))
        assert (reward, ended) == (0.0, False), seen
        seen, reward, ended, _, info = env.step(done)
        assert (seen, reward, ended) == ("it ended with status 0", 1.0, True)
        assert info["solved"]
