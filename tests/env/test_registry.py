"""The registry: plugins by name, and the choice of a sandbox backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import gymnasium
import pytest

from envkit import RegistryError, SandboxUnavailable, UsageError
from envkit.env import registry
from envkit.environments.service_desk import ServiceDeskEnv
from envkit.environments.service_desk.tasks import generate
from envkit.runtime import plugins
from envkit.sandbox import Sandbox, SandboxBackend, choice


class Fine(SandboxBackend):
    name = "fine"
    isolated = True

    def available(self) -> str | None:
        return None

    def create(self) -> Sandbox:
        raise NotImplementedError


class Absent(Fine):
    name = "absent"

    def available(self) -> str | None:
        return "not here; apt install absent"


class NotIsolated(Fine):
    name = "open"
    isolated = False


def installed(monkeypatch: pytest.MonkeyPatch, backends: Mapping[str, type[SandboxBackend]]) -> None:
    """Pretend that exactly these backends are installed."""

    class Point:
        def __init__(self, name: str) -> None:
            self.name = self.value = name

        def load(self) -> type[SandboxBackend]:
            return backends[self.name]

    monkeypatch.setattr(plugins, "entry_points", lambda group: tuple(map(Point, backends)))


def test_the_shipped_plugins_are_registered() -> None:
    assert "code-editor" in registry.names("environment")
    assert {"bubblewrap", "process"} <= set(registry.names("sandbox"))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"no environment 'code'; there is: .*code-editor"):
        registry.load("environment", "code")


def test_an_empty_registry_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {})
    with pytest.raises(RegistryError, match="no sandbox 'fine'; there is: none"):
        choice.sandbox_backend("fine")
    with pytest.raises(SandboxUnavailable, match="no sandbox that isolates is installed"):
        choice.sandbox_backend()


def test_auto_prefers_the_zygote_then_bubblewrap_then_docker_which_alone_has_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = ["zygote", "bubblewrap", "docker"]
    for number in range(len(order)):
        backends = dict.fromkeys(order[:number], Absent) | {order[number]: Fine, "a": Absent}
        installed(monkeypatch, dict(sorted(backends.items())))
        assert type(choice.sandbox_backend()) is Fine
    installed(monkeypatch, {"docker": NotIsolated, "zygote": Fine})
    assert type(choice.sandbox_backend("auto", "python:3.12")) is NotIsolated
    assert type(choice.sandbox_backend("zygote", "python:3.12")) is Fine
    installed(monkeypatch, dict.fromkeys(sorted(["a", *order]), Absent))
    with pytest.raises(SandboxUnavailable, match=r"tried zygote, bubblewrap, docker, a\)"):
        choice.sandbox_backend()


def test_auto_takes_the_next_available_backend_that_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"bubblewrap": Absent, "open": NotIsolated, "third": Fine})
    assert type(choice.sandbox_backend()) is Fine
    installed(monkeypatch, {"bubblewrap": Absent, "open": NotIsolated})
    with pytest.raises(SandboxUnavailable, match="bubblewrap: not here; apt install absent"):
        choice.sandbox_backend()


def test_a_named_backend_is_used_even_if_it_does_not_isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"bubblewrap": Fine, "open": NotIsolated, "absent": Absent})
    assert type(choice.sandbox_backend("open")) is NotIsolated
    with pytest.raises(SandboxUnavailable, match="sandbox 'absent': not here"):
        choice.sandbox_backend("absent")


def test_gymnasium_knows_the_ids_once_envkit_is_imported() -> None:
    for id_, name in (
        ("CodeEditor-v0", "code-editor"),
        ("ServiceDesk-v0", "service-desk"),
        ("SqlDesk-v3", "sql-desk"),
        ("SqlDeskPostgres-v3", "sql-desk-postgres"),
    ):
        spec = gymnasium.spec(f"envkit/{id_}")
        assert (spec.entry_point, spec.kwargs) == ("envkit.env.registry:make", {"name": name})


def test_importing_envkit_loads_no_environment() -> None:
    code = "import sys, envkit; print([name for name in sys.modules if 'envkit.environments' in name])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output == "[]\n"


def test_gymnasium_ids_of_plugins_contain_their_packages_major_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def point(name: str, version: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, dist=SimpleNamespace(version=version))

    points = [point("stock-room", "2.1"), point("x2", "0.1.dev3+g1"), point("not an id", "1")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", {})
    registry.register_gymnasium()
    assert [*gymnasium.envs.registration.registry] == ["envkit/StockRoom-v2", "envkit/X2-v0"]
    assert gymnasium.spec("envkit/StockRoom-v2").kwargs == {"name": "stock-room"}


def test_two_packages_with_one_name_are_refused_and_one_found_twice_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def point(value: str, package: str) -> SimpleNamespace:
        dist = SimpleNamespace(name=package)
        return SimpleNamespace(name="desk", value=value, dist=dist, load=lambda: "the desk")

    points = [point("one:Desk", "one"), point("two:Desk", "two-desks")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(RegistryError, match=r"one:Desk \(of one\) and two:Desk \(of two-desks\); rename one"):
        plugins.load("environment", "desk")
    points[1] = points[0]
    assert plugins.load("environment", "desk") == "the desk"


def test_gymnasium_imports_envkit_for_an_id_with_a_module() -> None:
    code = "import gymnasium; gymnasium.make('envkit:envkit/CodeEditor-v0', sandbox='process').close()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_an_instance_may_have_the_tasks_of_another_split() -> None:
    for split in ("starter", "heldout"):
        env = gymnasium.make("envkit/ServiceDesk-v0", split=split)
        own = ServiceDeskEnv.tasks_of(split)
        assert [*env.unwrapped.tasks.values()] == [*own] == generate(split)
        env.close()
    with pytest.raises(UsageError, match="service-desk has no 'test' tasks of its own"):
        ServiceDeskEnv.tasks_of("test")
