"""Certificates: the results of audits, bound to the code that was audited.

An environment may be installed with a certificate, in a file `SHIPPED` beside its module. `envkit audit`
keeps the certificates that it makes in the cache. A certificate is valid if it passed and the code has not
changed since; see `envkit.audit.code_digest`. For a run, it must also have been made with what the run's
sandboxes hold, and with at least as many turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from envkit.audit.audited_env import Coverage
from envkit.audit.code_digest import SCHEME, content_digest
from envkit.audit.runner import Finding, prepare_audit, run_audit
from envkit.env import Env
from envkit.env.taskfile import digest
from envkit.errors import StoreError, UsageError
from envkit.runtime.cache import cache_dir
from envkit.runtime.display import Display
from envkit.runtime.files import read_json_object
from envkit.runtime.store import write_atomic
from envkit.sandbox import Lock, SandboxBackend
from envkit.types import Task

_SCHEMA: Final = 3
#: Fields that a certificate leaves out if they are empty.
_OPTIONAL: Final = ("max_turns", "lock", "contents")
#: Name of the certificate file in an environment's own package.
SHIPPED: Final = "certificate.json"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of an audit.

    Args:
        environment: its id.
        digest: of the code, see `content_digest`.
        digest_scheme: how that digest was computed.
        created: date, ``YYYY-MM-DD``.
        sandbox: name of the backend that the audit ran in.
        tasks: number of tasks that the audit chose from.
        tasks_digest: SHA-256 over these tasks, sorted by id.
        standard: True for the environment's own starter tasks in its own number of turns. False if somebody
            gave other tasks or another number of turns.
        coverage: the tasks that were played.
        findings: of every check, in order.
        isolation: as the environment declares it, see `Env.isolation`.
        max_turns: actions per episode; 0 if it does not say, for the environment's own number.
        lock: digest of what the sandboxes held beside Python, see `envkit.sandbox.Lock`; empty for nothing.
        contents: the same with its versions, as text.
    """

    environment: str
    digest: str
    digest_scheme: str
    created: str
    sandbox: str
    tasks: int
    tasks_digest: str
    standard: bool
    coverage: Coverage
    findings: Sequence[Finding]
    isolation: str = "sandbox"
    max_turns: int = 0
    lock: str = ""
    contents: str = ""

    @property
    def passed(self) -> bool:
        """True if no check found a fault."""
        return all(finding.ok is not False for finding in self.findings)

    @property
    def seal(self) -> str:
        """SHA-256 of the whole certificate, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def not_applicable(self) -> dict[str, str]:
        """Check that does not apply -> the reason."""
        return {finding.check: finding.detail for finding in self.findings if finding.ok is None}

    def to_json(self) -> str:
        made = {"passed": self.passed, "not_applicable": self.not_applicable}
        fields = {name: value for name, value in asdict(self).items() if value or name not in _OPTIONAL}
        return json.dumps({"schema": _SCHEMA, **made, **fields}, indent=2) + "\n"

    def markdown(self) -> str:
        """The certificate as a table for people."""
        marks = {True: "pass", False: "FAIL", None: "n/a"}
        rows = [
            f"| {finding.check} | {marks[finding.ok]} | {_cell(finding.detail)} |"
            for finding in self.findings
        ]
        given = "" if self.standard else " (given tasks or turns)"
        turns = f"{self.max_turns} turns an episode, " if self.max_turns else ""
        seen = self.coverage
        levels = [f"| {level} | {played} | {count} |" for level, (played, count) in seen.levels.items()]
        unknown = [f"- {check}: {_cell(reason)}" for check, reason in self.not_applicable.items()]
        return "\n".join(
            [
                f"# Audit of {self.environment}",
                "",
                f"{'Passed' if self.passed else 'FAILED'} on {self.created}, in sandbox {self.sandbox}, "
                f"{self.tasks} tasks{given}, {turns}isolation {self.isolation}. Code {self.digest[:12]}.",
                *(["", f"Sandboxes held {self.contents}."] if self.contents else []),
                "",
                "| check | result | found |",
                "| --- | --- | --- |",
                *rows,
                "",
                "## Coverage",
                "",
                f"Played: {seen.played} of {seen.tasks} tasks, from {seen.sources[0]} of {seen.sources[1]} "
                "sources.",
                *(["", "| level | played | tasks |", "| --- | --- | --- |", *levels] if levels else []),
                "",
                f"{len(unknown)} of {len(rows)} checks do not apply{':' if unknown else '.'}",
                *(["", *unknown] if unknown else []),
                "",
            ]
        )


def certify(
    kind: type[Env],
    backend: SandboxBackend,
    display: Display,
    *,
    tasks: Sequence[Task] | None = None,
    max_turns: int | None = None,
    more: Sequence[Finding] = (),
) -> Certificate:
    """Audit an environment and return the certificate, passed or not. Nothing is written.

    Args:
        kind: the environment.
        backend, display, tasks, max_turns: see `envkit.audit.runner.prepare_audit`.
        more: findings of other tests, which stand behind the audit's own.

    Raises:
        UsageError: the environment cannot pose one of the given tasks, or its code was changed meanwhile.
    """
    code = content_digest(kind)
    audited = prepare_audit(kind, backend, display, tasks=tasks, max_turns=max_turns)
    lock, turns = audited.backend.lock, audited.max_turns
    findings = run_audit(audited, display)
    if content_digest(kind) != code:  # parts of the audit run in new processes, which import the files again
        raise UsageError(f"the code of {kind.id} was changed during its audit; run: envkit audit {kind.id}")
    return Certificate(
        environment=kind.id,
        digest=code,
        digest_scheme=SCHEME,
        created=time.strftime("%Y-%m-%d"),
        sandbox=backend.name,
        tasks=len(audited.all_tasks),
        tasks_digest=digest(audited.all_tasks),
        standard=tasks is None and turns == kind.max_turns,
        coverage=audited.coverage,
        findings=[*findings, *more],
        isolation=kind.isolation,
        max_turns=turns,
        lock=lock.digest,
        contents=str(lock),
    )


def shipped(kind: type[Env]) -> Path:
    """Path of the certificate that an environment is installed with, if it is."""
    return Path(inspect.getfile(kind)).resolve().with_name(SHIPPED)


def cached(kind: type[Env]) -> Path:
    """Path of this machine's certificate of an environment, which `envkit audit` writes."""
    return cache_dir() / "certificates" / f"{kind.id}.json"


