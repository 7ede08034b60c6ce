"""Installing envkit as a wheel into a fresh virtual environment, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Makes pip use no index and build with installed packages.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command: str, cwd: Path, stdin: str = "", fails: bool = False, **variables: str) -> str:
    """Run a command and return its output; assert exit status 0, or 1 if ``fails``."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **OFFLINE, "COLUMNS": "200", **variables},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == int(fails), done.stdout + done.stderr
    return done.stdout


def install(folder: Path, wanted: str, *projects: Path) -> Path:
    """Install ``wanted`` in a fresh environment below ``folder``; return the folder of its programs.

    Args:
        folder: empty but for ``projects``.
        wanted: the requirement to install beside envkit; its dependencies must be installed here.
        projects: folders to build wheels from, beside envkit's.
    """
    source = folder / "source"  # a copy, so that building leaves no files in the repository
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for part in project["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", *map(str, (source, *projects)), cwd=folder)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    # Instead of downloads: links to all packages installed here except envkit.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "envkit" not in path.name and path.name != "__pycache__":
            (packages / path.name).symlink_to(path)
    wheels = dict.fromkeys(("envkit-rl", wanted))
    run(*pip, "--python", str(python), "install", "--find-links", "wheels", *wheels, cwd=folder)
    file = run(str(python), "-c", "import envkit; print(envkit.__file__)", cwd=folder)
    assert file.strip() == str(packages / "envkit" / "__init__.py")
    return python.parent
