"""What an environment's class declares for its sandboxes, and that every way to play it has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import letters_env
import pytest
from letters_env import Letters

from envkit import ContractError, Env, SandboxBackend, Task, UsageError, check, evaluate
from envkit.audit.audited_env import AuditedEnv
from envkit.audit.runner import AUDIT_CHECKS
from envkit.audit.suite import EnvSuite
from envkit.cli.play.capture import CapturingBackend
from envkit.env import registry
from envkit.environments.code_editor import CodeEditorEnv
from envkit.runs.benchmark.validate_tasks import validate_tasks
from envkit.runs.common import load_tasks
from envkit.runtime.display import Silent
from envkit.sandbox import PYTHON_OPTIONS, Contents
from envkit.sandbox.choice import sandbox_backend
from envkit.sandbox.contents import data_paths, declared_contents
from envkit.sandboxes.process import ProcessBackend

#: Checks that play many episodes, and for which packages make no difference.
MANY_EPISODES = ("claims and padding earn nothing", "forged files earn nothing")


class TestLetters(EnvSuite):
    """The audit, vectors in other processes, and single instances, without a line about packages."""

    kind = Letters

    @pytest.mark.parametrize(
        "check",
        [
            pytest.param(name, marks=pytest.mark.nightly if name in MANY_EPISODES else ())
            for name in AUDIT_CHECKS
        ],
    )
    def test_audit(self, audited: AuditedEnv, check: str) -> None:
        super().test_audit(audited, check)


class Plain(Env):
    """Declares nothing."""

    id: ClassVar[str] = "plain"

    def setup(self, task: Task) -> str:
        return ""

    def apply(self, action: str) -> Any:
        raise NotImplementedError

    @check()
    def good(self) -> bool:
        return True


def declaring(**names: Any) -> type[Env]:
    return type("Declaring", (Plain,), {"__module__": __name__, **names})


def test_a_class_that_declares_nothing_takes_a_backend_as_it_is(backend: SandboxBackend) -> None:
    assert Plain.equip(backend) is backend
    assert CodeEditorEnv.equip(backend) is backend


def test_a_class_equips_a_backend_once_and_keeps_what_it_holds(backend: SandboxBackend) -> None:
    equipped = Letters.equip(backend)
    assert equipped.contents == declared_contents(Letters)
    assert Letters.equip(equipped) is equipped
    assert equipped.quota == backend.quota
    more = equipped.with_contents(equipped.contents | Contents(("markupsafe",)))
    assert Letters.equip(more) is more


def test_modules_are_imported_ahead_where_the_sandbox_can() -> None:
    kind = declaring(packages=["six==1.17.0"], preload=["six"])
    program = "import sys; print('six' in sys.modules)"
    for name, is_ahead in (("zygote", b"True\n"), ("bubblewrap", b"False\n")):
        with kind.equip(sandbox_backend(name)).create() as sandbox:
            done = sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", program])
            assert done.stdout == is_ahead
            done = sandbox.run([sandbox.python, "-c", program])  # another form starts a new interpreter
            assert done.stdout == b"False\n"


def test_modules_of_the_standard_library_need_no_packages(backend: SandboxBackend) -> None:
    kind = declaring(preload=["http.server"])
    equipped = kind.equip(backend)
    assert kind.equip(equipped) is equipped
    assert kind.equip(captured := CapturingBackend(equipped)) is captured
    with equipped.create() as sandbox:
        program = "import sys; print('http.server' in sys.modules)"
        assert sandbox.run([sandbox.python, *PYTHON_OPTIONS, "-c", program]).stdout == b"True\n"
    plain = kind.equip(ProcessBackend())  # imports nothing ahead, and holds what it should
    assert kind.equip(plain) is plain


def test_data_is_found_beside_the_class_that_names_it() -> None:
    folder = Path(letters_env.__file__).parent / "letters_data"
    assert data_paths(Letters) == [folder / "letter.txt", folder / "stamp.bin"]
    assert data_paths(type("Other", (Letters,), {"__module__": __name__})) == data_paths(Letters)


def test_an_image_layout_lies_beside_the_class_too() -> None:
    folder = Path(letters_env.__file__).parent / "letters_data"
    beside = declaring(image="oci:letters_data", __module__=letters_env.__name__)
    assert declared_contents(beside).image == f"oci:{folder}"
    assert declared_contents(declaring(image="python:3.12")).image == "python:3.12"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"packages": "pandas"},
            r"Declaring.packages is 'pandas'; expected a list such as \['pandas==2.3.3'\]",
        ),
        ({"toolchains": {"node"}}, r"Declaring.toolchains is \{'node'\}; expected a list such as \['node'\]"),
        ({"packages": [1]}, r"Declaring.packages is \[1\]"),
        (
            {"data": ["nowhere.csv"]},
            r"Declaring.data names 'nowhere.csv'; expected a file or folder below .*tests",
        ),
        ({"data": ["../pyproject.toml"]}, r"names '../pyproject.toml'; expected a file or folder below"),
        ({"data": ["/etc/passwd"]}, r"names '/etc/passwd'; expected"),
        ({"data": ["."]}, r"names '.'; expected"),
        ({"image": "oci:nowhere"}, r"Declaring.image names 'nowhere'; expected a file or folder below"),
        ({"image": ["python"]}, r"Declaring.image is \['python'\]; expected a name such as"),
    ],
)
def test_a_malformed_declaration_is_named(
    backend: SandboxBackend, names: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        declaring(**names)(tasks=[Task("t", "train", "", {})], sandbox=backend)


def test_data_needs_a_module_with_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("Typed", (Plain,), {"data": ["a.csv"], "__module__": "__main__"})
    monkeypatch.delattr("__main__.__file__", raising=False)
    with pytest.raises(ContractError, match=r"Typed.data names files beside its module, which has no file"):
        data_paths(kind)


def test_a_sandbox_that_cannot_hold_it_is_refused_before_an_episode(backend: SandboxBackend) -> None:
    tasks = [Task("t", "train", "", {})]
    with pytest.raises(UsageError, match=r"'process' cannot hold 'jinja2==3.1.6'"):
        Letters(tasks=tasks, sandbox=ProcessBackend())
    with pytest.raises(UsageError, match="only docker can; use --sandbox docker"):
        declaring(image="python:3.12-slim")(tasks=tasks, sandbox=backend)


def test_tasks_made_checked_and_played_by_name_have_the_packages(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "environment", lambda name: Letters)
    tasks = load_tasks(Letters, None, "train", backend, Silent())
    assert validate_tasks(Letters, tasks, backend, Silent(), seed=0) == []
    env = registry.make("letters", sandbox=backend)
    env.reset(seed=1)
    action, last = Letters.oracle(env.task)
    assert env.step(action)[0] == "Written."
    assert env.step(last)[1] == 1
    env.close()


def test_a_report_names_what_the_sandboxes_held(
    backend: SandboxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "environment", lambda name: Letters)
    found = evaluate("letters", agent="oracle", samples=1, sandbox=backend, root=tmp_path, display="quiet")
    lock = Letters.equip(backend).lock
    [page] = tmp_path.rglob("report.md")
    assert "| In the sandbox | jinja2 3.1.6, markupsafe 3" in page.read_text()
    assert lock.digest[:12] in page.read_text()
    assert found.solve_rate.estimate == 1


def test_a_players_files_are_captured_with_packages_too(backend: SandboxBackend) -> None:
    capturing = CapturingBackend(Letters.equip(backend))
    env = Letters(tasks=load_tasks(Letters, None, "train", capturing, Silent()), sandbox=capturing)
    capturing.capturing = True
    env.reset(seed=1)
    capturing.paths = env.task.files
    env.close()
    assert capturing.files == {"photo.bin": bytes(range(256)), "note.txt": b"Be kind."}
