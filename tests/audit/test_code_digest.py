"""The digest that binds certificates to code: what changes it, and what does not."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import importlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import envkit
from envkit import CommandEnv, Env, GymnasiumEnv, UsageError
from envkit.audit import canonical_source, code_digest
from envkit.audit.code_digest import VERDICT_MODULES, VERDICT_PACKAGES, content_digest
from envkit.env import registry
from envkit.env.wrappers.mcp import McpEnv

ROOT = Path(__file__).parents[2]
OURS = ("code-editor", "service-desk", "sql-desk")
#: Parts of envkit that decide no verdict: no module of theirs is in `VERDICT_MODULES`.
OTHER_PARTS = {
    *("agent", "agents", "audit", "cli", "engine", "measure", "models", "openai_api", "rollout", "runs"),
    *("sandboxes", "serving", "studies", "training"),
}
#: Parts of which some modules decide verdicts.
VERDICT_PARTS = {"env", "environments", "errors", "runtime", "sandbox", "types"}


# Files of an environment's own package.

BASE = '''"""An environment."""
from envkit import Env


class Made(Env):
    """Says hello."""

    id = "made"

    def setup(self, task):
        return "hello"  # to whom?
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``wares`` with an environment in ``wares.envs.made``, importable."""
    folder = tmp_path / "wares"
    (folder / "envs").mkdir(parents=True)
    for path, text in {
        "__init__.py": "",
        "envs/__init__.py": "",
        "envs/made.py": BASE,
        "app.js": "1",
    }.items():
        (folder / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules(monkeypatch)
    return folder


def forget_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wares"]:
        monkeypatch.delitem(sys.modules, name)


def loaded(module: str) -> type[Env]:
    importlib.invalidate_caches()
    return importlib.import_module(module).Made


CHANGES: dict[str, tuple[str, Callable[[str], str], bool]] = {
    "a comment": ("envs/made.py", lambda text: text.replace("# to whom?", "# to all"), False),
    "a docstring": ("envs/made.py", lambda text: text.replace("Says hello.", "Greets."), False),
    "a module's docstring": ("envs/made.py", lambda text: text.replace("An environment.", "Mine."), False),
    "formatting": ("envs/made.py", lambda text: text.replace('"hello"', "(\n            'hello')\n"), False),
    "a text": ("envs/made.py", lambda text: text.replace('"hello"', '"Hello"'), True),
    "a default": ("envs/made.py", lambda text: text.replace("(self, task)", "(self, task=None)"), True),
    "a new module": ("envs/more.py", lambda text: "x = 1\n", True),
    "a module above": ("__init__.py", lambda text: "x = 1\n", True),
    "a data file": ("app.js", lambda text: "2", True),
    "a certificate": ("envs/certificate.json", lambda text: "{}", False),
    "a document": ("README.md", lambda text: "Read me.", False),
    "a prompt": ("prompts/system.md", lambda text: "You are.", True),
    "bytecode": ("envs/__pycache__/made.pyc", lambda text: "x", False),
}
NEW_FILES = ("page.html", "style.css", "data.yaml", "data.yml", "data.db", "data.sqlite", "data.xlsx", "run")


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_package(change: str, package: Path) -> None:
    kind = loaded("wares.envs.made")
    before = content_digest(kind)
    path, edit, counts = CHANGES[change]
    file = package / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(edit(file.read_text() if file.exists() else ""))
    assert (content_digest(kind) != before) is counts


@pytest.mark.parametrize("name", NEW_FILES)
def test_a_file_of_any_kind_counts(name: str, package: Path) -> None:
    kind = loaded("wares.envs.made")
    before = content_digest(kind)
    (package / name).write_bytes(b"\x00\xff")
    assert content_digest(kind) != before


def test_a_document_counts_if_the_source_names_it(package: Path) -> None:
    kind = loaded("wares.envs.made")
    (package / "envs" / "made.py").write_text(f"{BASE}\nPROMPT = 'README.md'\n")
    before = content_digest(kind)
    (package / "README.md").write_text("Say hello.")
    assert content_digest(kind) != before


def test_a_file_counts_if_an_environment_in_one_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wares.py").write_text(f"{BASE}\nWORDS = 'words.txt'\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules(monkeypatch)
    kind = loaded("wares")
    for name, counts in (("other.txt", False), ("words.txt", True)):
        before = content_digest(kind)
        (tmp_path / name).write_text("hello")
        assert (content_digest(kind) != before) is counts


SOLO = f"""{BASE}
from typing import TYPE_CHECKING
import deep.er.below
import json
from solo_helper import right
if TYPE_CHECKING:
    import solo_typed

def late():
    from wrapped_up import outer
"""
SOLO_FILES = {
    "solo_helper.py": "import solo_further\n\nTABLE = 'table.txt'\nright = 1\n",
    "solo_further.py": "right = 1\n",
    "table.txt": "1",
    "deep/er/below.py": "from . import beside\n",
    "deep/er/beside.py": "right = 1\n",
    "deep/er/unused.py": "right = 1\n",
    "wrapped_up/__init__.py": "",
    "wrapped_up/inner/__init__.py": "",
    "wrapped_up/inner/words.txt": "1",
    "solo_typed.py": "right = 1\n",
    "json/notes.py": "right = 1\n",
    "another.py": "right = 1\n",
}
UNUSED = {"deep/er/unused.py", "solo_typed.py", "json/notes.py", "another.py"}


@pytest.mark.parametrize("changed", SOLO_FILES)
def test_an_environment_in_one_file_counts_with_what_it_imports_from_its_folder(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wares.py").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules(monkeypatch)
    kind = loaded("wares")
    (tmp_path / "wares.py").write_text(SOLO)
    for path, text in SOLO_FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = content_digest(kind)
    (tmp_path / changed).write_text("right = 2\n")
    assert (content_digest(kind) != before) is (changed not in UNUSED)


def test_a_module_in_a_folder_that_is_no_package_counts_with_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wares").mkdir()
    (tmp_path / "wares/solo.py").write_text(f"{BASE}\nfrom wares.first import x\nfrom .second import x\n")
    (tmp_path / "wares/first.py").write_text("x = 1\n")
    (tmp_path / "wares/second.py").write_text("x = 1\ndef late():\n    from ....elsewhere import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules(monkeypatch)
    kind = loaded("wares.solo")
    digests = [content_digest(kind)]
    for name in ("first", "second"):
        (tmp_path / f"wares/{name}.py").write_text("x = 2\n")
        digests.append(content_digest(kind))
    assert len({*digests}) == 3
    forget_modules(monkeypatch)


def test_an_installed_file_counts_with_what_it_was_installed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wares.py").write_text(f"{BASE}\nimport wares_helper, other_project\n")
    for name in ("wares_helper", "other_project"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    for project, modules in (("wares", "wares\nwares_helper\n"), ("other", "other_project\n")):
        about = tmp_path / f"{project}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        (about / "top_level.txt").write_text(modules)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules(monkeypatch)
    kind = loaded("wares")
    digests = [content_digest(kind)]
    for name in ("other_project", "wares_helper"):
        (tmp_path / f"{name}.py").write_text("x = 2\n")
        digests.append(content_digest(kind))
    assert digests[0] == digests[1] != digests[2]


def test_what_lies_beside_a_package_does_not_count(package: Path) -> None:
    kind = loaded("wares.envs.made")
    before = content_digest(kind)
    (package.parent / "other.py").write_text("x = 1\n")
    assert content_digest(kind) == before


def test_a_package_that_moved_has_the_same_digest(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_digest(loaded("wares.envs.made"))
    other = package.parent / "elsewhere"
    shutil.copytree(package, other / "wares")
    monkeypatch.syspath_prepend(other)
    forget_modules(monkeypatch)
    kind = loaded("wares.envs.made")
    assert Path(str(sys.modules[kind.__module__].__file__)).is_relative_to(other)
    assert content_digest(kind) == before


def test_an_environment_in_one_file_counts_with_the_one_that_it_inherits_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lone_base.py").write_text(BASE)
    (tmp_path / "lone.py").write_text("import lone_base\n\n\nclass Made(lone_base.Made):\n    pass\n")
    kind = loaded("lone")
    digests = [content_digest(kind)]
    for name in ("lone_base.py", "lone.py"):
        (tmp_path / name).write_text("x = 1\n")
        digests.append(content_digest(kind))
    assert len({*digests}) == 3


def test_declared_data_counts_even_if_it_is_named_like_a_document(package: Path) -> None:
    kind = loaded("wares.envs.made")
    (package / "envs/README.md").write_text("1")
    kind.data = ["README.md"]
    before = content_digest(kind)
    (package / "envs/README.md").write_text("2")
    assert content_digest(kind) != before


def test_declared_data_of_an_environment_in_one_file_counts_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "alone.py").write_text(BASE)
    (tmp_path / "tables").mkdir()
    for name in ("tables/a.csv", "tables/b.csv", "c.csv"):
        (tmp_path / name).write_text("1")
    kind = loaded("alone")
    kind.data = ["tables"]
    digests = [content_digest(kind)]
    for name in ("c.csv", "tables/a.csv", "tables/b.csv"):
        (tmp_path / name).write_text("2")
        digests.append(content_digest(kind))
    assert [one == digests[0] for one in digests] == [True, True, False, False]
    assert digests[2] != digests[3]


@pytest.mark.parametrize(
    ("base", "module"),
    [
        (CommandEnv, "envkit/env/wrappers/command.py"),
        (GymnasiumEnv, "envkit/env/wrappers/gymnasium.py"),
        (McpEnv, "envkit/env/wrappers/mcp/__init__.py"),
    ],
)
def test_of_a_base_class_of_envkit_its_module_counts(base: type[Env], module: str) -> None:
    assert [name for name, _ in code_digest.package_files(base)] == [module]


def test_an_image_layout_of_an_environment_in_one_file_counts(package: Path) -> None:
    (package.parent / "single.py").write_text(
        BASE.replace('id = "made"', 'id = "made"; image = "oci:layout"')
    )
    (package.parent / "layout").mkdir()
    (package.parent / "layout" / "index.json").write_text("1")
    kind = loaded("single")
    before = content_digest(kind)
    (package.parent / "layout" / "index.json").write_text("2")
    assert content_digest(kind) != before


def test_a_package_without_bound_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = loaded("wares.envs.made")
    monkeypatch.setattr(code_digest, "_MAX_BYTES", 2**20)
    with open(package / "data.bin", "wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(UsageError, match=r"environment made: .*wares holds more than .* 1 MiB.*; use a part"):
        content_digest(kind)
    (package / "data.bin").unlink()
    monkeypatch.setattr(code_digest, "_MAX_FILES", 3)
    with pytest.raises(UsageError, match="holds more than 3 files"):
        content_digest(kind)


# Modules of envkit.


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Edit a file of the repository as `content_digest` reads it."""
    edits: dict[Path, tuple[str, str]] = {}
    read = Path.read_bytes

    def read_edited(path: Path) -> bytes:
        data = read(path)
        if (resolved := path.resolve()) in edits:
            old, new = edits[resolved]
            assert old.encode() in data
            data = data.replace(old.encode(), new.encode(), 1)
        return data

    monkeypatch.setattr(Path, "read_bytes", read_edited)

    def edit(path: str, old: str, new: str) -> None:
        edits[(ROOT / path).resolve()] = (old, new)

    return edit


def digests() -> dict[str, str]:
    return {name: content_digest(registry.environment(name)) for name in OURS}


@pytest.mark.parametrize(
    ("path", "old", "new", "changes"),
    [
        ("environments/code_editor/graders/suite.py", " == ", " != ", {"code-editor"}),
        ("environments/code_editor/graders/suite.py", '"""', '"""Edited. ', set()),
        ("envkit/env/compare.py", " == ", " != ", {*OURS} - {"service-desk"}),
        ("envkit/sandbox/programs/worker.py", "def encode", "x = 1\n\n\ndef encode", {"code-editor"}),
        ("envkit/sandbox/programs/suite_worker.py", "import ", "import sys\nimport ", {"code-editor"}),
        ("environments/code_editor/inputs/perturb.py", "\n\n\ndef ", "\nx = 1\n\n\ndef ", {"code-editor"}),
        ("envkit/env/checks.py", "total <= 0", "total < 0", {*OURS}),
        ("envkit/env/base.py", "self.__turns += 1", "self.__turns += 2", {*OURS}),
        ("environments/code_editor/mining/mutations/search.py", " == ", " != ", {"code-editor"}),
        ("environments/code_editor/mining/miner.py", "\n\n\ndef ", "\nx = 1\n\n\ndef ", {"code-editor"}),
        ("envkit/rollout.py", "\n\n\ndef ", "\nx = 1\n\n\ndef ", set()),
    ],
)
def test_an_edit_of_envkit_changes_the_environments_that_use_it(
    path: str, old: str, new: str, changes: set[str], edited: Callable[[str, str, str], None]
) -> None:
    before = digests()
    edited(path, old, new)
    after = digests()
    assert {name for name in OURS if after[name] != before[name]} == changes


def test_each_part_of_envkit_is_known_to_decide_verdicts_or_not() -> None:
    folder = Path(envkit.__file__).parent
    parts = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name.partition(".")[0] for name in (*VERDICT_MODULES, *VERDICT_PACKAGES)} == VERDICT_PARTS
    for name in VERDICT_MODULES:
        assert importlib.util.find_spec(f"envkit.{name}"), name
    assert parts - {"__init__"} | {"agents", "environments", "sandboxes"} == VERDICT_PARTS | OTHER_PARTS


@pytest.mark.parametrize(
    ("statement", "module"),
    [
        ("from envkit import Env", "envkit.env.base"),
        ("from envkit import Grade", "envkit.env.grade"),
        ("from envkit.env.compare import canonical", "envkit.env.compare"),
        (
            "from envkit.environments.code_editor.graders import suite",
            "envkit.environments.code_editor.graders.suite",
        ),
        (
            "import envkit.environments.code_editor.graders.suite",
            "envkit.environments.code_editor.graders.suite",
        ),
        ("import envkit", "envkit.env.base"),
        ("from envkit import *", "envkit.env.base"),
        (
            "def late():\n    from envkit.environments.code_editor.graders.suite import PYTEST",
            "envkit.environments.code_editor.graders.suite",
        ),
    ],
)
def test_imports_lead_to_the_module_that_defines_a_name(statement: str, module: str, tmp_path: Path) -> None:
    file = tmp_path / "wares.py"
    file.write_text(statement)
    found = {name for name, _ in code_digest._imported_by([file])}
    assert f"{module.replace('.', '/')}.py" in found


def test_imports_for_type_checking_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "wares.py"
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from envkit import Env\n")
    assert [*code_digest._imported_by([file])] == []


def test_the_files_that_count_are_installed_too() -> None:
    """A file that a wheel leaves out would make a shipped certificate invalid where it is installed."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    patterns = ["*.py", *data]
    for name in OURS:
        for file, _ in code_digest.package_files(registry.environment(name)):
            assert any(fnmatch.fnmatch(file, pattern) or file.endswith(pattern) for pattern in patterns), file


# Python source, whatever the version.

EVERYTHING = r'''"""Docstring."""
from __future__ import annotations
import a.b as c
from . import d
from ..e import (f, g as h,)


@decorated(1, *args, key=b"\x00\xff", **kwargs)
class Kind(Base, metaclass=Meta):
    """Docstring."""

    field: int | None = None
    huge = 123456789012345678901234567890 ** 0xFF + 1_000j + 1e400 - 5
    torn = "\ud800" + u"é" + 'a' "b"

    @tool(ends=True)
    def method(self, a, /, b: list[int] = [1], *c, d=..., **e) -> None:
        """An agent reads this."""
        return lambda x, *y, z=1: (x := {**a, "k": [*b]})


async def play(x):
    """Docstring."""
    async with x as y, z: pass
    async for i in x: await i
    return [i async for i in x if i if not i for j in {k: v for k, v in i}]


def text(x, width):
    return f"a{x!r:>{width}}b" f"{x=}" "c" f"{{}}{x:%Y-%m}" rf"\d{x}{'q'}" f""


match x:
    case {"a": [1, *rest], **more} | Kind(b=2) as whole if whole: ...
    case -1 | None | "s" | (1 + 2j): pass
    case _: pass
try:
    pass
except* (A, B) as error:
    raise error from None
else:
    del x[1:2, ..., ::3], y.z
finally:
    global q
    assert 1 < 2 <= 3 is not None not in (), "no"
while not (yield): break
else: x = y = z, = *w, -1 if x and y or z else ~x @ y // z << 1
print(*a, end="")
'''
EVERYTHING_SHA256 = "69893805879bf436f3d48fc1f3e7dd6bc3c3feb0506f38e29ce2c28023e0f6df"


def test_the_form_of_source_is_the_same_in_all_versions_of_python() -> None:
    """The digest was computed under Python 3.11 and 3.13."""
    tree = canonical_source.parse(EVERYTHING.encode())
    assert tree is not None
    assert hashlib.sha256(canonical_source.canonical(tree)).hexdigest() == EVERYTHING_SHA256


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_versions_of_python_agree(version: str, tmp_path: Path) -> None:
    other = shutil.which(f"python{version}")
    if other is None or subprocess.run([other, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip(f"this machine has no python{version}")
    (tmp_path / "everything.py").write_bytes(EVERYTHING.encode())
    program = (
        "import hashlib, importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('c', sys.argv[1])\n"
        "c = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(c)\n"
        "for path in sys.argv[2:]:\n"
        "    print(hashlib.sha256(c.canonical(c.parse(pathlib.Path(path).read_bytes()))).hexdigest())\n"
    )
    sources = [tmp_path / "everything.py", *sorted((ROOT / "envkit" / "grading").glob("*.py"))]
    done = subprocess.run(
        [other, "-W", "ignore", "-c", program, canonical_source.__file__, *map(str, sources)],
        capture_output=True,
        text=True,
        check=True,
    )
    trees = [canonical_source.parse(path.read_bytes()) for path in sources]
    here = [hashlib.sha256(canonical_source.canonical(tree)).hexdigest() for tree in trees if tree]
    assert done.stdout.split() == here


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = '1'", "x = b'1'"),
        ("x = 1", "y = 1"),
        ("a < b", "a <= b"),
        ("f'{x}'", "f'{x!r}'"),
        ("f'a{x}'", "f'{x}a'"),
        ("f'{x}'", "f'{{x}}'"),
        ("x = ['a', 'b']", "x = ['ab']"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("def f(*, a=None): pass", "def f(*, a): pass"),
        ("{**a}", "{None: a}"),
        ("x = None", "x: int"),
        ("return_", "'return_'"),
        ("@tool\ndef f():\n    '''a'''", "@tool\ndef f():\n    '''b'''"),
        ("@x.tool()\ndef f():\n    '''a'''", "@x.tool()\ndef f():\n    '''b'''"),
        ("def f():\n    x = 'a'", "def f():\n    x = 'b'"),
        ("async def f(): pass", "def f(): pass"),
        ("(a for b in c)", "[a for b in c]"),
        ("import a", "from a import a"),
        ("from . import a", "from .. import a"),
    ],
)
def test_other_code_has_another_form(one: str, other: str) -> None:
    forms = [canonical_source.canonical(ast.parse(source)) for source in (one, other)]
    assert forms[0] != forms[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 'a' 'b'", "x = 'ab'"),
        ("x = 0x10", "x = 16"),
        ("f'a' f'{x}'", "f'a{x}'"),
        ("def f():\n    'a'\n    return 1", "def f():\n    return 1"),
        ("class A:\n    'a'\n    x = 1", "class A:\n    # a\n\n    x = 1"),
        ("'a'\nx = 1", "x = 1"),
        ("(x)", "x"),
        ("u'a'", "'a'"),
    ],
)
def test_equal_code_has_the_same_form(one: str, other: str) -> None:
    forms = [canonical_source.canonical(ast.parse(source)) for source in (one, other)]
    assert forms[0] == forms[1]


@pytest.mark.parametrize("source", [b"def (", b"\0", b"(" * 10_000, b"\xff"])
def test_what_is_no_python_counts_by_its_bytes(source: bytes, tmp_path: Path) -> None:
    assert canonical_source.parse(source) is None
    (tmp_path / "broken.py").write_bytes(source)
    found = code_digest._read(tmp_path / "broken.py").digest
    assert found == hashlib.sha256(source).hexdigest()
