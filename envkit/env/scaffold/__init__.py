"""Create the package of `envkit new`: a small working environment to start from."""

from __future__ import annotations

import keyword
import re
import secrets
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import jinja2

from envkit.env import registry
from envkit.errors import StoreError, UsageError
from envkit.runtime.store import sync_folder

#: What the small application of a new package is: a program that is run for each action, or a web service.
Application = Literal["program", "service"]
#: Application -> what an agent has to do with it.
_DESCRIPTIONS: Final[Mapping[Application, str]] = {
    "program": "sort out the tickets of a help desk",
    "service": "cancel some of a shop's orders",
}
#: Normalized names of distributions.
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Folders beside the package, now or after a build.
_TAKEN: Final = {"build", "dist", "tests"}


def commands(name: str, python: str = "python") -> tuple[str, ...]:
    """Return the commands to run next, inside the new folder.

    Args:
        name: of the environment.
        python: shell command of the Python that envkit is installed for.
    """
    return (
        f"{python} -m pip install --editable '.[test]'",
        f"{python} -m pytest",
        f"envkit play {name}",
        f"envkit tasks check --env {name}",
        f"envkit audit {name}",
    )


def check_name(name: str) -> None:
    """Check that a name suits a distribution, a package and an environment.

    Raises:
        UsageError: it does not; the message says why.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for an environment; expected a lower-case letter, then letters, digits and "
            "single hyphens, such as ticket-desk"
        )
    if name in registry.names("environment"):
        raise UsageError(f"environment {name} is installed already, see: envkit list; choose another name")
    package = name.replace("-", "_")
    if keyword.iskeyword(package):
        raise UsageError(f"{name} is a Python keyword, so no package can have that name; choose another")
    if package in _TAKEN:
        raise UsageError(f"the folder {package}/ is needed for something else; choose another name")
    if find_spec(package) is not None:
        raise UsageError(
            f"a module {package} is installed already and would hide this one; choose another name"
        )


def render(name: str, application: Application = "program") -> dict[str, str]:
    """Render all files of the package: path -> text. The name must pass `check_name`.

    Templates lie as the files will, in the folder ``shared`` and in one for each application. ``PACKAGE``
    stands for the package's name.
    """
    package = name.replace("-", "_")
    variables = {
        "name": name,
        "package": package,
        "title": name.replace("-", " ").capitalize(),
        "kind": "".join(part.capitalize() for part in name.split("-")) + "Env",
        "commands": commands(name),
        "task": _DESCRIPTIONS[application],
        "data": ["service.py"] if application == "service" else [],
    }
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("envkit.env.scaffold", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    files: dict[str, str] = {}
    for template in templates.list_templates(extensions=["j2"]):
        folder, _, path = template.partition("/")
        if folder in ("shared", application):
            to = path.removesuffix(".j2").replace("PACKAGE", package)
            files[to] = templates.get_template(template).render(variables)
    return files


def create(name: str, into: Path, application: Application = "program") -> Path:
    """Create the folder ``into/name`` around an application, completely or not at all.

    Raises:
        UsageError: the name is refused, see `check_name`; ``into`` is no folder; or the new folder exists.
        StoreError: the folder cannot be written.
    """
    check_name(name)
    folder = into / name
    files = render(name, application)
    draft = into / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        if not into.is_dir():
            raise UsageError(f"{into} is no folder; make it first: mkdir -p {into}")
        if folder.exists() or folder.is_symlink():
            raise UsageError(f"{folder} exists; choose another name or folder, nothing is overwritten")
        try:
            for path, text in files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(text, encoding="utf-8", newline="\n")
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # gone already if all went well
        sync_folder(into)
    except OSError as error:
        raise StoreError(
            f"cannot make {folder}: {error.strerror or error}; nothing was left behind"
        ) from error
    return folder
