"""Reading a checkout without running it, and refusing one that cannot be mined with the reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shop_checkout import FILES, lay_out

from envkit.environments.code_editor.mining.suite.checkout import (
    MAX_BYTES,
    SETTINGS,
    read_checkout,
    require_imports,
)
from envkit.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_code_and_tests_are_read_separately_without_the_src_folder(tmp_path: Path) -> None:
    found = read_checkout(lay_out(tmp_path))
    assert (found.name, found.version, found.commit, found.license) == ("shop", "2.1", "", "LICENSE")
    code = {"shop/__init__.py", "shop/basket.py", "shop/prices.py", "shop/stock.py", "shop/data/rates.txt"}
    assert set(found.code) == code
    tests = {"tests/__init__.py", "tests/helpers.py", "tests/test_shop.py", "tests/test_stock.py"}
    assert set(found.tests) == {*tests, SETTINGS}
    assert found.origins["shop/prices.py"] == "src/shop/prices.py"
    assert found.text("shop/__init__.py") == FILES["src/shop/__init__.py"]
    assert found.closure(["shop.basket"]) == {"shop", "shop.basket", "shop.prices", "shop.stock"}
    assert found.closure(["shop.stock"]) == {"shop", "shop.stock"}
    assert "tests.helpers" in found.tested


def test_only_settings_that_affect_outcomes_are_kept(tmp_path: Path) -> None:
    kept = read_checkout(lay_out(tmp_path)).tests[SETTINGS]
    assert "--cov" not in kept
    assert kept == (
        "[pytest]\nfilterwarnings =\n    error\nmarkers =\n    slow: takes long\npythonpath =\n    .\n"
        "addopts =\n    --continue-on-collection-errors\n"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytest.ini", "[pytest]\nxfail_strict = true\ntestpaths = checks\n"),
        ("tox.ini", "[pytest]\nxfail_strict = true\ntestpaths = checks\n"),
        ("setup.cfg", "[tool:pytest]\nxfail_strict = true\ntestpaths = checks\n"),
        ("pytest.toml", '[pytest]\nxfail_strict = true\ntestpaths = ["checks"]\n'),
        (".pytest.toml", '[pytest]\nxfail_strict = true\ntestpaths = ["checks"]\n'),
        ("pyproject.toml", '[tool.pytest]\nxfail_strict = true\ntestpaths = ["checks"]\n'),
        ("pyproject.toml", '[tool.pytest.ini_options]\nxfail_strict = true\ntestpaths = ["checks"]\n'),
    ],
)
def test_settings_are_found_where_pytest_finds_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "one.py").write_text("def f():\n    return 1\n")
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "test_one.py").write_text("import one\n")
    (tmp_path / name).write_text(text)
    found = read_checkout(tmp_path)
    assert set(found.code) == {"one.py"}
    assert set(found.tests) == {"checks/test_one.py", SETTINGS}
    assert "xfail_strict =\n    " in found.tests[SETTINGS]
    assert "pythonpath =\n    .\n    checks\n" in found.tests[SETTINGS]


def test_the_projects_own_configuration_does_not_stand_before_the_kept_settings(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def f():\n    return 1\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\ntestpaths = ["."]\naddopts = "--cov"\n'
    )
    for path, text in (
        ("tests/test_one.py", "import one\n"),
        ("tests/pytest.ini", "[pytest]\naddopts = --cov\n"),
        ("tests/setup.cfg", "[metadata]\nname = one\n"),
        ("tests/pytest_helper.py", ""),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    found = read_checkout(tmp_path)
    assert set(found.tests) == {
        *("tests/test_one.py", "tests/setup.cfg", "tests/pytest_helper.py", SETTINGS),
    }
    assert "--cov" not in found.tests[SETTINGS]


@pytest.mark.parametrize("settings", ["", "[pytest]\ntestpaths = one\n"])
def test_tests_inside_a_package_are_not_code(tmp_path: Path, settings: str) -> None:
    (tmp_path / "one" / "tests").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text(settings)
    for path in ("one/__init__.py", "one/tests/__init__.py", "one/tests/test_it.py"):
        (tmp_path / path).write_text("")
    found = read_checkout(tmp_path)
    assert set(found.code) == {"one/__init__.py"}
    assert set(found.tests) == {"one/tests/__init__.py", "one/tests/test_it.py", SETTINGS}


def test_symlinks_caches_and_binary_files_are_left_out(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "root")
    (tmp_path / "secret.py").write_text("SECRET = 1\n")
    (root / "src/shop/linked.py").symlink_to(tmp_path / "secret.py")
    (root / "src/shop/folder").symlink_to(tmp_path)
    (root / "src/shop/__pycache__").mkdir()
    (root / "src/shop/__pycache__/prices.py").write_text("")
    (root / "src/shop/picture.png").write_bytes(b"\x89PNG\xff")
    assert set(read_checkout(root).code) == {path.removeprefix("src/") for path in FILES if "src/" in path}


def test_files_behind_a_symlink_are_not_read_as_tests(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "root")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "test_secret.py").write_text("SECRET = 1\n")
    (root / "linked").symlink_to(tmp_path)
    (root / "pytest.ini").write_text("[pytest]\ntestpaths = tests linked/elsewhere\n")
    assert not [path for path in read_checkout(root).tests if "secret" in path]


def write_head(root: Path, reference: str) -> None:
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    (root / ".git" / "HEAD").write_text(f"{reference}\n")


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_head(root, COMMIT)
    assert read_checkout(root).commit == COMMIT
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert read_checkout(root).commit == ""
    (root / ".git" / "packed-refs").write_text(f"# pack-refs\n{COMMIT[::-1]} refs/heads/main\n")
    assert read_checkout(root).commit == COMMIT[::-1]
    (root / ".git" / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert read_checkout(root).commit == COMMIT


def test_a_reference_outside_the_git_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for tasks\n")
    root = lay_out(tmp_path / "root")
    write_head(root, "ref: ../../secret")
    assert read_checkout(root).commit == ""


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "src").rename(root / "docs"), "holds no package to mine"),
        (lambda root: (root / "tests").rename(root / "checks"), "holds no pytest suite"),
        (lambda root: (root / "pyproject.toml").write_text("[torn"), r"pyproject.toml cannot be read"),
        (lambda root: (root / "pytest.ini").write_text("torn"), r"pytest.ini cannot be read"),
        (
            lambda root: (root / "pytest.ini").write_text("[pytest]\ntestpaths = ../x"),
            "names ../x, which lies",
        ),
        pytest.param(
            lambda root: (root / "pytest.ini").write_text("[pytest]\ntestpaths = tests/**x"),
            r"'tests/\*\*x', which is no pattern",
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 knows this pattern"),
        ),
        (lambda root: (root / "pyproject.toml").write_text("tool = 3"), "'tool' is int, expected a table"),
        (
            lambda root: [(root / f"src/shop/{i}.txt").write_text("x" * (MAX_BYTES // 8)) for i in range(9)],
            r"holds 1,\d{3},\d{3} bytes of code and tests",
        ),
    ],
)
def test_an_unusable_checkout_is_refused_with_the_reason(
    tmp_path: Path, damage: Damage, message: str
) -> None:
    damage(lay_out(tmp_path))
    with pytest.raises(UsageError, match=message) as raised:
        read_checkout(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        read_checkout(tmp_path / "absent")


def test_an_import_missing_from_the_sandbox_is_named_with_the_remedy(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"src/shop/basket.py": "import gymnasium.spaces\n"})
    with pytest.raises(UsageError, match=r"src/shop/basket.py imports 'gymnasium'.*add --with gymnasium"):
        require_imports(read_checkout(root), ["pytest"])
    require_imports(read_checkout(root), ["pytest", "gymnasium"])


def test_an_import_that_is_not_installed_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"tests/test_more.py": "from nowhere.at_all import x\n"})
    with pytest.raises(UsageError, match=r"tests/test_more.py imports 'nowhere'.*--with and the package"):
        require_imports(read_checkout(root), ["pytest"])


def test_a_package_that_the_sandbox_already_contains_is_refused(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"src/pluggy/__init__.py": ""})
    with pytest.raises(UsageError, match="shop holds 'pluggy', which its tests' sandbox holds too"):
        require_imports(read_checkout(root), ["pluggy", "pytest"])


def test_unused_and_optional_imports_are_not_required(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "src/shop/unused.py": "import gymnasium\n",
            "src/shop/stock.py": "try:\n    import gymnasium\nexcept ImportError:\n    pass\n",
        },
    )
    require_imports(read_checkout(root), ["pytest"])
