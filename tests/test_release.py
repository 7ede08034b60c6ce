"""The files of a release are complete and pass the package index's checks."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive of the committed files."""
    folder = tmp_path_factory.mktemp("release")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    build = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return folder / "dist"


@pytest.mark.slow
@pytest.mark.parametrize("check", [("twine", "check", "--strict"), ("check-wheel-contents",)])
def test_the_package_indexs_checks_pass(release: Path, check: tuple[str, ...]) -> None:
    files = [str(path) for path in release.iterdir() if check[0] == "twine" or path.suffix == ".whl"]
    ended = subprocess.run([str(TOOLS / check[0]), *check[1:], *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_source_archive_holds_sources_and_no_tests(release: Path) -> None:
    [archive] = release.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"LICENSE", "README.md", "agents/local.py", "sandboxes/zygote.py", "envkit/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests")]