def write_cached(kind: type[Env], certificate: Certificate) -> Path | None:
    """Keep a certificate on this machine; returns its path, or ``None`` if it was not kept.

    A failure with given tasks or turns does not show that the environment is at fault. So it never takes the
    place of a valid certificate. Nor does a success with given tasks or fewer turns take the place of a
    standard audit of the same code, whatever that has found.

    Raises:
        StoreError: the file cannot be written.
    """
    if not (certificate.passed or certificate.standard) and isinstance(valid(kind), Certificate):
        return None
    with contextlib.suppress(UsageError):  # there is none, or it cannot be read
        if _says_more(read(cached(kind)), certificate):
            return None
    write(certificate, cached(kind))
    return cached(kind)


def _says_more(old: Certificate, new: Certificate) -> bool:
    """True if a standard certificate says more about the same code than one of given tasks or turns."""
    is_same_code = (old.digest, old.digest_scheme) == (new.digest, new.digest_scheme)
    if new.standard or not old.standard or not is_same_code:
        return False
    covers = new.tasks_digest == old.tasks_digest and new.max_turns >= old.max_turns
    return not (old.passed and covers)


def require_place(path: Path) -> None:
    """Raise if no certificate can be written to a path, or if other files would be replaced.

    Raises:
        UsageError: see above.
    """
    table = path.with_suffix(".md")
    if path.suffix != ".json":
        raise UsageError(f"{path}: expected a name that ends in .json; the table is written to {table}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written; expected a file in a folder that is there and is yours")
    try:
        has_earlier = "findings" in read_json_object(path)
    except FileNotFoundError:
        has_earlier = False
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} exists and is no certificate ({error}); choose another name") from error
    if not has_earlier and (path.exists() or table.exists()):
        other = path if path.exists() else table
        raise UsageError(f"{other} exists, and is of no certificate; choose another name")


