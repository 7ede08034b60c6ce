"""`Env.teardown`: what an episode keeps outside its sandbox ends with it, however it ends."""

from __future__ import annotations

from typing import ClassVar

import pytest

from envkit import Env, SandboxBackend, SandboxError, Task, check, tool
from envkit.registry import sandbox_backend


class Keeper(Env):
    """Keeps something outside."""

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
def env(backend: SandboxBackend) -> Keeper:
    Keeper.kept.clear()
    return Keeper(
        tasks=[Task(id=name, split="train", prompt=name, files={}) for name in ("plain", "breaks", "stays")],
        sandbox=backend,
    )


def test_it_follows_scoring_and_comes_once(env: Keeper) -> None:
    env.reset(options={"task": "plain"})
    assert env.step("look()")[0] == "1 kept"
    assert env.step("stop()")[1] == 1.0  # it was there when it was scored
    assert Keeper.kept == []
    env.close()  # and is not undone again


def test_it_comes_after_truncation_close_reset_and_breakdown(env: Keeper) -> None:
    options = {"task": "plain"}
    env.reset(options=options)
    for _ in range(env.max_turns):
        env.step("look()")
    assert Keeper.kept == []
    env.reset(options=options)
    env.close()
    assert Keeper.kept == []
    env.reset(options=options)
    env.reset(options=options)
    assert Keeper.kept == ["plain"]
    with pytest.raises(SandboxError, match="on purpose"):
        env.step("stumble()")
    assert Keeper.kept == []
    with pytest.raises(SandboxError, match="on purpose"):
        env.reset(options={"task": "breaks"})
    assert Keeper.kept == []


def test_one_that_fails_keeps_no_sandbox(env: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(options={"task": "stays"})
    closed: list[bool] = []
    close = env.sandbox.close
    monkeypatch.setattr(env.sandbox, "close", lambda: (closed.append(True), close()))
    with pytest.raises(SandboxError, match="cannot be undone"):
        env.close()
    assert closed == [True]


def test_what_is_kept_between_episodes_ends_with_close_alone(
    env: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(Keeper, "dispose", lambda self: ended.append(len(self.kept)))
    env.reset(options={"task": "plain"})
    env.step("stop()")
    env.reset(options={"task": "plain"})
    assert ended == []
    env.close()
    assert ended == [0]  # after the episode
    env.reset(options={"task": "stays"})
    with pytest.raises(SandboxError, match="cannot be undone"):
        env.close()
    assert len(ended) == 2


def test_an_environment_runs_in_the_sandbox_unless_it_says_otherwise() -> None:
    assert (Env.isolation, Keeper.isolation) == ("sandbox", "sandbox")
