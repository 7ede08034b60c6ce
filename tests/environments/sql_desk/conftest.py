"""A PostgreSQL server for these tests, with its own data folder, socket and memory limit."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from envkit.environments.sql_desk.postgres import server
from envkit.environments.sql_desk.postgres.dsn import DSN_VARIABLE

PASSWORD = "hush-hush"


@dataclass
class Cluster:
    """A PostgreSQL server that tests can start, stop and query."""

    folder: Path
    binaries: Path
    #: Popen arguments for an unprivileged user if root runs the tests, because PostgreSQL refuses root.
    user: dict[str, Any] = field(default_factory=dict[str, Any])
    process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"host={self.folder} user=envkit password={PASSWORD} dbname=postgres"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def make(self) -> None:
        if self.user:
            os.chown(self.folder, self.user["user"], self.user["group"])
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        made = [self.binaries / "initdb", "-D", self.folder / "data", "-U", "envkit", "-A", "scram-sha-256"]
        made += ["--pwfile", secret, "-N", "-E", "UTF8", "--no-locale"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user)
        self.start()
        self.ask("REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC")

    def start(self) -> None:
        settings = ["listen_addresses=", "fsync=off", "full_page_writes=off", "log_statement=all"]
        command = ["sh", "-c", 'ulimit -d 262144; exec "$@"', "-", str(self.binaries / "postgres")]
        command += ["-D", str(self.folder / "data"), "-k", str(self.folder)]
        command += [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self.user)
        for _ in range(600):
            if (self.folder / ".s.PGSQL.5432").exists() and "ready to accept" in self.log.splitlines()[-1]:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"PostgreSQL does not start: {self.log}")

    def stop(self) -> None:
        """Stop the server immediately, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def ask(self, statement: str) -> list[Any]:
        """Run a statement as the superuser."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]
            return cursor.fetchall() if cursor.description else []


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def new_cluster() -> Iterator[Any]:
    """Return a function that makes servers; they are stopped and removed at the end."""
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL server is installed; apt-get install postgresql")
        pytest.skip("no PostgreSQL server is installed")
    if not os.environ.get("CI"):
        pytest.importorskip("psycopg")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    made: list[Cluster] = []

    def make() -> Cluster:
        # Not in pytest's folder: socket paths must be short, and other users cannot read it. Creating a
        # database of three hundred files is ten times faster in memory.
        memory = Path("/dev/shm")
        has_space = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
        parent = memory if has_space else "/tmp"
        made.append(Cluster(Path(tempfile.mkdtemp(prefix="pg", dir=parent)), binaries, user))
        made[-1].make()
        return made[-1]

    yield make
    for found in [*server._servers.values()]:
        found.close()
    for cluster in made:
        cluster.stop()
        shutil.rmtree(cluster.folder)


@pytest.fixture(scope="session")
def cluster(new_cluster: Any) -> Cluster:
    """The server that most tests share."""
    return new_cluster()


@pytest.fixture(scope="session")
def dsn(cluster: Cluster) -> Iterator[str]:
    """The server's DSN, also set as an environment variable."""
    before = os.environ.get(DSN_VARIABLE)
    os.environ[DSN_VARIABLE] = cluster.dsn
    yield cluster.dsn
    if before is None:
        del os.environ[DSN_VARIABLE]
    else:
        os.environ[DSN_VARIABLE] = before