def write(certificate: Certificate, path: Path) -> None:
    """Write a certificate, and its table beside it as ``.md``; an older one is replaced.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomic(path, certificate.to_json().encode())
    write_atomic(path.with_suffix(".md"), certificate.markdown().encode())


def read(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        UsageError: the file is no certificate, or one of an older version of envkit.
    """
    remedy = "make it again with: envkit audit"
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        schema = fields.pop("schema")
        if schema != _SCHEMA:
            raise UsageError(f"{path}: certificate of schema {schema}, expected {_SCHEMA}; {remedy}")
        for derived in ("passed", "not_applicable"):
            fields.pop(derived)
        findings = [Finding(**each) for each in fields.pop("findings")]
        seen: dict[str, Any] = fields.pop("coverage")
        levels = {level: (played, count) for level, (played, count) in seen.pop("levels").items()}
        played, count = seen.pop("sources")
        coverage = Coverage(**seen, sources=(played, count), levels=levels)
        return Certificate(**fields, coverage=coverage, findings=findings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a certificate ({error}); {remedy}") from error


def valid(kind: type[Env], lock: Lock | None = None, max_turns: int = 0) -> Certificate | str:
    """An environment's valid certificate, or the reason why there is none on this machine.

    A standard audit of the present code that failed outweighs any other certificate.

    Args:
        kind: the environment.
        lock: what the sandboxes of a run hold, which must be what was audited; ``None`` for any.
        max_turns: actions per episode of a run, at most as many as were audited.

    If a harness plays, the environment itself is what was audited: its checks grade. The harness's packages
    and the number of its requests are no part of that.
    """
    if (audited := kind.graded_as()) is not kind:
        return valid(audited)
    problem = "it was never audited"
    paths = [path for path in (shipped(kind), cached(kind)) if path.exists()]
    code = (content_digest(kind), SCHEME) if paths else None
    found: Certificate | None = None
    for path in paths:
        try:
            certificate = read(path)
        except UsageError as error:
            problem = str(error)
            continue
        if certificate.environment != kind.id:
            continue  # two environments may share a folder
        failed = next((finding for finding in certificate.findings if finding.ok is False), None)
        if (certificate.digest, certificate.digest_scheme) != code:
            problem = f"its code has changed since it was audited on {certificate.created}"
        elif failed is not None:
            problem = f"it has failed its audit: {failed.check}: {failed.detail}"
            if certificate.standard:
                return problem
        elif misfit := _misfit(kind, certificate, lock, max_turns):
            problem = misfit
        else:
            found = found or certificate
    return found or problem


def _misfit(kind: type[Env], certificate: Certificate, lock: Lock | None, max_turns: int) -> str:
    """The reason why a certificate does not cover a run; empty if it does."""
    if lock is not None and lock.digest != certificate.lock:
        held, holds = certificate.contents or "nothing beside Python", str(lock) or "nothing beside Python"
        return f"it was audited with sandboxes that held {held}, and here they hold {holds}"
    if max_turns > (audited := _turns(kind, certificate)):
        return f"it was audited with {audited} turns an episode, and this run has {max_turns}"
    return ""


def _turns(kind: type[Env], certificate: Certificate) -> int:
    return certificate.max_turns or kind.max_turns


def fewer_turns(kind: type[Env], lock: Lock, max_turns: int) -> str:
    """A sentence about a run with fewer turns than its environment was audited with; empty for any other run.

    A shorter episode is the beginning of one that was audited, so the certificate holds. But the agent may be
    told how many turns it has, and that text was not audited.

    Args:
        kind, lock, max_turns: see `valid`.
    """
    if kind.graded_as() is not kind:  # the turns of a harness are its requests
        return ""
    found = valid(kind, lock, max_turns)
    if isinstance(found, str) or (audited := _turns(kind, found)) <= max_turns:
        return ""
    return f"{kind.id} was audited with {audited} turns an episode; this run has {max_turns}."


def certificate_problem(kind: type[Env], lock: Lock | None = None, max_turns: int = 0) -> str:
    """The reason why an environment has no valid certificate here, see `valid`; empty if it has one."""
    found = valid(kind, lock, max_turns)
    return found if isinstance(found, str) else ""


def require_certified(kind: type[Env], lock: Lock | None = None, max_turns: int = 0) -> None:
    """Raise if an environment has no valid certificate, see `valid`.

    Raises:
        UsageError: says why there is none, and how to make one.
    """
    if problem := certificate_problem(kind, lock, max_turns):
        audited = kind.graded_as()  # a harness plays it: its own certificate counts, with its own turns
        turns = f" --max-turns {max_turns}" if audited is kind and max_turns > kind.max_turns else ""
        raise UsageError(
            f"environment {audited.id} has no valid certificate: {problem}; "
            f"run: envkit audit {audited.id}{turns}, or train with --unaudited"
        )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
