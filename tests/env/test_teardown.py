"""`Env.teardown` releases an episode's resources outside the sandbox, however the episode ends."""

from __future__ import annotations

from typing import ClassVar

import pytest

from envkit import ContractError, Env, SandboxBackend, SandboxError, Task, UsageError, check, tool
from envkit.sandbox.choice import sandbox_backend


class StatefulEnv(Env):
    """Keeps one entry per running episode outside the sandbox."""

    id: ClassVar[str] = "keeper"
    kept: ClassVar[list[str]] = []

    def setup(self, task: Task) -> str:
        self.kept.append(task.id)
        if task.prompt == "breaks":
            raise SandboxError("broken on purpose")
        return task.prompt

    def teardown(self) -> None:
        self.kept.pop()
        if self.task.prompt == "stays":
            raise SandboxError("cannot be undone")

    @tool
    def look(self) -> str:
        """Look."""
        return f"{len(self.kept)} kept"

    @tool(ends=True)
    def stop(self) -> str:
        """Stop."""
        return ""

    @tool
    def stumble(self) -> str:
        """Break."""
        raise SandboxError("broken on purpose")

    @check()
    def something_is_kept(self) -> bool:
        return bool(self.kept)


@pytest.fixture(scope="module")
def backend() -> SandboxBackend:
    return sandbox_backend("process")


@pytest.fixture
def env(backend: SandboxBackend) -> StatefulEnv:
    StatefulEnv.kept.clear()
    return StatefulEnv(
        tasks=[Task(id=name, split="train", prompt=name, files={}) for name in ("plain", "breaks", "stays")],
        sandbox=backend,
    )


def test_teardown_runs_once_and_after_scoring(env: StatefulEnv) -> None:
    env.reset(options={"task": "plain"})
    assert env.step("look()")[0] == "1 kept"
    assert env.step("stop()")[1] == 1.0  # scoring ran before teardown
    assert StatefulEnv.kept == []
    env.close()  # teardown does not run again


def test_teardown_runs_after_truncation_close_reset_and_failure(env: StatefulEnv) -> None:
    options = {"task": "plain"}
    env.reset(options=options)
    for _ in range(env.max_turns):
        env.step("look()")
    assert StatefulEnv.kept == []
    env.reset(options=options)
    env.close()
    assert StatefulEnv.kept == []
    env.reset(options=options)
    env.reset(options=options)
    assert StatefulEnv.kept == ["plain"]
    with pytest.raises(SandboxError, match="on purpose"):
        env.step("stumble()")
    assert StatefulEnv.kept == []
    with pytest.raises(SandboxError, match="on purpose"):
        env.reset(options={"task": "breaks"})
    assert StatefulEnv.kept == []


def test_the_sandbox_is_closed_if_teardown_fails(env: StatefulEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(options={"task": "stays"})
    closed: list[bool] = []
    close = env.sandbox.close
    monkeypatch.setattr(env.sandbox, "close", lambda: (closed.append(True), close()))
    with pytest.raises(SandboxError, match="cannot be undone"):
        env.close()
    assert closed == [True]


def test_teardown_does_not_run_for_a_setup_that_never_began(backend: SandboxBackend) -> None:
    StatefulEnv.kept.clear()
    outside = Task("outside", "train", "plain", {"../outside": "x"})
    env = StatefulEnv(tasks=[outside], sandbox=backend)
    with pytest.raises(UsageError, match=r"\.\./outside") as caught:
        env.reset()  # else `teardown` would pop from an empty list
    assert not hasattr(caught.value, "__notes__")
    env.close()


def test_an_error_of_teardown_does_not_replace_the_first_one(env: StatefulEnv) -> None:
    env.reset(options={"task": "stays"})
    with pytest.raises(SandboxError, match="on purpose") as caught:
        env.step("stumble()")
    assert caught.value.__notes__ == ["Ending the episode raised too: SandboxError: cannot be undone"]
    with pytest.raises(ContractError, match="call reset"):
        env.step("look()")


def test_dispose_runs_only_on_close(env: StatefulEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(StatefulEnv, "dispose", lambda self: ended.append(len(self.kept)))
    env.reset(options={"task": "plain"})
    env.step("stop()")
    env.reset(options={"task": "plain"})
    assert ended == []
    env.close()
    assert ended == [0]  # after teardown of the episode
    env.reset(options={"task": "stays"})
    with pytest.raises(SandboxError, match="cannot be undone"):
        env.close()
    assert len(ended) == 2


def test_the_default_isolation_is_the_sandbox() -> None:
    assert (Env.isolation, StatefulEnv.isolation) == ("sandbox", "sandbox")
