"""Certificates: what an audit found, bound to the code that it looked at."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from envkit.audit.runner import Finding
from envkit.env import Env
from envkit.errors import StoreError, UsageError
from envkit.models import cache_dir
from envkit.store import write_atomic

_SCHEMA: Final = 1
#: File in an environment's own package, for what is installed with its certificate.
SHIPPED: Final = "certificate.json"
#: Files of an environment's package that may decide what it does.
_SUFFIXES: Final = (".py", ".json", ".jsonl", ".toml", ".txt", ".sql", ".csv")
#: Files of envkit that make rewards of what an environment finds; mining draws the hidden calls.
_GRADERS: Final = ("checks.py", "env.py", "tools.py", "grading/*.py", "inputs/**/*.py", "mining/**/*.py")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of an audit.

    Args:
        environment: its name.
        digest: of its code, see `content_digest`.
        created: date, ``YYYY-MM-DD``.
        sandbox: backend that it was audited in.
        tasks: how many tasks there were.
        findings: of every check, in order.
        isolation: as the environment declares it.
    """

    environment: str
    digest: str
    created: str
    sandbox: str
    tasks: int
    findings: Sequence[Finding]
    isolation: str = "sandbox"

    @property
    def passed(self) -> bool:
        """Whether no check has found a fault."""
        return all(finding.ok is not False for finding in self.findings)

    @property
    def seal(self) -> str:
        """SHA-256 of the whole certificate, as hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"schema": _SCHEMA, "passed": self.passed, **asdict(self)}, indent=2) + "\n"

    def markdown(self) -> str:
        """A table for people."""
        marks = {True: "pass", False: "FAIL", None: "n/a"}
        rows = [
            f"| {finding.check} | {marks[finding.ok]} | {_cell(finding.detail)} |"
            for finding in self.findings
        ]
        return "\n".join(
            [
                f"# Audit of {self.environment}",
                "",
                f"{'Passed' if self.passed else 'FAILED'} on {self.created}, in sandbox {self.sandbox}, "
                f"{self.tasks} tasks, isolation {self.isolation}. Code {self.digest[:12]}.",
                "",
                "| check | result | found |",
                "| --- | --- | --- |",
                *rows,
                "",
            ]
        )


def content_digest(kind: type[Env]) -> str:
    """SHA-256 over an environment's code and what of envkit makes rewards of it.

    The code is its whole package, with all packages around it, or its one file; and those of the environments
    that it inherits from.
    """
    found = hashlib.sha256(version("envkit").encode())
    core = _file(Env).parent
    files = {(core, path) for pattern in _GRADERS for path in core.glob(pattern)}
    for base in kind.__mro__:
        if issubclass(base, Env) and base is not Env:
            files |= _own(base)
    # In an order that depends on nothing but names within folders, and contents.
    for name, data in sorted((path.relative_to(top).as_posix(), path.read_bytes()) for top, path in files):
        if name.rpartition("/")[2] != SHIPPED:
            found.update(f"{name} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _file(kind: type[Env]) -> Path:
    return Path(inspect.getfile(kind)).resolve()


def _own(kind: type[Env]) -> set[tuple[Path, Path]]:
    """The files of a class's code, each with the folder that it belongs to."""
    file = _file(kind)
    top = file.parent
    if not (top / "__init__.py").exists():
        return {(top, file)}
    # Ours lie in envkit, but are a folder each.
    while not kind.__module__.startswith("envkit.") and (top.parent / "__init__.py").exists():
        top = top.parent
    return {(top, path) for path in top.rglob("*") if path.suffix in _SUFFIXES}


def cached(kind: type[Env]) -> Path:
    """Where `envkit audit` keeps this machine's certificate of an environment."""
    return cache_dir() / "certificates" / f"{kind.id}.json"


def write(certificate: Certificate, path: Path) -> None:
    """Write it, and its table beside it as ``.md``, in place of an older one.

    Raises:
        StoreError: cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomic(path, certificate.to_json().encode())
    write_atomic(path.with_suffix(".md"), certificate.markdown().encode())


def read(path: Path) -> Certificate:
    """Read one back.

    Raises:
        UsageError: it is no certificate.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        schema = found.pop("schema")
        found.pop("passed")
        findings = [Finding(**each) for each in found.pop("findings")]
        made = Certificate(**found, findings=findings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a certificate ({error}); make it again with: envkit audit") from error
    if schema != _SCHEMA:
        raise UsageError(f"{path}: schema {schema}, expected {_SCHEMA}; make it again with: envkit audit")
    return made


def valid(kind: type[Env]) -> Certificate | str:
    """An environment's certificate, or why none is valid here; of the same code, one that failed decides."""
    digest = content_digest(kind)
    paths = [
        path
        for path in (Path(inspect.getfile(kind)).resolve().with_name(SHIPPED), cached(kind))
        if path.exists()
    ]
    if not paths:
        return "it was never audited"
    faults: list[str] = []
    sound: Certificate | None = None
    for path in paths:
        try:
            certificate = read(path)
        except UsageError as error:
            faults.append(str(error))
            continue
        if certificate.environment != kind.id:
            continue  # two environments may share a folder
        if certificate.digest != digest:
            faults.append(f"its code has changed since it was audited on {certificate.created}")
        elif fault := next((one for one in certificate.findings if one.ok is False), None):
            return f"it has failed its audit: {fault.check}: {fault.detail}"
        else:
            sound = sound or certificate
    return sound or (faults[-1] if faults else "it was never audited")


def certificate_problem(kind: type[Env]) -> str:
    """Why an environment has no valid certificate here; empty if it has one."""
    found = valid(kind)
    return found if isinstance(found, str) else ""


def require_certified(kind: type[Env]) -> None:
    """Refuse an environment that has no valid certificate.

    Raises:
        UsageError: says why, and what to do.
    """
    if fault := certificate_problem(kind):
        raise UsageError(
            f"environment {kind.id} has no valid certificate: {fault}; run: envkit audit {kind.id}, "
            "or train with --unaudited"
        )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
